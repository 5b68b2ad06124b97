"""matrix.yaml: models, environments, cells, exclusions and expectations, as validated frozen objects.

Nothing here knows how anything is run. Errors name the file, the line, the field and the mend.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, Field, StringConstraints

from qvlfp8.finding_kinds import KINDS
from qvlfp8.recipe import Recipe, Sentence, read_recipes
from qvlfp8.yamlfile import Document, Location, Strict

Stage = Literal["quantize", "inspect", "preflight"]
STAGES: tuple[Stage, ...] = ("quantize", "inspect", "preflight")
"""The stages that this version executes, in order; what comes before them builds environments."""

Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


def _is_version(text: str) -> str:
    try:
        return str(Version(text))
    except InvalidVersion:
        raise ValueError(f"{text!r} is not a version") from None


def _is_specifier(text: str) -> str:
    try:
        return str(SpecifierSet(text))
    except InvalidSpecifier:
        raise ValueError(f"{text!r} is not a version specifier such as '>=0.10,<0.13'") from None


PackageVersion = Annotated[str, AfterValidator(_is_version)]
Specifier = Annotated[str, AfterValidator(_is_specifier)]
Globs = tuple[str, ...] | str
"""One glob over ids, or several."""

TRANSFORMERS_BOUNDS: tuple[tuple[str, str, str, str], ...] = (
    ("modelopt", "<0.39", "<4.57", "its [hf] extra"),
    ("modelopt", ">=0.39,<0.44", "<5", "its [hf] extra"),
    ("modelopt", ">=0.46", ">=4.57,<5.15", "its [hf] extra"),
    ("vllm", "<0.12", "<5", "written for 4.x; its metadata has no ceiling, yet 5.x breaks it"),
    ("vllm", ">=0.12,<0.20", ">=4.56,<5", "its metadata"),
    (
        "vllm",
        ">=0.20,<0.24",
        ">=4.56,!=5.0.*,!=5.1.*,!=5.2.*,!=5.3.*,!=5.4.*,!=5.5.0",
        "its metadata",
    ),
    ("vllm", ">=0.24,<0.30", ">=5.5.3", "its metadata"),
    ("vllm", ">=0.30,<0.33", ">=5.10.4", "its metadata"),
    ("vllm", ">=0.33", ">=5.16.1,<5.21", "its metadata"),
)
"""(package, its versions, transformers versions it works with, source): the pairs that cannot be."""


class Model(Strict):
    """A model to quantize. ``random`` is the reference model made from a seed, for layout tests."""

    id: Identifier
    reference: Literal["random"]
    seed: int = Field(default=0, ge=0)
    tie_word_embeddings: bool = False
    default: bool = False


class _Environment(Strict):
    transformers: PackageVersion
    default: bool = False
    requires: tuple[str, ...] = ()
    override: tuple[str, ...] = ()


class QuantizeEnvironment(_Environment):
    """One locked set of packages that makes checkpoints: ModelOpt x transformers x torch."""

    modelopt: PackageVersion
    kind: Literal["quantize"] = Field(default="quantize", exclude=True)

    @property
    def id(self) -> str:
        """``modelopt-VERSION``."""
        return f"modelopt-{self.modelopt}"

    @property
    def package(self) -> tuple[str, str]:
        """The package that the environment is about, and its version."""
        return "modelopt", self.modelopt


class ServeEnvironment(_Environment):
    """One locked set of packages that serves checkpoints: vLLM x transformers x torch."""

    vllm: PackageVersion
    kind: Literal["serve"] = Field(default="serve", exclude=True)

    @property
    def id(self) -> str:
        """``vllm-VERSION``."""
        return f"vllm-{self.vllm}"

    @property
    def package(self) -> tuple[str, str]:
        """The package that the environment is about, and its version."""
        return "vllm", self.vllm


Environment = QuantizeEnvironment | ServeEnvironment


class LockPolicy(Strict):
    """What every environment of one kind asks for beside its own line."""

    requires: tuple[str, ...] = ()
    override: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class Locks(Strict):
    """How locks are resolved."""

    python: Annotated[str, StringConstraints(pattern=r"^3\.\d+$")]
    platform: str
    torch: str
    exclude_newer: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    quantize: LockPolicy
    serve: LockPolicy


class CellRow(Strict):
    """Cells that belong together: each named recipe x quantize environment x model x serve environment."""

    recipes: Globs
    quantize: Globs
    models: Globs
    serve: Globs


class Exclusion(Strict):
    """Cells that a row names and that are left out all the same, with the reason."""

    cells: str
    reason: Sentence


class Expectation(Strict):
    """One finding that some cells show at one stage, with the reason; checked in both directions.

    A cell that several expectations cover is expected to show all of their findings, and no other.
    """

    cells: Globs
    stage: Stage
    finding: Identifier
    vllm: Specifier | None = None
    modelopt: Specifier | None = None
    transformers: Specifier | None = None
    """The transformers that the checkpoint was made with."""
    reason: Sentence
    link: Annotated[str, StringConstraints(pattern=r"^https://\S+$")] | None = None

    def covers(self, cell: Cell, stage: Stage) -> bool:
        """Whether this speaks of that cell's stage; before preflight, stages are the checkpoint's alone."""
        name = cell.id if stage == "preflight" else cell.checkpoint
        return (
            self.stage == stage
            and (stage != "preflight" or _admits(self.vllm, cell.serve.vllm))
            and _admits(self.modelopt, cell.quantize.modelopt)
            and _admits(self.transformers, cell.quantize.transformers)
            and any(fnmatchcase(name, glob) for glob in _globs(self.cells))
        )


class MatrixFile(Strict):
    """The file as it stands."""

    locks: Locks
    models: tuple[Model, ...] = Field(min_length=1)
    quantize: tuple[QuantizeEnvironment, ...] = Field(min_length=1)
    serve: tuple[ServeEnvironment, ...] = Field(min_length=1)
    cells: tuple[CellRow, ...] = Field(min_length=1)
    exclusions: tuple[Exclusion, ...] = ()
    expectations: tuple[Expectation, ...] = ()


class Cell(Strict):
    """Recipe x quantize environment x model x serve environment."""

    recipe: Recipe
    quantize: QuantizeEnvironment
    model: Model
    serve: ServeEnvironment

    @cached_property
    def checkpoint(self) -> str:
        """``RECIPE/QUANTIZE/MODEL``: the id of the checkpoint that the cell serves."""
        return f"{self.recipe.id}/{self.quantize.id}/{self.model.id}"

    @cached_property
    def id(self) -> str:
        """``RECIPE/QUANTIZE/MODEL/SERVE``."""
        return f"{self.checkpoint}/{self.serve.id}"

    @property
    def default(self) -> bool:
        """Whether the cell belongs to the slice that runs when nothing is asked for."""
        return self.quantize.default and self.model.default and self.serve.default


class Matrix(Strict):
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

    def expected(self, cell: Cell, stage: Stage) -> tuple[Expectation, ...]:
        """What the cell is expected to show at that stage; nothing means pass."""
        return tuple(e for e in self.file.expectations if e.covers(cell, stage))


def read_matrix(path: Path) -> Matrix:
    """Read matrix.yaml and the ``recipes/`` folder beside it.

    Raises:
        FileFormatError: unknown keys, duplicate ids, a cell, exclusion or expectation that names
            nothing, two expectations for one stage, or a version pair that cannot be.
    """
    document = Document.read(path)
    file = document.parse(MatrixFile)
    recipes = read_recipes(path.parent / "recipes")
    for field in ("models", "quantize", "serve"):
        _no_duplicates(document, field, [item.id for item in getattr(file, field)])
    _check_pairs(document, file)
    cells, excluded = _expand(document, file, recipes)
    matrix = Matrix(path=path, file=file, recipes=recipes, cells=cells, excluded=excluded)
    _check_expectations(document, matrix)
    return matrix


@cache
def _admits(specifier: str | None, version: str) -> bool:
    return specifier is None or SpecifierSet(specifier).contains(version, prereleases=True)


def _globs(globs: Globs) -> tuple[str, ...]:
    return (globs,) if isinstance(globs, str) else globs


def _no_duplicates(document: Document, field: str, ids: Sequence[str]) -> None:
    for index, identifier in enumerate(ids):
        if identifier in ids[:index]:
            raise document.error(
                (field, index), f"{identifier} stands twice", mend="remove one of the two lines"
            )


def _check_pairs(document: Document, file: MatrixFile) -> None:
    both: tuple[tuple[str, tuple[Environment, ...]], ...] = (
        ("quantize", file.quantize),
        ("serve", file.serve),
    )
    for field, environments in both:
        for index, environment in enumerate(environments):
            package, version = environment.package
            for name, versions, bounds, source in TRANSFORMERS_BOUNDS:
                if name != package or not _admits(versions, version):
                    continue
                if not _admits(bounds, environment.transformers):
                    raise document.error(
                        (field, index, "transformers"),
                        f"{package} {version} cannot be with transformers "
                        f"{environment.transformers} ({source})",
                        mend=f"name a version in {bounds}",
                    )


def _expand(
    document: Document, file: MatrixFile, recipes: dict[str, Recipe]
) -> tuple[tuple[Cell, ...], tuple[tuple[Cell, str], ...]]:
    cells: dict[str, Cell] = {}
    for index, row in enumerate(file.cells):
        for cell in _cells_of(document, file, recipes, row, ("cells", index)):
            cells.setdefault(cell.id, cell)
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
        globs = getattr(row, field)
        found: set[str] = set()
        for glob in _globs(globs):
            hit = {name for name in ids if fnmatchcase(name, glob)}
            if not hit:
                raise _names_nothing(document, (*where, field), glob, ids)
            found |= hit
        return found

    recipe_ids = named("recipes", recipes)
    quantize_ids = named("quantize", (e.id for e in file.quantize))
    model_ids = named("models", (m.id for m in file.models))
    serve_ids = named("serve", (e.id for e in file.serve))
    for recipe in recipes.values():
        for quantize in file.quantize:
            for model in file.models:
                for serve in file.serve:
                    if (
                        recipe.id in recipe_ids
                        and quantize.id in quantize_ids
                        and model.id in model_ids
                        and serve.id in serve_ids
                    ):
                        yield Cell(recipe=recipe, quantize=quantize, model=model, serve=serve)


def _names_nothing(document: Document, where: Location, glob: str, known: Iterable[str]) -> Exception:
    names = list(known)
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return document.error(where, f"{glob!r} names nothing", mend=f"name one of {shown}")


def _check_expectations(document: Document, matrix: Matrix) -> None:
    owners: dict[tuple[str, str, str], int] = {}
    for index, expectation in enumerate(matrix.file.expectations):
        where = ("expectations", index)
        if expectation.finding not in KINDS and expectation.stage != "quantize":
            raise document.error((*where, "finding"), "no such finding", mend=_closest(expectation.finding))
        if expectation.vllm is not None and expectation.stage != "preflight":
            raise document.error(
                (*where, "vllm"), f"{expectation.stage} knows no vLLM", mend="remove the key"
            )
        covered = [c.id for c in matrix.cells if expectation.covers(c, expectation.stage)]
        if not covered:
            raise document.error(
                where,
                "covers no cell",
                mend="correct `cells`, `vllm`, `modelopt` or `transformers`, or remove the entry",
            )
        for cell in covered:
            if owners.setdefault((cell, expectation.stage, expectation.finding), index) != index:
                raise document.error(
                    where,
                    f"{expectation.finding} is expected of {cell} at {expectation.stage} already",
                    mend="narrow one of the two",
                )


def _closest(finding: str) -> str:
    close = difflib.get_close_matches(finding, KINDS, n=1)
    return f"did you mean {close[0]!r}?" if close else f"name one of {', '.join(sorted(KINDS))}"


def select(cells: Iterable[Cell], *, only: Sequence[str], everything: bool) -> tuple[Cell, ...]:
    """The cells to run: those whose id matches a glob of ``only``; else the default slice, or all."""

    def wanted(cell: Cell) -> bool:
        if only:
            return any(_matches(cell, glob) for glob in only)
        return everything or cell.default

    return tuple(cell for cell in cells if wanted(cell))


def _matches(cell: Cell, glob: str) -> bool:
    """A glob without a slash is sought in any part of the id, one with slashes in the whole."""
    return any(fnmatchcase(text, glob) for text in (cell.id, *cell.id.split("/")))
