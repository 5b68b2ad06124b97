"""Cells: recipe x quantize environment x model x serve environment x variant; and what is expected."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate
from functools import cache
from typing import Annotated, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from qvlfp8.environments import Device, QuantizeEnvironment, ServeEnvironment
from qvlfp8.lazy import lazy
from qvlfp8.recipe import Recipe, Sentence
from qvlfp8.yamlfile import Strict

Stage = Literal["resolve", "quantize", "inspect", "preflight", "load", "text", "image", "fidelity", "speed"]
STAGES: tuple[Stage, ...] = (
    "resolve", "quantize", "inspect", "preflight", "load", "text", "image", "fidelity", "speed",
)  # fmt: skip
"""In order; between resolving and quantizing, environments are built."""

OF_CHECKPOINT: tuple[Stage, ...] = ("quantize", "inspect")
"""The stages that are the checkpoint's alone, whatever serves it."""

GENERATED: tuple[Stage, ...] = ("load", "text", "image", "fidelity", "speed")
"""The stages that one run of vLLM answers."""

BLOCKED_BY: Mapping[Stage, tuple[Stage, ...]] = {
    "resolve": (),
    "quantize": ("resolve",),
    "inspect": ("resolve", "quantize"),
    "preflight": ("resolve", "quantize"),
    "load": ("resolve", "quantize"),
    "text": ("resolve", "quantize", "load"),
    "image": ("resolve", "quantize", "load"),
    # Without answers there is nothing to compare or to time.
    "fidelity": ("resolve", "quantize", "load", "text"),
    "speed": ("resolve", "quantize", "load", "text"),
}
"""Which stages, when they fail, keep a stage from being executed. Neither inspect nor preflight does:
what they foretell is compared with what a run shows."""

Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


def _is_specifier(text: str) -> str:
    try:
        return str(SpecifierSet(text))
    except InvalidSpecifier:
        raise ValueError(f"{text!r} is not a version specifier such as '>=0.10,<0.13'") from None


Specifier = Annotated[str, AfterValidator(_is_specifier)]
Globs = tuple[str, ...] | str
"""One glob over ids, or several."""


class Model(Strict):
    """A model to quantize: a reference model of ours.

    ``random`` is made from a seed, for layout tests: it can be loaded, and has nothing to say.
    ``trained`` speaks and sees, so that what it answers can be scored.
    """

    id: Identifier
    reference: Literal["random", "trained"]
    seed: int = Field(default=0, ge=0)
    tie_word_embeddings: bool = False
    default: bool = False


class Variant(Strict):
    """How vLLM is run. ``door``: through its Python class, or through its server and the OpenAI client."""

    id: Identifier
    enforce_eager: bool = True
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    door: Literal["engine", "server"] = "engine"

    @property
    def options(self) -> dict[str, str | bool]:
        """As the generate worker takes them."""
        return {
            "enforce_eager": self.enforce_eager,
            "kv_cache_dtype": self.kv_cache_dtype,
            "door": self.door,
        }


PLAIN = Variant(id="eager")
"""What a cell is run as if its row does not say otherwise."""


class CellRow(Strict):
    """Cells that belong together: each combination of what is named."""

    recipes: Globs
    quantize: Globs
    models: Globs
    serve: Globs
    variants: Globs = PLAIN.id
    default: bool = True
    """Whether its cells may belong to the default slice: those of default environments and models do."""


class Exclusion(Strict):
    """Cells that a row names and that are left out all the same, with the reason."""

    cells: str
    reason: Sentence


