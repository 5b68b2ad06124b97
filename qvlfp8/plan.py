"""Cells -> ordered steps with input digests. Pure: the same files always give the same plan.

A step's digest covers everything that can change what it measures: the worker's source, the lock of
the environment it runs in, its parameters, and the digests of the steps it needs. Steps that several
cells share (a model, a checkpoint, an environment) stand in the plan once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qvlfp8 import digest, source
from qvlfp8.matrix import STAGES, Cell, Environment, Model, Stage
from qvlfp8.results import RecordedStage


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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Steps in an order in which each comes after what it needs, and the steps of each cell."""

    cells: tuple[Cell, ...]
    steps: Mapping[str, Step]
    stages: Mapping[str, Mapping[Stage, str]]
    """Cell id -> stage -> digest of the step that answers it."""

    def step(self, cell: Cell, stage: Stage) -> Step:
        """The step that answers a cell's stage."""
        return self.steps[self.stages[cell.id][stage]]

    def of_cell(self, cell: Cell) -> tuple[Step, ...]:
        """All steps of a cell in order, builds and model included."""
        wanted: dict[str, Step] = {}

        def add(step: Step) -> None:
            for need in step.needs:
                add(self.steps[need])
            wanted.setdefault(step.digest, step)

        for stage in STAGES:
            add(self.step(cell, stage))
        return tuple(wanted.values())


class _Planner:
    def __init__(self, locks: Mapping[str, str]) -> None:
        self._locks = locks
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
    ) -> Step:
        params = params or {}
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
        )
        return self.steps.setdefault(step.digest, step)

    def build(self, environment: Environment) -> Step:
        lock = self._locks[environment.id]
        inputs = {"environment": environment.id, "lock": lock}
        return self._add("build", environment.id, inputs=inputs, environment=environment)

    def model(self, model: Model) -> Step:
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
        recipe = cell.recipe.model_dump(mode="json", exclude={"description", "link"})
        return self._add(
            "quantize",
            cell.checkpoint,
            inputs={"worker": source.of_worker("quantize"), "judgement": source.of_judgement()},
            needs=(self.build(cell.quantize), self.model(cell.model)),
            environment=cell.quantize,
            params={"recipe": recipe, "seed": cell.recipe.calibration.seed},
        )

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
        )

    def preflight(self, cell: Cell) -> Step:
        return self._add(
            "preflight",
            cell.id,
            inputs={
                "worker": source.of_worker("preflight"),
                "judgement": source.of_judgement(),
            },
            needs=(self.build(cell.serve), self.quantize(cell)),
            environment=cell.serve,
        )


def make_plan(cells: Iterable[Cell], locks: Mapping[str, str]) -> Plan:
    """Plan the given cells.

    Args:
        cells: what is wanted, in the order in which it is shown.
        locks: environment id -> digest of its lock, for every environment that the cells name.
    """
    chosen = tuple(cells)
    planner = _Planner(locks)
    stages: dict[str, dict[Stage, str]] = {}
    for cell in chosen:
        stages[cell.id] = {
            "quantize": planner.quantize(cell).digest,
            "inspect": planner.inspect(cell).digest,
            "preflight": planner.preflight(cell).digest,
        }
    return Plan(cells=chosen, steps=planner.steps, stages=stages)
