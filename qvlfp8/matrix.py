"""matrix.yaml: models, environments, cells, exclusions and expectations, as validated frozen objects.

Nothing here knows how anything is run. Errors name the file, the line, the field and the mend.
"""

from __future__ import annotations

import difflib
import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from qvlfp8.cells import (
    OF_CHECKPOINT,
    PLAIN,
    Cell,
    CellRow,
    Exclusion,
    Expectation,
    Globs,
    Model,
    Stage,
    Variant,
    globs,
)
from qvlfp8.coverage import Coverage
from qvlfp8.environments import (
    Environment,
    LockPolicy,
    Locks,
    QuantizeEnvironment,
    ServeEnvironment,
)
from qvlfp8.known_findings import KNOWN
from qvlfp8.recipe import Recipe, Sentence, read_recipes
from qvlfp8.resources import STAGES, ResourceRow
from qvlfp8.scoring import Bounds
from qvlfp8.untrusted import collection_paused
from qvlfp8.yamlfile import Document, Location, Strict

Share = Annotated[float, Field(ge=0, le=1)]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Exam(Strict):
    """The pictures and questions that trained models are asked: a function of these two numbers."""

    seed: int = Field(default=1, ge=0)
    per_task: int = Field(default=24, ge=1, le=1000)


class BoundsRow(Strict):
    """How far checkpoints of some recipes may be from BF16; see :class:`qvlfp8.scoring.Bounds`."""

    recipes: Globs
    text_drop: Share | None = None
    image_drop: Share | None = None
    mean_kl: float | None = Field(default=None, gt=0)
    p99_kl: float | None = Field(default=None, gt=0)
    top1_agreement: Share | None = None
    reason: Sentence


class RunnerRow(Strict):
    """The runners for the images of some serve environments; the last row that names one counts."""

    serve: Globs
    labels: tuple[Label, ...] = Field(min_length=1)
    """A job goes to a runner that has all of them."""
    minutes: int = Field(default=360, ge=1, le=7200)
    """After which a job is ended: five days is the most that GitHub lets a self-hosted runner have."""


