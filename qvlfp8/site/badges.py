"""A badge for each recipe: in how many of its cells that were run it sees. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qvlfp8.cells import GENERATED
from qvlfp8.site.data import SiteCell

__all__ = ["Badge", "badge_of"]

_COLOURS = {"all": "#0e6a70", "some": "#8a5a00", "none": "#a3260f", "not run": "#5b5f66"}
_CHARACTER = 6.6
"""Width of a character of Verdana at 11 pixels, about: text is fitted to it."""


@dataclass(frozen=True, kw_only=True)
class Badge:
    """What it says, and its colour."""

    label: str
    message: str
    colour: str

    @property
    def endpoint(self) -> dict[str, Any]:
        """As shields.io asks for it of an endpoint."""
        return {"schemaVersion": 1, "label": self.label, "message": self.message, "color": self.colour}

    @property
    def left(self) -> int:
        """Width of the label's side."""
        return round(len(self.label) * _CHARACTER) + 12

    @property
    def width(self) -> int:
        """Of the whole."""
        return self.left + round(len(self.message) * _CHARACTER) + 12


def badge_of(recipe: str, cells: Iterable[SiteCell]) -> Badge:
    """Of the recipe's cells whose run of vLLM is on record, how many see."""
    ran = [cell for cell in cells if cell.cell.recipe.id == recipe and _was_run(cell)]
    sees = Counter(cell.outcome for cell in ran)["sees"]
    if not ran:
        return Badge(label=recipe, message="not run", colour=_COLOURS["not run"])
    share = "all" if sees == len(ran) else "some" if sees else "none"
    cells_word = "cell" if len(ran) == 1 else "cells"
    return Badge(
        label=recipe, message=f"sees in {sees} of {len(ran)} {cells_word} run", colour=_COLOURS[share]
    )


def _was_run(cell: SiteCell) -> bool:
    """Whether vLLM was run on it and said something of it."""
    return any(stage.stage in GENERATED and stage.status in {"pass", "fail"} for stage in cell.view.stages)
