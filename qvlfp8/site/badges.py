"""A badge for each recipe: in which vLLM it sees, by the newest producer with which it was run. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from qvlfp8.cells import GENERATED, PLAIN
from qvlfp8.observed import named_version
from qvlfp8.site.data import SiteCell
from qvlfp8.site.matrix_view import producer
from qvlfp8.site.outcome import Outcome
from qvlfp8.site.words import versions_in_words

__all__ = ["COLOURS", "Badge", "badge_of"]

COLOURS = MappingProxyType(
    {"latest": "#0e6a70", "others": "#8a5a00", "none": "#a3260f", "not run": "#5b5f66"}
)
"""It sees in the latest vLLM in which it was run; in others alone; in none; it was not run."""

_CHARACTER = 6.6
"""Width of a character of Verdana at 11 pixels, about: text is fitted to it."""


@dataclass(frozen=True, kw_only=True)
class Badge:
    """Of a recipe: what it says, by which producer (empty: none was run), and how its checkpoint is marked.

    ``latest``: it sees in the latest vLLM in which it was run.
    """

    recipe: str
    producer: str
    message: str
    mark: Outcome
    latest: bool = False

    @property
    def label(self) -> str:
        """What stands on its left side."""
        return f"{self.recipe}, {self.producer}" if self.producer else self.recipe

    @property
    def colour(self) -> str:
        """Of its right side."""
        if self.mark == "sees":
            return COLOURS["latest" if self.latest else "others"]
        return COLOURS["not run" if self.mark == "never" else "none"]

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
        return Badge(recipe=recipe, producer="", message="not run", mark="never")
    newest = max((cell.cell.quantize for cell in ran), key=lambda made: (made.version, not made.label))
    ran = [cell for cell in ran if cell.cell.quantize == newest]
    run_in = {named_version(cell.cell.serve) for cell in ran}
    sees = run_in - {named_version(cell.cell.serve) for cell in ran if cell.outcome != "sees"}
    made_by = producer(ran[0].cell)
    if not sees:
        message = f"sees in none of {len(run_in)} vLLM version{'' if len(run_in) == 1 else 's'} run"
        return Badge(recipe=recipe, producer=made_by, message=message, mark="fails")
    return Badge(
        recipe=recipe,
        producer=made_by,
        message=f"sees in vLLM {versions_in_words(sees, columns)}",
        mark="sees",
        latest=max(run_in, key=columns.index) in sees,
    )


def _was_run(cell: SiteCell) -> bool:
    """Whether vLLM was run on it and said something of it."""
    return any(stage.stage in GENERATED and stage.status in {"pass", "fail"} for stage in cell.view.stages)
