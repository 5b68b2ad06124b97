"""A finding's page: meaning, mend, and where the records show it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
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
    showing: dict[str, list[SiteCell]] = {name: [] for name in _names(site)}
    at: dict[str, dict[Stage, list[SiteCell]]] = {name: {} for name in showing}
    ran: dict[Stage, set[str]] = {stage: set() for stage in STAGES}
    for cell in site.cells:
        for name in cell.shown:
            showing[name].append(cell)
        for stage, name in _shown(cell):
            at[name].setdefault(stage, []).append(cell)
        for view in cell.view.stages:
            if view.status in {"pass", "fail"}:
                ran[view.stage].add(named_version(cell.cell.serve))
    return tuple(_page(name, cells, at[name], ran, columns) for name, cells in showing.items())


def _names(site: Site) -> list[str]:
    """The known ones, and what records of another version of this project show besides."""
    shown = {name for cell in site.cells for name in cell.shown}
    return [*KNOWN, *sorted(shown - set(KNOWN))]


def _page(
    name: str,
    cells: Sequence[SiteCell],
    at: Mapping[Stage, Sequence[SiteCell]],
    ran: Mapping[Stage, Set[str]],
    columns: Sequence[str],
) -> FindingPage:
    return FindingPage(
        name=name,
        kind=KNOWN.get(name)
        or Kind(severity="fail", meaning="see what the cells below say", mend="see there"),
        signs=signs_of(name),
        seen=tuple(_seen(at, ran, columns)),
        cells=tuple(cells),
    )


def _seen(
    at: Mapping[Stage, Sequence[SiteCell]], ran: Mapping[Stage, Set[str]], columns: Sequence[str]
) -> Iterator[Seen]:
    """``at``: the cells that show it at a stage; ``ran``: the versions in which a stage was executed."""
    for stage in STAGES:
        showing = at.get(stage)
        if not showing:
            continue
        versions = {named_version(cell.cell.serve) for cell in showing}
        others = [column for column in columns if column in ran[stage] - versions]
        yield Seen(
            stage=stage,
            versions="" if stage in OF_CHECKPOINT else versions_in_words(versions, columns),
            cells=len(showing),
            not_in="" if stage in OF_CHECKPOINT or not others else versions_in_words(others, columns),
        )


def _shown(cell: SiteCell) -> Set[tuple[Stage, str]]:
    """At which stages it shows which findings."""
    return {*cell.notes, *((view.stage, cause.id) for view in cell.view.stages for cause in view.causes)}
