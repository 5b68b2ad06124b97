"""What steps were asked, in words, and the keys of the committed records that can stand for them. Pure.

Planning does not ask for it; it is worked out when somebody does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qvlfp8 import digest, source
from qvlfp8.cells import Model
from qvlfp8.plan import OWN_SOURCE, SHORT, Step

__all__ = ["Made", "OfCheckpoint", "OfRun", "of_model", "short"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a checkpoint, or a model, is made of: by name, as digests."""

    told: Mapping[str, str]
    of_run: Mapping[str, str]
    """What a run's key says of it: recipe, lock and model, as canonical texts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OfCheckpoint:
    """The words of a stage that needs no GPU: those of the checkpoint, and some of its own."""

    stage: Literal["quantize", "inspect", "preflight"]
    told: Mapping[str, str]
    """What is asked besides the checkpoint's making, by name, as digests."""
    own: tuple[str, str] | None = None
    """What of it stands in the key as well, whole: name and digest."""

    def asked(self, step: Step) -> Mapping[str, str]:
        """As :attr:`qvlfp8.plan.Step.asked`."""
        return short({**_made(step).told, **self.told})

    def evidence(self, step: Step) -> tuple[str, ...]:
        """The key of what was asked, without our own source."""
        told = {**_made(step).told, **self.told}
        meant = told if self.stage == "quantize" else short(told)
        meant = {name: value for name, value in meant.items() if not name.endswith(OWN_SOURCE)}
        meant |= dict((self.own,)) if self.own else {}
        key = {
            "stage": digest.canonical(self.stage),
            "subject": digest.canonical(step.subject),
            "asked": digest.joined({name: f'"{value}"' for name, value in meant.items()}),
        }
        return (digest.of_text(digest.joined(key)),)


@dataclass(frozen=True, kw_only=True, slots=True)
class OfRun:
    """The words of runs of one serve environment and variant."""

    told: Mapping[str, str]
    """What is asked besides the checkpoint's making, by name, as digests."""
    params: str
    """What the run is asked, as canonical text."""
    locks: Sequence[str | None]
    """Digests of the locks under which a committed record of a run can stand."""
    _known: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    def asked(self, step: Step) -> Mapping[str, str]:
        """As :attr:`qvlfp8.plan.Step.asked`."""
        return short({**_made(step).told, **self.told})

    def evidence(self, step: Step) -> tuple[str, ...]:
        """A key for each lock."""
        if (known := self._known.get(step.digest)) is None:
            said = _made(step).of_run
            shared = {**said, "subject": digest.canonical(step.subject), "params": self.params}
            known = self._known[step.digest] = tuple(
                digest.of_text(digest.joined({**shared, "serve": digest.canonical(lock)}))
                for lock in self.locks
            )
        return known


def _made(step: Step) -> Made:
    if not isinstance(step.made, Made):
        raise TypeError(f"{step.stage} {step.subject}: nothing says of what its checkpoint is made")
    return step.made


def short(told: Mapping[str, str]) -> dict[str, str]:
    """As much of each digest as tells whether something has changed."""
    return {name: value[:SHORT] for name, value in told.items()}


def of_model(model: Model) -> Made:
    """What a model is made of; one of random weights is what our source makes of its seed."""
    own = source.of_modules("reference")
    made: dict[str, Any] = {"seed": model.seed, "source": own}
    if model.reference == "trained":
        made = {"weights": source.of_trained_weights()}
    text = digest.canonical({"weights": source.of_trained_weights(), "tied": model.tie_word_embeddings})
    return Made(
        told={
            "model": digest.of_json({**made, "tied": model.tie_word_embeddings}),
            "reference source": own,
        },
        of_run={"recipe": "null", "quantize": "null", "model": text},
    )
