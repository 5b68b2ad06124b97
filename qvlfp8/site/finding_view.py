"""A finding's page: meaning, mend, and where the records show it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qvlfp8.cells import OF_CHECKPOINT, STAGES, Stage
from qvlfp8.finding_kinds import Kind
from qvlfp8.known_findings import KNOWN
from qvlfp8.observed import named_version
from qvlfp8.signs import Signs, signs_of
from qvlfp8.site.data import Site, SiteCell
from qvlfp8.site.words import versions_in_words

__all__ = ["FindingPage", "Seen", "make_pages"]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One stage that showed it: in which vLLM (empty where the checkpoint alone is looked at)."""

    stage: Stage
    versions: str
    cells: int
    not_in: str
    """Versions in which that stage was executed and no cell showed it."""


@dataclass(frozen=True, kw_only=True)
class FindingPage:
    """All of the page; ``cells`` are those that show it, in the matrix's order."""

    name: str
    kind: Kind
    signs: Signs
    seen: tuple[Seen, ...]
    cells: tuple[SiteCell, ...]


def make_pages(site: Site, columns: Sequence[str]) -> tuple[FindingPage, ...]:
    """Every finding that there is, shown by a cell or not; ``columns`` in the order of versions."""
    return tuple(_page(site, name, columns) for name in _names(site))


def _names(site: Site) -> list[str]:
    """The known ones, and what records of another version of this project show besides."""
    shown = {name for cell in site.cells for name in cell.shown}
    return [*KNOWN, *sorted(shown - set(KNOWN))]


def _page(site: Site, name: str, columns: Sequence[str]) -> FindingPage:
    cells = tuple(cell for cell in site.cells if name in cell.shown)
    return FindingPage(
        name=name,
        kind=KNOWN.get(name)
        or Kind(severity="fail", meaning="see what the cells below say", mend="see there"),
        signs=signs_of(name),
        seen=tuple(_seen(site, name, cells, columns)),
        cells=cells,
    )


def _seen(site: Site, name: str, cells: Sequence[SiteCell], columns: Sequence[str]) -> Iterator[Seen]:
    for stage in STAGES:
        showing = [cell for cell in cells if name in _at(cell, stage)]
        if not showing:
            continue
        versions = {named_version(cell.cell.serve) for cell in showing}
        ran = {named_version(cell.cell.serve) for cell in site.cells if _was_executed(cell, stage)}
        others = [column for column in columns if column in ran - versions]
        yield Seen(
            stage=stage,
            versions="" if stage in OF_CHECKPOINT else versions_in_words(versions, columns),
            cells=len(showing),
            not_in="" if stage in OF_CHECKPOINT or not others else versions_in_words(others, columns),
        )


def _at(cell: SiteCell, stage: Stage) -> tuple[str, ...]:
    view = cell.view.stage(stage)
    noted = tuple(name for of, name in cell.notes if of == stage)
    return (*(view.findings if view else ()), *noted)


def _was_executed(cell: SiteCell, stage: Stage) -> bool:
    view = cell.view.stage(stage)
    return view is not None and view.status in {"pass", "fail"}
