"""Steps with input digests, in order, and which of them answer a cell. Pure; :mod:`qvlfp8.planning` makes it.

A step's digest covers everything that can change what it measures: the worker's source, the lock of
the environment it runs in, its parameters, and the digests of the steps it needs. Steps that several
cells share (a model, a checkpoint, an environment) stand in the plan once.

What is executed has a second key, under which a record that was made elsewhere and committed can stand for
it: what was asked (model, recipe, locks, exam, options), without our own source. A GPU is not at hand, nor is
an hour, wherever a comment in a worker changes; what the record says of the checkpoint's bytes stands in it.

``asked`` names all of it in words, our own source included, so that a record that is found by neither key can
say which of its inputs has changed since.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from qvlfp8.cells import OF_CHECKPOINT, Cell, Stage
from qvlfp8.environments import Device
from qvlfp8.results import RecordedStage

LockKey = tuple[str, Device]
"""Environment id, and the device that the lock is for."""

NOTHING: Mapping[Any, Any] = MappingProxyType({})

OWN_SOURCE = (" worker", "judgement", "reference source")
"""How the names of those inputs in ``Step.asked`` end that are our own source."""

SHORT = 16
"""Digits of a digest that only tells whether something has changed."""


class Words(Protocol):
    """What steps of one kind say of themselves; worked out when somebody asks: planning itself does not."""

    def asked(self, step: Step) -> Mapping[str, str]:
        """As :attr:`Step.asked`."""
        ...

    def evidence(self, step: Step) -> tuple[str, ...]:
        """As :attr:`Step.evidence`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Stated:
    """Words that are there already, of one step."""

    of: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    keys: tuple[str, ...] = ()

    def asked(self, _step: Step) -> Mapping[str, str]:
        """As :attr:`Step.asked`."""
        return self.of

    def evidence(self, _step: Step) -> tuple[str, ...]:
        """As :attr:`Step.evidence`."""
        return self.keys


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is done, in which environment and with which parameters: many steps have it in common."""

    stage: RecordedStage
    environment: str | None
    params: Mapping[str, Any]
    inputs: Mapping[str, Any]
    device: Device = "cpu"
    """What the step needs to run on."""
    standing: tuple[str, ...] = ()
    """Locks of a serve environment under which a committed record can stand, its own included, as short."""
    unresolved: str | None = None
    """Of a build: why its environment does not resolve, so that it can never be done."""
    words: Words = Stated()


class Step(NamedTuple):
    """One thing to do once: some work on a subject. (A tuple, as a plan has hundreds of thousands.)"""

    work: Work
    subject: str
    digest: str
    needs: tuple[str, ...] = ()
    """Digests of the steps whose output it reads."""
    made: object = None
    """What its words have to know of the checkpoint."""

    @property
    def evidence(self) -> tuple[str, ...]:
        """Keys of the committed records that can stand for this step: what was asked, without our own source.

        The first is that of the step's own lock; the others differ in the lock alone.
        """
        return self.work.words.evidence(self)

    @property
    def asked(self) -> Mapping[str, str]:
        """What its digest covers, in words: name of an input -> the first 16 digits of its digest."""
        return self.work.words.asked(self)

    @property
    def stage(self) -> RecordedStage:
        """The stage by whose name its record is kept."""
        return self.work.stage

    @property
    def environment(self) -> str | None:
        """The environment it runs in; None if it runs in our own."""
        return self.work.environment

    @property
    def params(self) -> Mapping[str, Any]:
        """What its worker is told."""
        return self.work.params

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Digests of what it is done with: worker, lock and the like, by name."""
        return self.work.inputs

    @property
    def device(self) -> Device:
        """What it needs to run on."""
        return self.work.device

    @property
    def standing(self) -> tuple[str, ...]:
        """As :attr:`Work.standing`."""
        return self.work.standing

    @property
    def unresolved(self) -> str | None:
        """As :attr:`Work.unresolved`."""
        return self.work.unresolved


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Steps in an order in which each comes after what it needs, and the steps of each cell."""

    cells: tuple[Cell, ...]
    steps: Mapping[str, Step]
    stages: Mapping[str, Mapping[Stage, str]]
    """Cell id -> stage -> digest of the step that answers it."""
    builds: Mapping[str, tuple[str, ...]]
    """Cell id -> digests of the builds of its environments."""

    def step(self, cell: Cell, stage: Stage) -> Step:
        """The step that answers a cell's stage."""
        return self.steps[self.stages[cell.id][stage]]

    def baseline(self, cell: Cell) -> Step:
        """The run of the unquantized model that the cell's own run is compared with."""
        needs = (self.steps[need] for need in self.step(cell, "load").needs)
        return next(need for need in needs if need.stage == "generate")

    def unresolved(self, cell: Cell) -> tuple[Step, ...]:
        """The builds of a cell whose environments do not resolve."""
        builds = (self.steps[build] for build in self.builds[cell.id])
        return tuple(build for build in builds if build.unresolved)

    def part(self, cells: Iterable[Cell]) -> Plan:
        """The plan of some of its cells alone."""
        chosen = tuple(cells)
        wanted: dict[str, None] = {}
        for cell in chosen:
            wanted |= self.digests_of(cell)
        steps = {digest: step for digest, step in self.steps.items() if digest in wanted}
        return replace(self, cells=chosen, steps=steps)

    def of_cell(self, cell: Cell) -> tuple[Step, ...]:
        """All steps of a cell in order, builds and model included."""
        return tuple([self.steps[step] for step in self.digests_of(cell)])

    def digests_of(self, cell: Cell) -> Mapping[str, None]:
        """The digests of :meth:`of_cell`, as the keys of a mapping."""
        stages, steps = self.stages[cell.id], self.steps
        # The checkpoint's own are the same for many cells; the others are the cell's.
        wanted = {**self._with_needs(stages["quantize"]), stages["inspect"]: None}
        for digest in stages.values():
            if digest not in wanted:
                for need in steps[digest].needs:
                    if need not in wanted:
                        wanted |= self._with_needs(need)
                wanted[digest] = None
        return wanted

    def _with_needs(self, step: str) -> dict[str, None]:
        """A step and all that it needs, in order; many cells share what their steps need."""
        known = self._chains.get(step)
        if known is None:
            known = {}
            for need in self.steps[step].needs:
                known |= self._with_needs(need)
            known[step] = None
            self._chains[step] = known
        return known

    @cached_property
    def _chains(self) -> dict[str, dict[str, None]]:
        return {}

    def ancestors(self, step: Step) -> tuple[Step, ...]:
        """All that a step needs, each once, in an order in which each comes after what it needs itself."""
        found: dict[str, None] = {}
        for need in step.needs:
            found |= self._with_needs(need)
        return tuple([self.steps[one] for one in found])


def repeat_command(step: Step, engine: str = "venv") -> str:
    """The one command that executes a step again."""
    return repeat_of(step.stage, step.subject, engine)


def repeat_of(stage: RecordedStage, subject: str, engine: str = "venv") -> str:
    """The one command that executes a stage of a subject again."""
    inside = " --engine docker" if engine == "docker" else ""
    if stage in {"build", "model"}:
        return f"nox -s matrix --{inside} --only '{subject}'"
    subject = f"{subject}/*" if stage in OF_CHECKPOINT else subject
    if subject.startswith("bf16/"):
        # No cell is the unquantized model's own: it is run again with those that are compared with it.
        subject = subject.replace("bf16/", "*/", 1)
    return f"nox -s matrix --{inside} --again --only '{subject}'"
