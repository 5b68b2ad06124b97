"""Cells -> ordered steps with input digests. Pure: the same files always give the same plan.

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
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from qvlfp8 import digest, source
from qvlfp8.cells import GENERATED, OF_CHECKPOINT, Cell, Model, Stage
from qvlfp8.environments import Device, Environment
from qvlfp8.results import RecordedStage

LockKey = tuple[str, Device]
"""Environment id, and the device that the lock is for."""

NOTHING: Mapping[Any, Any] = MappingProxyType({})

OWN_SOURCE = (" worker", "judgement", "reference source")
"""How the names of those inputs in ``Step.asked`` end that are our own source."""
SHORT = 16
"""Digits of a digest that only tells whether something has changed."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing to do once. ``needs`` are the digests of the steps whose output it reads."""

    stage: RecordedStage
    subject: str
    digest: str
    environment: str | None
    params: Mapping[str, Any]
    inputs: Mapping[str, Any]
    needs: tuple[str, ...]
    device: Device = "cpu"
    """What the step needs to run on."""
    evidence: tuple[str, ...] = ()
    """Keys of the committed records that can stand for this step: what was asked, without our own source.
    The first is that of the step's own lock; the others differ in the lock alone."""
    asked: Mapping[str, str] = field(default_factory=dict)
    """What its digest covers, in words: name of an input -> the first 16 digits of its digest."""
    standing: tuple[str, ...] = ()
    """Locks of a serve environment under which a committed record can stand, its own included, as short."""
    unresolved: str | None = None
    """Of a build: why its environment does not resolve, so that it can never be done."""


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

    def of_cell(self, cell: Cell) -> tuple[Step, ...]:
        """All steps of a cell in order, builds and model included."""
        wanted: dict[str, Step] = {}

        def add(step: Step) -> None:
            for need in step.needs:
                add(self.steps[need])
            wanted.setdefault(step.digest, step)

        for digest_of_stage in self.stages[cell.id].values():
            add(self.steps[digest_of_stage])
        return tuple(wanted.values())


