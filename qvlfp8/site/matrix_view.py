"""The matrix as the first page shows it: groups of rows, columns, and what it can be filtered by. Pure.

A row is a checkpoint and a way to run vLLM; a column is a serve environment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from packaging.version import Version

from qvlfp8.cells import PLAIN, STAGES, Cell
from qvlfp8.environments import ServeEnvironment
from qvlfp8.observed import named_version
from qvlfp8.site.data import Site, SiteCell
from qvlfp8.site.outcome import MEANINGS, OUTCOMES, WORDS, Outcome
from qvlfp8.site.words import Ended, Span, as_text, spans

__all__ = ["Choice", "Filter", "Group", "Legend", "Matrix", "Row", "lay_out"]

_PRODUCERS = {"modelopt": "ModelOpt", "llmcompressor": "llm-compressor"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A checkpoint, run in one way: ``cells`` are its marks, a column each."""

    checkpoint: str
    producer: str
    transformers: str
    model: str
    variant: str
    """How vLLM is run; empty for the plain way."""
    spans: tuple[Span, ...]
    cells: tuple[SiteCell | None, ...]

    @property
    def words(self) -> str:
        """The whole row as a sentence."""
        return as_text(self.spans)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The rows of one recipe."""

    recipe: str
    description: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One value of a filter, how it is shown, and how many cells have it."""

    value: str
    text: str
    cells: int


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Something to filter by: ``name`` is its key in the address."""

    name: str
    label: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, kw_only=True)
class Legend:
    """An outcome, what it means, and how many cells have it."""

    outcome: Outcome
    word: str
    meaning: str
    cells: int


@dataclass(frozen=True, kw_only=True)
class Seeing:
    """What sees in one vLLM: of each recipe the cell by the newest producer that does."""

    version: str
    cells: tuple[SiteCell, ...]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """All of it."""

    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    filters: tuple[Filter, ...]
    legend: tuple[Legend, ...]
    cells: int
    executed: int
    run: int
    """Cells of which vLLM was run."""
    earlier: int
    uncommitted: int
    """Cells of vLLM's CPU build that were not run here: their runs are not committed."""
    seeing: tuple[Seeing, ...]

    @property
    def why_uncommitted(self) -> str:
        """Why cells of vLLM's CPU build are not run, in a sentence; empty where none is."""
        if not self.uncommitted:
            return ""
        cells = "1 cell is" if self.uncommitted == 1 else f"{self.uncommitted:,} cells are"
        return (
            f"{cells} not run because vLLM's CPU build needs no GPU: such runs are not committed, and "
            "`nox -s matrix` makes them on your machine."
        )

    @cached_property
    def _places(self) -> Mapping[str, Mapping[str, int]]:
        return {
            one.name: {choice.value: index for index, choice in enumerate(one.choices)}
            for one in self.filters
        }

    def place(self, name: str, value: str) -> int:
        """Where a value stands among a filter's choices: marks name it so, shortly."""
        return self._places[name][value]

    def places(self, name: str, values: Iterable[str]) -> str:
        """The places of several values, with spaces between them."""
        return " ".join(str(self.place(name, value)) for value in values)


def lay_out(site: Site) -> Matrix:
    """The matrix of a site."""
    serves = {cell.cell.serve.id: cell.cell.serve for cell in site.cells}
    ordered = sorted(serves.values(), key=lambda serve: (Version(serve.vllm), serve.id))
    rows: dict[tuple[str, str], dict[str, SiteCell]] = {}
    for cell in site.cells:
        rows.setdefault((cell.cell.checkpoint, cell.cell.variant.id), {})[cell.cell.serve.id] = cell
    groups: dict[str, list[Row]] = {}
    for cells in rows.values():
        first = next(iter(cells.values())).cell
        groups.setdefault(first.recipe.id, []).append(_row(first, cells, ordered))
    # What people make comes first.
    usual = {cell.cell.recipe.id for cell in site.cells if cell.cell.default}
    counts = Counter(cell.outcome for cell in site.cells)
    return Matrix(
        columns=tuple(named_version(serve) for serve in ordered),
        groups=tuple(
            Group(recipe=name, description=site.project.matrix.recipes[name].description, rows=_sorted(found))
            for name, found in sorted(groups.items(), key=lambda item: (item[0] not in usual, item[0]))
        ),
        filters=tuple(_filters(site.cells, [named_version(serve) for serve in ordered])),
        legend=tuple(
            Legend(outcome=one, word=WORDS[one], meaning=MEANINGS[one], cells=counts[one]) for one in OUTCOMES
        ),
        cells=len(site.cells),
        executed=sum(cell.executed for cell in site.cells),
        run=sum(bool(cell.hardware) for cell in site.cells),
        earlier=sum(cell.earlier for cell in site.cells),
        uncommitted=sum(cell.outcome == "never" and cell.cell.serve.device == "cpu" for cell in site.cells),
        seeing=tuple(_seeing(site.cells, ordered)),
    )