class MatrixFile(Strict):
    """The file as it stands."""

    locks: Locks
    models: tuple[Model, ...] = Field(min_length=1)
    quantize: tuple[QuantizeEnvironment, ...] = Field(min_length=1)
    serve: tuple[ServeEnvironment, ...] = Field(min_length=1)
    variants: tuple[Variant, ...] = (PLAIN,)
    cells: tuple[CellRow, ...] = Field(min_length=1)
    exam: Exam = Exam()
    bounds: tuple[BoundsRow, ...] = ()
    runners: tuple[RunnerRow, ...] = ()
    resources: tuple[ResourceRow, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()
    expectations: tuple[Expectation, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """matrix.yaml with its recipes, resolved: every cell once, in the file's order."""

    path: Path
    file: MatrixFile
    recipes: dict[str, Recipe]
    cells: tuple[Cell, ...]
    excluded: tuple[tuple[Cell, str], ...]

    @property
    def environments(self) -> tuple[Environment, ...]:
        """All environments, quantize first."""
        return (*self.file.quantize, *self.file.serve)

    def policy(self, environment: Environment) -> LockPolicy:
        """What that kind of environment asks for beside its own line."""
        locks = self.file.locks
        return locks.quantize if environment.kind == "quantize" else locks.serve

    def bounds(self, cell: Cell) -> Bounds:
        """How far the cell may be from BF16."""
        return self.bounds_of(cell.recipe.id)

    def bounds_of(self, recipe: str) -> Bounds:
        """How far a recipe's checkpoints may be from BF16: each field as the last row says that names it."""
        told: dict[str, Any] = {}
        for row in self.file.bounds:
            if any(fnmatchcase(recipe, glob) for glob in globs(row.recipes)):
                told |= row.model_dump(exclude={"recipes", "reason"}, exclude_none=True)
        return Bounds(**told)

    @cached_property
    def coverage(self) -> Coverage:
        """Which expectations cover which cells."""
        return Coverage(self.file.expectations)

    def expected(self, cell: Cell, stage: Stage) -> tuple[Expectation, ...]:
        """What the cell is expected to show at that stage; nothing means pass."""
        return tuple(expectation for _, expectation in self.coverage.of(cell).get(stage, ()))

    def expects_unresolved(self, environment: Environment) -> bool:
        """Whether that environment is expected not to resolve: none of its cells is expected to."""
        cells = [cell for cell in self.cells if environment in (cell.quantize, cell.serve)]
        return bool(cells) and all(self.expected(cell, "resolve") for cell in cells)


def read_matrix(path: Path) -> Matrix:
    """Read matrix.yaml and the ``recipes/`` folder beside it.

    Raises:
        FileFormatError: unknown keys, duplicate ids, a cell, exclusion or expectation that names
            nothing, two expectations for one stage, or a label without a plain environment.
    """
    return parse_matrix(Document.read(path))


def parse_matrix(document: Document) -> Matrix:
    """The matrix of a file that was read, or of a text that could become one; as :func:`read_matrix`."""
    path = document.path
    file = document.parse(MatrixFile)
    recipes = read_recipes(path.parent / "recipes")
    for field in ("models", "quantize", "serve", "variants"):
        _no_duplicates(document, field, [item.id for item in getattr(file, field)])
    _check_labels(document, file)
    cells, excluded = _expand(document, file, recipes)
    matrix = Matrix(path=path, file=file, recipes=recipes, cells=cells, excluded=excluded)
    _check_expectations(document, matrix)
    _check_bounds(document, matrix)
    _check_runners(document, file)
    _check_resources(document, matrix)
    return matrix


def _no_duplicates(document: Document, field: str, ids: Sequence[str]) -> None:
    for index, identifier in enumerate(ids):
        if identifier in ids[:index]:
            raise document.error(
                (field, index), f"{identifier} stands twice", mend="remove one of the two lines"
            )


def _check_labels(document: Document, file: MatrixFile) -> None:
    """An environment on trial needs the plain one of its version to be told from."""
    both: tuple[tuple[str, tuple[Environment, ...]], ...] = (
        ("quantize", file.quantize),
        ("serve", file.serve),
    )
    for field, environments in both:
        plain = {environment.id for environment in environments if environment.label is None}
        for index, environment in enumerate(environments):
            if environment.id.removesuffix(environment.suffix) not in plain:
                raise document.error(
                    (field, index, "label"),
                    f"there is no plain environment of {' '.join(environment.package)} beside it",
                    mend="add its line without a label, or remove the label",
                )


def _expand(
    document: Document, file: MatrixFile, recipes: dict[str, Recipe]
) -> tuple[tuple[Cell, ...], tuple[tuple[Cell, str], ...]]:
    cells: dict[str, Cell] = {}
    with collection_paused():
        for index, row in enumerate(file.cells):
            for cell in _cells_of(document, file, recipes, row, ("cells", index)):
                cells.setdefault(cell.id, cell)
        gc.freeze()  # as a plan's steps: see there
    reasons: dict[str, str] = {}
    for index, exclusion in enumerate(file.exclusions):
        hit = [name for name in cells if fnmatchcase(name, exclusion.cells)]
        if not hit:
            raise _names_nothing(document, ("exclusions", index, "cells"), exclusion.cells, cells)
        reasons.update(dict.fromkeys(hit, exclusion.reason))
    kept = tuple(cell for name, cell in cells.items() if name not in reasons)
    return kept, tuple((cells[name], reason) for name, reason in reasons.items())


def _cells_of(
    document: Document,
    file: MatrixFile,
    recipes: dict[str, Recipe],
    row: CellRow,
    where: Location,
) -> Iterator[Cell]:
    def named(field: str, known: Iterable[str]) -> set[str]:
        ids = tuple(known)
        found: set[str] = set()
        for glob in globs(getattr(row, field)):
            hit = {name for name in ids if fnmatchcase(name, glob)}
            if not hit:
                raise _names_nothing(document, (*where, field), glob, ids)
            found |= hit
        return found

    recipe_ids = named("recipes", recipes)
    quantize_ids = named("quantize", (e.id for e in file.quantize))
    model_ids = named("models", (m.id for m in file.models))
    serve_ids = named("serve", (e.id for e in file.serve))
    variant_ids = named("variants", (v.id for v in file.variants))
    made = [
        (recipe, environment)
        for recipe, environment in product(recipes.values(), file.quantize)
        if recipe.id in recipe_ids
        and environment.id in quantize_ids
        and recipe.producer == environment.producer
    ]
    if not made:
        raise document.error(
            (*where, "quantize"),
            "none of these environments has the producer (`exporter`) of one of the row's recipes",
            mend="name environments of that producer, or other recipes",
        )
    for (recipe, quantize), model, serve, variant in product(
        made,
        (m for m in file.models if m.id in model_ids),
        (e for e in file.serve if e.id in serve_ids),
        (v for v in file.variants if v.id in variant_ids),
    ):
        yield Cell(
            recipe=recipe,
            quantize=quantize,
            model=model,
            serve=serve,
            variant=variant,
            by_default=row.default,
        )


def _names_nothing(document: Document, where: Location, glob: str, known: Iterable[str]) -> Exception:
    names = list(known)
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return document.error(where, f"{glob!r} names nothing", mend=f"name one of {shown}")


def _check_expectations(document: Document, matrix: Matrix) -> None:
    covered: set[tuple[int, Stage]] = set()
    twice: dict[tuple[int, Stage], str] = {}
    for cell in matrix.cells:
        for stage, covering in matrix.coverage.of(cell).items():
            named: set[str] = set()
            for index, expectation in covering:
                covered.add((index, stage))
                if (finding := expectation.shows[stage]) in named:
                    twice.setdefault((index, stage), cell.id)
                named.add(finding)
    for index, expectation in enumerate(matrix.file.expectations):
        where = ("expectations", index)
        for stage, finding in expectation.shows.items():
            if finding not in KNOWN:
                raise document.error((*where, "shows", stage), "no such finding", mend=_closest(finding))
            if expectation.vllm is not None and stage in OF_CHECKPOINT:
                raise document.error((*where, "vllm"), f"{stage} knows no vLLM", mend="remove the key")
            if (index, stage) not in covered:
                raise document.error(
                    (*where, "shows", stage),
                    "covers no cell",
                    mend="correct `cells`, `vllm`, `modelopt` or `transformers`, or remove the entry",
                )
            if (index, stage) in twice:
                raise document.error(
                    (*where, "shows", stage),
                    f"{finding} is expected of {twice[index, stage]} at {stage} already",
                    mend="narrow one of the two",
                )


def _check_bounds(document: Document, matrix: Matrix) -> None:
    for index, row in enumerate(matrix.file.bounds):
        for glob in globs(row.recipes):
            if not any(fnmatchcase(name, glob) for name in matrix.recipes):
                raise _names_nothing(document, ("bounds", index, "recipes"), glob, matrix.recipes)


def _check_runners(document: Document, file: MatrixFile) -> None:
    known = [environment.id for environment in file.serve]
    for index, row in enumerate(file.runners):
        for glob in globs(row.serve):
            if not any(fnmatchcase(name, glob) for name in known):
                raise _names_nothing(document, ("runners", index, "serve"), glob, known)


def _check_resources(document: Document, matrix: Matrix) -> None:
    if not matrix.file.resources:
        return
    subjects = dict.fromkeys(
        name for cell in matrix.cells for name in (cell.id, cell.checkpoint, cell.baseline)
    )
    fields: dict[str, Iterable[str]] = {"stages": STAGES, "subjects": sorted(subjects)}
    for index, row in enumerate(matrix.file.resources):
        for field, known in fields.items():
            for glob in globs(getattr(row, field)):
                if not any(fnmatchcase(name, glob) for name in known):
                    raise _names_nothing(document, ("resources", index, field), glob, known)


def _closest(finding: str) -> str:
    close = difflib.get_close_matches(finding, KNOWN, n=1)
    return f"did you mean {close[0]!r}?" if close else f"name one of {', '.join(sorted(KNOWN))}"
