"""A badge for each recipe: in which vLLM it sees, by the newest producer with which it was run. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qvlfp8.cells import GENERATED, PLAIN
from qvlfp8.observed import named_version
from qvlfp8.site.data import SiteCell
from qvlfp8.site.matrix_view import producer
from qvlfp8.site.words import versions_in_words

__all__ = ["COLOURS", "Badge", "badge_of"]

COLOURS = {"latest": "#0e6a70", "others": "#8a5a00", "none": "#a3260f", "not run": "#5b5f66"}
"""By where it sees: in the latest vLLM in which it was run; in others alone; in none."""

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


def badge_of(recipe: str, cells: Iterable[SiteCell], columns: Sequence[str]) -> Badge:
    """In which vLLM the recipe's newest checkpoint sees, of those in which it was run.

    Newest is what the newest producer made of which a run is on record: what older ones made says nothing of
    what somebody makes today. Run is in the plain way; where a version has several cells, all must see.

    Args:
        recipe: its id.
        cells: those of the site.
        columns: vLLM versions, oldest first.
    """
    ran = [
        cell
        for cell in cells
        if cell.cell.recipe.id == recipe and cell.cell.variant.id == PLAIN.id and _was_run(cell)
    ]
    if not ran:
        return Badge(label=recipe, message="not run", colour=COLOURS["not run"])
    newest = max((cell.cell.quantize for cell in ran), key=lambda made: (made.version, not made.label))
    ran = [cell for cell in ran if cell.cell.quantize == newest]
    label = f"{recipe}, {producer(ran[0].cell)}"
    run_in = {named_version(cell.cell.serve) for cell in ran}
    sees = run_in - {named_version(cell.cell.serve) for cell in ran if cell.outcome != "sees"}
    if not sees:
        several = "" if len(run_in) == 1 else "s"
        message = f"sees in none of {len(run_in)} vLLM version{several} run"
        return Badge(label=label, message=message, colour=COLOURS["none"])
    latest = max(run_in, key=columns.index)
    colour = COLOURS["latest" if latest in sees else "others"]
    return Badge(label=label, message=f"sees in vLLM {versions_in_words(sees, columns)}", colour=colour)


def _was_run(cell: SiteCell) -> bool:
    """Whether vLLM was run on it and said something of it."""
    return any(stage.stage in GENERATED and stage.status in {"pass", "fail"} for stage in cell.view.stages)
