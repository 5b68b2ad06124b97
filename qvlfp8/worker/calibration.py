"""What runs through a model while ModelOpt watches its activations: a data set's samples, or drawn ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvlfp8.quant_cfg import Calibration
from qvlfp8.worker import calibration_drawn, protocol
from qvlfp8.worker.calibration_batches import Batches, Conversation, Encoded, Encoder, image_processor_class
from qvlfp8.worker.calibration_choice import choose
from qvlfp8.worker.calibration_tables import Asked, Sample, open_table

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Prepared", "image_processor_class", "prepare"]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Conversations in the model's own tokens, and what there is to say of the data set they are from."""

    encoder: Encoder
    conversations: Sequence[Encoded]
    calibration: Calibration
    dataset: dict[str, Any] | None = None
    batch_size: int = 1

    def batches(self, model: Any) -> Batches:
        """Batches on the device of the loaded model; without one they can be counted, not made."""
        return Batches(self.encoder, model, self.conversations, self.batch_size)

    def texts(self) -> list[tuple[str, int]]:
        """Each conversation as the chat template wrote it, and how many tokens that is."""
        return [(self.encoder.decode(one.ids), len(one.ids)) for one in self.conversations]

    def measured(self, batches: Batches) -> dict[str, Any]:
        """What a result says of it: counts of what is shown, and of what is not."""
        counts = {
            "modality": self.calibration["modality"],
            "samples": batches.samples,
            "images": batches.images,
            "tokens": batches.tokens,
        }
        if self.dataset is None:
            return counts
        return {**counts, "padding": batches.padding, "cut": batches.cut, "dataset": self.dataset}


def prepare(folder: Path, calibration: Calibration, asked: Asked | None, cache: Path) -> Prepared:
    """Write every conversation of a calibration; no model is needed yet.

    Args:
        folder: where the model came from: tokenizer, chat template, image preprocessing.
        calibration: the recipe's: modality, and number and seed of drawn conversations.
        asked: a data set instead.
        cache: a folder for what reading it leaves.

    Raises:
        Refused: ``not-a-checkpoint`` if ``folder`` lacks one of the three, ``dataset-unusable``.
    """
    encoder = Encoder(folder, pictures=calibration["modality"] == "image+text")
    if asked is None:
        drawn = [
            encoder.encode(one, partial(attrgetter("pictures"), one))
            for one in calibration_drawn.conversations(calibration)
        ]
        return Prepared(encoder=encoder, conversations=drawn, calibration=calibration)
    table = open_table(asked, cache)

    def use(sample: Sample, reopen: Callable[[], Sequence[Image]]) -> Encoded:
        one = Conversation(question=sample.text, answer=sample.answer, pictures=tuple(reopen()))
        return encoder.encode(one, reopen, asked["max_length"])

    conversations, chosen = choose(
        table, asked, use, lambda done, total: protocol.progress("reading samples", done, total)
    )
    return Prepared(
        encoder=encoder,
        conversations=conversations,
        calibration=calibration,
        batch_size=asked["batch_size"],
        dataset={
            "source": asked["source"],
            "rows": len(table),
            "revision": table.revision,
            "digest": chosen.digest,
            "skipped": dict(chosen.skipped),
            "examples": chosen.examples,
        },
    )