class Expectation(Strict):
    """One cause that some cells show, with the reason; checked in both directions.

    A cell that several expectations cover is expected to show all of their findings, and no other.
    """

    cells: Globs
    without: Globs = ()
    """Cells among these that it does not cover."""
    shows: Annotated[dict[Stage, Identifier], Field(min_length=1)]
    """The finding by which the cause shows, of each stage where it does."""
    vllm: Specifier | None = None
    modelopt: Specifier | None = None
    transformers: Specifier | None = None
    """The transformers that the checkpoint was made with."""
    reason: Sentence
    link: Annotated[str, StringConstraints(pattern=r"^https://\S+$")] | None = None
    flaky: bool = False
    """Whether the finding may show or not; such a one needs a link to the issue that says why."""

    @model_validator(mode="after")
    def _flaky_has_an_issue(self) -> Expectation:
        if self.flaky and self.link is None:
            raise ValueError("what is flaky needs a `link` to the issue that says why")
        return self

    def covers(self, cell: Cell, stage: Stage) -> bool:
        """Whether this speaks of that cell's stage."""
        alone = stage in OF_CHECKPOINT
        return (
            stage in self.shows
            and (alone or admits(self.vllm, cell.serve.vllm))
            and admits(self.modelopt, cell.quantize.modelopt)
            and admits(self.transformers, cell.quantize.transformers)
            and _any_of(globs(self.cells)).match(cell.subject(stage)) is not None
            and not (self.without and _any_of(globs(self.without)).match(cell.subject(stage)))
            and stage in cell.stages
        )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Recipe x quantize environment x model x serve environment x variant."""

    recipe: Recipe
    quantize: QuantizeEnvironment
    model: Model
    serve: ServeEnvironment
    variant: Variant = PLAIN
    by_default: bool = True
    """Whether its row lets it belong to the default slice."""

    @lazy
    def checkpoint(self) -> str:
        """``RECIPE/QUANTIZE/MODEL``: the id of the checkpoint that the cell serves."""
        return f"{self.recipe.id}/{self.quantize.id}/{self.model.id}"

    @lazy
    def server(self) -> str:
        """``SERVE``, or ``SERVE+VARIANT``."""
        return self.serve.id + ("" if self.variant.id == PLAIN.id else f"+{self.variant.id}")

    @lazy
    def id(self) -> str:
        """``RECIPE/QUANTIZE/MODEL/SERVE``, with ``+VARIANT`` unless it is the plain one."""
        return f"{self.checkpoint}/{self.server}"

    @property
    def baseline(self) -> str:
        """``bf16/MODEL/SERVE``: the id of the unquantized model's run that this cell is compared with."""
        return f"bf16/{self.model.id}/{self.server}"

    @lazy
    def stages(self) -> tuple[Stage, ...]:
        """Its stages. What is run on any machine need not be foretold: the CPU build has no preflight.

        Packages on trial are asked by the loader alone: where nothing loads there is nothing to compare.
        """
        return _stages(self.model.reference, self.serve.device, on_trial=self.serve.label is not None)

    def subject(self, stage: Stage) -> str:
        """What the stage is about: the checkpoint alone, or the cell."""
        return self.checkpoint if stage in OF_CHECKPOINT else self.id

    @property
    def default(self) -> bool:
        """Whether the cell belongs to the slice that runs when nothing is asked for."""
        plain = self.by_default and self.variant.id == PLAIN.id
        return plain and self.quantize.default and self.model.default and self.serve.default


@cache
def _stages(reference: Literal["random", "trained"], device: Device, *, on_trial: bool) -> tuple[Stage, ...]:
    """A cell's stages: those of its model that its serve environment is asked for."""
    without: set[Stage] = set() if device == "cuda" or reference == "random" else {"preflight"}
    without |= set(GENERATED) if on_trial or reference == "random" else set()
    return tuple(stage for stage in STAGES if stage not in without)


@cache
def admits(specifier: str | None, version: str | None) -> bool:
    """Whether the version lies in the specifier; None admits all, and no version lies in one."""
    if specifier is None or version is None:
        return specifier is None
    return SpecifierSet(specifier).contains(version, prereleases=True)


def globs(text: Globs) -> tuple[str, ...]:
    """As a tuple, however they were written."""
    return (text,) if isinstance(text, str) else text


@cache
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """One regular expression for several globs: expectations are asked of every cell."""
    return re.compile("|".join(translate(pattern) for pattern in patterns))


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
