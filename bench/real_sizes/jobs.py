"""What is to be measured: steps, one record each, in the order in which they are worth doing."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

BF16 = "bf16"
"""The unquantized model, where the others have a recipe."""

SPEED_RECIPES = (BF16, "lm-fp8", "vlm-fp8", "vlm-fp8-attn")
BESIDE_RECIPE = "vlm-fp8"

Phase = Literal["checkpoints", "speed", "beside"]
PHASES: tuple[Phase, ...] = ("checkpoints", "speed", "beside")
"""``checkpoints`` is spread over GPUs; the others want the host for themselves."""

Mode = Literal["compiled", "eager"]
MODES: tuple[Mode, ...] = ("compiled", "eager")

Kind = Literal["model", "quantize", "answers", "speed-compiled", "speed-eager", "beside"]


@dataclass(frozen=True, kw_only=True, order=True)
class Step:
    """One thing that is measured of one checkpoint."""

    size: str
    recipe: str
    kind: Kind

    @property
    def name(self) -> str:
        """How its record is called."""
        return f"{self.size}~{self.recipe}~{self.kind}"

    @property
    def phase(self) -> Phase:
        """The phase in which it is done."""
        if self.kind.startswith("speed"):
            return "speed"
        return "beside" if self.kind == "beside" else "checkpoints"


def steps(
    sizes: Sequence[str], recipes: Iterable[str], phases: Sequence[Phase], modes: Sequence[Mode]
) -> list[Step]:
    """Every step: size by size, phase by phase, the unquantized model first."""
    names = [BF16, *(name for name in recipes if name != BF16)]
    return [step for size in sizes for phase in phases for step in _of(size, names, phase, modes)]


def _of(size: str, names: Sequence[str], phase: Phase, modes: Sequence[Mode]) -> Iterator[Step]:
    match phase:
        case "checkpoints":
            for name in names:
                yield Step(size=size, recipe=name, kind="model" if name == BF16 else "quantize")
                yield Step(size=size, recipe=name, kind="answers")
        case "speed":
            for mode in modes:
                for name in names:
                    if name in SPEED_RECIPES:
                        kind: Kind = "speed-compiled" if mode == "compiled" else "speed-eager"
                        yield Step(size=size, recipe=name, kind=kind)
        case "beside":
            if BESIDE_RECIPE in names:
                yield Step(size=size, recipe=BESIDE_RECIPE, kind="beside")


def not_here(recipe: Mapping[str, Any], producers: Container[str]) -> str | None:
    """Why a recipe cannot be followed with the environments of these exporters, or None."""
    exporter = recipe["exporter"]
    return None if exporter in producers else f"made by {exporter}, of which no environment was brought"


PAIRS: Mapping[str, int] = {"3b": 3, "7b": 2, "thin": 1, "tiny": 1}
"""How often the worker and the plain script are run beside each other."""

_SMALL = {"repeats": 2, "sides": [112], "pictures": 2, "batches": [1, 2], "tokens": 8}
_REAL = {"repeats": 5, "sides": [448, 1024], "pictures": 16, "batches": [1, 32], "tokens": 256}
_EAGER_TOKENS = 128
"""Fewer suffice where each takes several times as long."""


def speed_asked(step: Step) -> dict[str, Any]:
    """What speed is measured with."""
    if step.size not in {"3b", "7b"}:
        return _SMALL
    return _REAL | ({"tokens": _EAGER_TOKENS} if step.kind == "speed-eager" else {})


_SECONDS: Mapping[str, int] = {
    "model": 45,
    "quantize": 60,
    "answers": 90,
    "speed-compiled": 180,
    "speed-eager": 120,
    "beside": 80,
}


def seconds(step: Step) -> int:
    """About how long it takes: it is not begun where less time is left."""
    return _SECONDS[step.kind] * (2 if step.size == "7b" else 1)