class _Planner:
    def __init__(
        self,
        locks: Mapping[LockKey, str],
        exam: Mapping[str, int],
        unresolved: Mapping[LockKey, str],
        standing: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._locks = locks
        self._unresolved = unresolved
        self._standing = standing
        self._exam = exam
        self.steps: dict[str, Step] = {}
        self._quantized: dict[str, Step] = {}

    def _add(
        self,
        stage: RecordedStage,
        subject: str,
        *,
        inputs: Mapping[str, Any],
        needs: tuple[Step, ...] = (),
        environment: Environment | None = None,
        params: Mapping[str, Any] | None = None,
        device: Device = "cpu",
        asked: Mapping[str, str | None] = NOTHING,
        evidence: tuple[str, ...] = (),
        standing: tuple[str, ...] = (),
        unresolved: str | None = None,
    ) -> Step:
        params = params or {}
        told = {name: value for name, value in asked.items() if value is not None}
        if told and not evidence:
            evidence = (_key(stage, subject, told),)
        key = {
            "stage": stage,
            "inputs": dict(inputs),
            "params": dict(params),
            "needs": sorted(need.digest for need in needs),
        }
        step = Step(
            stage=stage,
            subject=subject,
            digest=digest.of_json(key),
            environment=environment.id if environment else None,
            params=params,
            inputs=inputs,
            needs=tuple(need.digest for need in needs),
            device=device,
            evidence=evidence,
            asked={name: value[:SHORT] for name, value in told.items()},
            standing=standing,
            unresolved=unresolved,
        )
        return self.steps.setdefault(step.digest, step)

    def build(self, environment: Environment, device: Device = "cpu") -> Step:
        lock = self._locks.get((environment.id, device))
        inputs = {"environment": environment.id, "lock": lock}
        name = environment.id if device == "cpu" else f"{environment.id}.{device}"
        return self._add(
            "build", name, inputs=inputs, environment=environment, device=device,
            unresolved=self._unresolved.get((environment.id, device)),
        )  # fmt: skip

    def model(self, model: Model) -> Step:
        if model.reference == "trained":
            inputs = {"source": source.of_modules("reference"), "weights": source.of_trained_weights()}
            return self._add("model", model.id, inputs=inputs, params={"tied": model.tie_word_embeddings})
        return self._add(
            "model",
            model.id,
            inputs={"source": source.of_modules("reference")},
            params={"seed": model.seed, "tied": model.tie_word_embeddings},
        )

    def quantize(self, cell: Cell) -> Step:
        known = self._quantized.get(cell.checkpoint)
        return known or self._quantized.setdefault(cell.checkpoint, self._quantize(cell))

    def _quantize(self, cell: Cell) -> Step:
        return self._add(
            "quantize",
            cell.checkpoint,
            inputs={"worker": source.of_worker("quantize"), "judgement": source.of_judgement()},
            needs=(self.build(cell.quantize), self.model(cell.model)),
            environment=cell.quantize,
            params={"recipe": cell.recipe.meaning, "seed": cell.recipe.calibration.seed},
            asked={**self._checkpoint(cell), "judgement": source.of_judgement()},
        )

    def _checkpoint(self, cell: Cell) -> dict[str, str | None]:
        """What a checkpoint is made of, by name."""
        return {
            "recipe": digest.of_json(cell.recipe.meaning),
            f"lock of {cell.quantize.id}": self._locks[cell.quantize.id, "cpu"],
            "quantize worker": source.of_worker("quantize"),
            **_model(cell.model),
        }

    def inspect(self, cell: Cell) -> Step:
        quantize = self.quantize(cell)
        return self._add(
            "inspect",
            cell.checkpoint,
            inputs={
                "worker": source.of_worker("inspect"),
                "judgement": source.of_judgement(),
            },
            needs=(quantize,),
            params={"recipe": quantize.params["recipe"]},
            asked={**quantize.asked, "inspect worker": source.of_worker("inspect")},
        )

    def preflight(self, cell: Cell) -> Step:
        quantize = self.quantize(cell)
        return self._add(
            "preflight",
            f"{cell.checkpoint}/{cell.serve.id}",
            inputs={
                "worker": source.of_worker("preflight"),
                "judgement": source.of_judgement(),
            },
            needs=(self.build(cell.serve), quantize),
            environment=cell.serve,
            params={"on_trial": True} if cell.serve.label else {},
            asked={
                **quantize.asked,
                f"lock of {cell.serve.id}": self._locks[cell.serve.id, "cpu"],
                "preflight worker": source.of_worker("preflight"),
            },
        )

    def baseline(self, cell: Cell) -> Step:
        return self._generate(cell, cell.baseline, self.model(cell.model), recipe=None)

    def generate(self, cell: Cell) -> Step:
        recipe = self.quantize(cell).params["recipe"]
        return self._generate(cell, cell.id, self.quantize(cell), self.baseline(cell), recipe=recipe)

    def _generate(self, cell: Cell, subject: str, *needs: Step, recipe: Mapping[str, Any] | None) -> Step:
        device = cell.serve.device
        params = {"exam": dict(self._exam), "options": {"device": device, **cell.variant.options}}
        asked = {
            "subject": subject,
            "recipe": recipe,
            "quantize": self._locks[cell.quantize.id, "cpu"] if recipe else None,
            "model": {"weights": source.of_trained_weights(), "tied": cell.model.tie_word_embeddings},
            "params": params,
        }
        own = self._locks.get((cell.serve.id, device))
        locks = dict.fromkeys([own, *self._standing.get(cell.serve.id, ())])
        return self._add(
            "generate",
            subject,
            inputs={"worker": source.of_worker("generate")},
            needs=(self.build(cell.serve, device), *needs),
            environment=cell.serve,
            params=params,
            device=device,
            asked={
                **(self._checkpoint(cell) if recipe else _model(cell.model)),
                f"lock of {cell.serve.id}": own,
                "exam and options": digest.of_json(params),
                "generate worker": source.of_worker("generate"),
            },
            evidence=tuple(digest.of_json({**asked, "serve": lock}) for lock in locks),
            standing=tuple(lock[:SHORT] for lock in locks if lock),
        )


def _model(model: Model) -> dict[str, str | None]:
    """What a model is made of, by name; one of random weights is what our source makes of its seed."""
    own = source.of_modules("reference")
    made: dict[str, Any] = {"seed": model.seed, "source": own}
    if model.reference == "trained":
        made = {"weights": source.of_trained_weights()}
    return {"model": digest.of_json({**made, "tied": model.tie_word_embeddings}), "reference source": own}


def _key(stage: RecordedStage, subject: str, asked: Mapping[str, str]) -> str:
    """The key under which a committed record of a CPU step is found: all but our own source."""
    meant = {name: value for name, value in asked.items() if not name.endswith(OWN_SOURCE)}
    return digest.of_json({"stage": stage, "subject": subject, "asked": meant})


def make_plan(
    cells: Iterable[Cell],
    locks: Mapping[LockKey, str],
    exam: Mapping[str, int],
    *,
    unresolved: Mapping[LockKey, str] = NOTHING,
    standing: Mapping[str, tuple[str, ...]] = NOTHING,
) -> Plan:
    """Plan the given cells.

    Args:
        cells: what is wanted, in the order in which it is shown.
        locks: digest of each lock. The CPU lock of every environment that the cells name has to be
            there; without its CUDA lock a serve environment can only be asked without a GPU.
        exam: ``seed`` and ``per_task``, of what trained models are asked.
        unresolved: why environments do not resolve, of those that do not.
        standing: environment id -> digests of locks whose committed records stand for its own.
    """
    chosen = tuple(cells)
    planner = _Planner(locks, exam, unresolved, standing)
    stages: dict[str, dict[Stage, str]] = {}
    builds: dict[str, tuple[str, ...]] = {}
    for cell in chosen:
        steps: dict[Stage, Step] = {
            "quantize": planner.quantize(cell),
            "inspect": planner.inspect(cell),
        }
        if "preflight" in cell.stages:
            steps["preflight"] = planner.preflight(cell)
        if set(GENERATED) <= set(cell.stages):
            steps |= dict.fromkeys(GENERATED, planner.generate(cell))
        stages[cell.id] = {stage: step.digest for stage, step in steps.items()}
        builds[cell.id] = tuple(planner.build(one).digest for one in (cell.quantize, cell.serve))
    return Plan(cells=chosen, steps=planner.steps, stages=stages, builds=builds)


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
