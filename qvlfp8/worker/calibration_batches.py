"""Conversations -> batches for ``model(**batch)``, in the words of the model's own processor.

A conversation is written by the chat template that comes with the model and kept as token ids; its
pictures are opened again when its batch is made, so that no more than one batch is in memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvlfp8.untrusted import NotACheckpoint, of_tokenizer, open_regular, read_object
from qvlfp8.worker.calibration_pictures import UNUSABLE, Outside, Unusable
from qvlfp8.worker.protocol import Refused

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_PAD = "<|image_pad|>"
_MARKS = (IMAGE_PAD, "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>")
_TEMPLATES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A question, perhaps about pictures, and its answer, which may be empty."""

    question: str
    answer: str
    pictures: tuple[Image, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A conversation as token ids; ``cut`` if its end was left out. ``open`` opens its pictures again."""

    ids: tuple[int, ...]
    images: int
    cut: bool
    open: Callable[[], Sequence[Image]] = field(repr=False)


class Encoder:
    """Writes conversations as the model's own files say."""

    def __init__(self, folder: Path, *, pictures: bool) -> None:
        """Read tokenizer, chat template and, for pictures, their preprocessing.

        Raises:
            Refused: ``not-a-checkpoint`` if the folder lacks one of the three.
        """
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._template = _template(folder) or self._tokenizer.chat_template
        if not self._template:
            raise Refused("not-a-checkpoint", f"{folder}: it has no chat template")
        self.processor: Any = _image_processor(folder) if pictures else None
        pad = self._tokenizer.pad_token_id
        self.padding: int = self._tokenizer.eos_token_id or 0 if pad is None else pad

    def encode(
        self,
        conversation: Conversation,
        reopen: Callable[[], Sequence[Image]],
        max_length: int | None = None,
    ) -> Encoded:
        """Write a conversation, at most ``max_length`` tokens of it; no picture is ever cut.

        Raises:
            Unusable: its pictures do not fit, or it holds the model's own marks.
            Refused: ``not-a-checkpoint``, the chat template does not show the pictures.
        """
        said = conversation.question + conversation.answer
        if mark := next((mark for mark in _MARKS if mark in said), None):
            raise Unusable("text with the model's own marks", f"{said[:60]!r} has {mark}")
        pads = [self._tokens_of(picture) for picture in conversation.pictures]
        prompt = _expand_pads(self._prompt(conversation), pads)
        ids = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        kept = ids if max_length is None else ids[:max_length]
        if pads and len(kept) < len(ids):
            pad = self._tokenizer.convert_tokens_to_ids(IMAGE_PAD)
            # The mark that ends a picture follows its last placeholder.
            needed = len(ids) - ids[::-1].index(pad) + 1
            if needed > len(kept):
                raise Unusable("longer than the length limit", f"{needed} tokens up to its picture's end")
        return Encoded(
            ids=tuple(kept), images=len(conversation.pictures), cut=len(kept) < len(ids), open=reopen
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, the model's own marks included."""
        text: str = self._tokenizer.decode(ids)
        return text

    def _prompt(self, conversation: Conversation) -> str:
        question: list[dict[str, str]] = [{"type": "image"} for _ in conversation.pictures]
        question.append({"type": "text", "text": conversation.question})
        messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
        if conversation.answer:
            messages.append({"role": "assistant", "content": conversation.answer})
        prompt: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, chat_template=self._template
        )
        return prompt

    def _tokens_of(self, picture: Image) -> int:
        """How many tokens of language stand for a picture."""
        try:
            patches: int = self.processor.get_number_of_image_patches(picture.height, picture.width, {})
        except ValueError as error:
            raise Unusable("picture of an impossible shape", str(error)) from error
        return patches // int(self.processor.merge_size) ** 2


class Batches:
    """A calibration set, ready for ``model(**batch)``; each iteration makes the same batches anew.

    Rows of a batch are padded on the right, and conversations of like length share one. A batch of one
    conversation has no padding.
    """

    def __init__(self, encoder: Encoder, model: Any, conversations: Sequence[Encoded], size: int = 1) -> None:
        self._encoder = encoder
        self._model = model
        if size > 1:
            conversations = sorted(conversations, key=lambda one: len(one.ids))
        self._groups = [conversations[at : at + size] for at in range(0, len(conversations), size)]
        self.samples = len(conversations)
        self.images = sum(one.images for one in conversations)
        self.tokens = sum(len(one.ids) for one in conversations)
        self.cut = sum(one.cut for one in conversations)
        self.padding = sum(len(g) * max(len(one.ids) for one in g) for g in self._groups) - self.tokens

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # From transformers 5 on the model wants to be told which tokens stand for pictures.
        typed = "mm_token_type_ids" in inspect.signature(type(self._model).forward).parameters
        for group in self._groups:
            batch = self._batch(group)
            if typed:
                is_image = batch["input_ids"] == self._model.config.image_token_id
                batch["mm_token_type_ids"] = is_image.int()
            yield {name: tensor.to(self._model.device) for name, tensor in batch.items()}

    def _batch(self, group: Sequence[Encoded]) -> dict[str, Any]:
        import torch

        longest = max(len(one.ids) for one in group)
        missing = [longest - len(one.ids) for one in group]
        rows = [[*one.ids, *[self._encoder.padding] * gap] for one, gap in zip(group, missing, strict=True)]
        mask = [[1] * len(one.ids) + [0] * gap for one, gap in zip(group, missing, strict=True)]
        batch: dict[str, Any] = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
        if pictures := _pictures_of(group):
            batch |= dict(self._encoder.processor(images=pictures, return_tensors="pt"))
        return batch


def _pictures_of(group: Sequence[Encoded]) -> list[Image]:
    try:
        return [picture for one in group for picture in one.open()]
    except (Unusable, Outside) as error:
        raise Refused(
            UNUSABLE, f"a picture has changed since it was read first: {error}; keep the data set as it is"
        ) from error


def image_processor_class() -> Any:
    """Import transformers' own preprocessing, its PIL variant: it needs no torchvision."""
    try:
        from transformers import Qwen2VLImageProcessorPil
    except ImportError:  # transformers 4.x, where the plain name is the PIL variant
        from transformers import Qwen2VLImageProcessor

        return Qwen2VLImageProcessor
    return Qwen2VLImageProcessorPil


def _template(folder: Path) -> str | None:
    """The processor's chat template, which stands in a file of its own; its class needs torchvision."""
    text, document = (folder / name for name in _TEMPLATES)
    mend = "copy it from the original model"
    try:
        if text.is_file():
            with open_regular(text, folder) as stream:
                return stream.read(2_000_000).decode("utf-8")
        if document.is_file():
            found = read_object(document, of_tokenizer(), mend, folder).get("chat_template")
            return found if isinstance(found, str) else None
    except (NotACheckpoint, UnicodeDecodeError) as error:
        raise Refused("not-a-checkpoint", f"{folder}: its chat template cannot be read: {error}") from error
    return None


def _image_processor(folder: Path) -> Any:
    if not (folder / "preprocessor_config.json").is_file():
        raise Refused(
            "not-a-checkpoint",
            f"{folder}: without preprocessor_config.json no picture can be prepared; "
            "copy it from the original model",
        )
    return image_processor_class().from_pretrained(folder)


def _expand_pads(prompt: str, pads: Sequence[int]) -> str:
    """Repeat each image placeholder as often as its picture has language tokens."""
    pieces = prompt.split(IMAGE_PAD)
    if len(pieces) != len(pads) + 1:
        raise Refused(
            "not-a-checkpoint",
            f"the chat template wrote {len(pieces) - 1} {IMAGE_PAD} for {len(pads)} pictures",
        )
    return pieces[0] + "".join(
        IMAGE_PAD * count + piece for count, piece in zip(pads, pieces[1:], strict=True)
    )