def _row(first: Cell, cells: Mapping[str, SiteCell], serves: Sequence[ServeEnvironment]) -> Row:
    made = tuple(cells.get(serve.id) for serve in serves)
    told = [
        Ended(version=named_version(cell.cell.serve), outcome=cell.outcome, at=cell.at)
        for cell in made
        if cell is not None
    ]
    return Row(
        checkpoint=first.checkpoint,
        producer=producer(first),
        transformers=first.quantize.transformers,
        model=first.model.id,
        variant="" if first.variant.id == PLAIN.id else first.variant.id,
        spans=spans(told),
        cells=made,
    )


def _seeing(cells: Sequence[SiteCell], serves: Sequence[ServeEnvironment]) -> Iterator[Seeing]:
    newest: dict[str, dict[str, SiteCell]] = {}
    for one in cells:
        if one.outcome != "sees" or one.cell.variant.id != PLAIN.id:
            continue
        found = newest.setdefault(one.cell.serve.id, {})
        known = found.get(one.cell.recipe.id)
        if known is None or _made_before(known.cell, one.cell):
            found[one.cell.recipe.id] = one
    for serve in serves:
        if serve.id in newest:
            yield Seeing(version=named_version(serve), cells=tuple(newest[serve.id].values()))


def _made_before(one: Cell, other: Cell) -> bool:
    return one.quantize.version < other.quantize.version


def producer(cell: Cell) -> str:
    """Who made its checkpoint, in words: ``ModelOpt 0.41.0``, ``ModelOpt 0.41.0 transformers-5``."""
    label = f" {cell.quantize.label}" if cell.quantize.label else ""
    return f"{_PRODUCERS[cell.quantize.producer]} {cell.quantize.version}{label}"


def _sorted(rows: Iterable[Row]) -> tuple[Row, ...]:
    """matrix.yaml's order, with variants behind their checkpoint."""
    order: dict[str, int] = {}
    listed = list(rows)
    for row in listed:
        order.setdefault(row.checkpoint, len(order))
    return tuple(sorted(listed, key=lambda row: (order[row.checkpoint], row.variant != "")))


def _filters(cells: Sequence[SiteCell], columns: Sequence[str]) -> Iterator[Filter]:
    # The script takes a choice's place for its column.
    yield _filter("vllm", "vLLM", ((named_version(cell.cell.serve),) for cell in cells), order=columns)
    yield _filter("by", "Quantized by", ((producer(cell.cell),) for cell in cells), by_version=True)
    yield _filter(
        "tf", "transformers", ((cell.cell.quantize.transformers,) for cell in cells), by_version=True
    )
    yield _filter("model", "Model", ((cell.cell.model.id,) for cell in cells))
    yield _filter("gpu", "Run on", (cell.hardware for cell in cells))
    yield _filter("stage", "Ended at", ((cell.at,) if cell.executed else () for cell in cells), order=STAGES)
    yield _filter("finding", "Finding", (cell.shown for cell in cells))


def _filter(
    name: str,
    label: str,
    values: Iterable[Iterable[str]],
    *,
    by_version: bool = False,
    order: Sequence[str] = (),
) -> Filter:
    counts = Counter(value for found in values for value in dict.fromkeys(found))

    def key(value: str) -> tuple[object, ...]:
        if order:
            return (order.index(value),)
        words = value.split()
        return (
            (words[0], Version(words[1]), words[2:])
            if by_version and len(words) > 1
            else ((Version(value),) if by_version else (value,))
        )

    return Filter(
        name=name,
        label=label,
        choices=tuple(
            Choice(value=value, text=value, cells=counts[value]) for value in sorted(counts, key=key)
        ),
    )
