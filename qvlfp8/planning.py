"""Cells -> a plan. Pure: the same files always give the same plan.

What many steps have in common is worked out, and written as JSON, once for all.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from qvlfp8 import digest, source
from qvlfp8.cells import GENERATED, PLAIN, Cell, Model, Stage, Variant
from qvlfp8.environments import Device, Environment, QuantizeEnvironment, ServeEnvironment
from qvlfp8.plan import NOTHING, SHORT, LockKey, Plan, Step, Work
from qvlfp8.recipe import Recipe
from qvlfp8.results import RecordedStage
from qvlfp8.untrusted import collection_paused
from qvlfp8.words import Made, OfCheckpoint, OfRun, of_model

__all__ = ["make_plan"]


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
    stages: dict[str, Mapping[Stage, str]] = {}
    builds: dict[str, tuple[str, ...]] = {}
    with collection_paused():
        for cell in chosen:
            checkpoint, served = planner.checkpoint(cell), planner.served(cell)
            answers: dict[Stage, str] = {
                "quantize": checkpoint.quantize,
                "inspect": checkpoint.inspect,
            }
            asked, run = _asked_of_vllm(cell.stages)
            if asked:
                answers["preflight"] = planner.preflight(cell, checkpoint, served)
            if run:
                generate = planner.generate(cell, checkpoint, served)
                for stage in GENERATED:
                    answers[stage] = generate
            stages[cell.id] = answers
            builds[cell.id] = (checkpoint.build, served.build)
        # A plan lives as long as what it was made for: no later collection has to look through it.
        gc.freeze()
    return Plan(cells=chosen, steps=planner.steps, stages=stages, builds=builds)


@cache
def _asked_of_vllm(stages: tuple[Stage, ...]) -> tuple[bool, bool]:
    """Whether cells of these stages have a preflight, and a run."""
    return "preflight" in stages, set(GENERATED) <= set(stages)


@dataclass(frozen=True, slots=True)
class _Kind:
    """Some work, and the canonical text around what a step of it needs."""

    work: Work
    before: str
    after: str

    @classmethod
    def of(cls, work: Work) -> _Kind:
        inputs, params = digest.canonical(work.inputs), digest.canonical(work.params)
        # The members of the object that is digested, in the order of their names.
        return cls(work, f'{{"inputs":{inputs},"needs":[', f'],"params":{params},"stage":"{work.stage}"}}')


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What all checkpoints of a recipe have in common."""

    meaning: Mapping[str, Any]
    text: str
    """The same as canonical text, and its digest."""
    digest: str
    inspect: _Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class _Checkpoint:
    """The steps of a checkpoint by digest, and what it is made of."""

    build: str
    quantize: str
    inspect: str
    made: Made


@dataclass(frozen=True, kw_only=True, slots=True)
class _Served:
    """What all cells of one serve environment and variant have in common."""

    build: str
    preflight: _Kind
    generate: _Kind


class _Planner:
    """Makes steps, each once."""

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
        self._builds: dict[LockKey, str] = {}
        self._models: dict[str, str] = {}
        self._made: dict[str, Made] = {}
        self._recipes: dict[str, _Asked] = {}
        self._quantize: dict[tuple[str, str], _Kind] = {}
        self._checkpoints: dict[str, _Checkpoint] = {}
        self._served: dict[str, _Served] = {}
        self._baselines: dict[str, str] = {}
        self._inputs: dict[RecordedStage, Mapping[str, str]] = {}

    def _add(
        self,
        kind: _Kind,
        subject: str,
        needs: tuple[str, ...] = (),
        made: Made | None = None,
    ) -> str:
        """The digest of that step, which is made unless there is one."""
        listed = '","'.join(sorted(needs))
        listed = f'"{listed}"' if needs else ""
        key = digest.of_text(f"{kind.before}{listed}{kind.after}")
        if key not in self.steps:
            self.steps[key] = Step(kind.work, subject, key, needs, made)
        return key

    def _by(self, stage: Literal["quantize", "inspect", "preflight", "generate"]) -> Mapping[str, str]:
        """The inputs of a stage that are our own source."""
        if stage not in self._inputs:
            judged = {} if stage == "generate" else {"judgement": source.of_judgement()}
            self._inputs[stage] = {"worker": source.of_worker(stage), **judged}
        return self._inputs[stage]

    def _build(self, environment: Environment, device: Device = "cpu") -> str:
        key = (environment.id, device)
        if key not in self._builds:
            work = Work(
                stage="build",
                environment=environment.id,
                params={},
                inputs={"environment": environment.id, "lock": self._locks.get(key)},
                device=device,
                unresolved=self._unresolved.get(key),
            )
            name = environment.id if device == "cpu" else f"{environment.id}.{device}"
            self._builds[key] = self._add(_Kind.of(work), name)
        return self._builds[key]

    def _model(self, model: Model) -> str:
        if model.id not in self._models:
            inputs = {"source": source.of_modules("reference")}
            params: dict[str, Any] = {"tied": model.tie_word_embeddings}
            if model.reference == "trained":
                inputs["weights"] = source.of_trained_weights()
            else:
                params["seed"] = model.seed
            work = Work(stage="model", environment=None, params=params, inputs=inputs)
            self._models[model.id] = self._add(_Kind.of(work), model.id)
        return self._models[model.id]

    def _recipe(self, recipe: Recipe) -> _Asked:
        if recipe.id not in self._recipes:
            meaning = recipe.meaning
            work = Work(
                stage="inspect",
                environment=None,
                params={"recipe": meaning},
                inputs=self._by("inspect"),
                words=OfCheckpoint(
                    stage="inspect",
                    told={
                        "judgement": source.of_judgement(),
                        "inspect worker": source.of_worker("inspect"),
                    },
                ),
            )
            text = digest.canonical(meaning)
            self._recipes[recipe.id] = _Asked(
                meaning=meaning, text=text, digest=digest.of_text(text), inspect=_Kind.of(work)
            )
        return self._recipes[recipe.id]

    def _quantizing(self, recipe: Recipe, environment: QuantizeEnvironment) -> _Kind:
        key = (recipe.id, environment.id)
        if key not in self._quantize:
            params = {"recipe": self._recipe(recipe).meaning, "seed": recipe.calibration.seed}
            words = OfCheckpoint(stage="quantize", told={"judgement": source.of_judgement()})
            work = Work(
                stage="quantize",
                environment=environment.id,
                params=params,
                inputs=self._by("quantize"),
                words=words,
            )
            self._quantize[key] = _Kind.of(work)
        return self._quantize[key]

    def checkpoint(self, cell: Cell) -> _Checkpoint:
        known = self._checkpoints.get(cell.checkpoint)
        return known or self._checkpoints.setdefault(cell.checkpoint, self._checkpoint(cell))

    def _checkpoint(self, cell: Cell) -> _Checkpoint:
        subject, recipe = cell.checkpoint, self._recipe(cell.recipe)
        lock = self._locks[cell.quantize.id, "cpu"]
        model = self._made_of(cell.model)
        made = Made(
            told={
                "recipe": recipe.digest,
                f"lock of {cell.quantize.id}": lock,
                "quantize worker": source.of_worker("quantize"),
                **model.told,
            },
            of_run={**model.of_run, "recipe": recipe.text, "quantize": digest.canonical(lock)},
        )
        build = self._build(cell.quantize)
        kind = self._quantizing(cell.recipe, cell.quantize)
        quantize = self._add(kind, subject, (build, self._model(cell.model)), made)
        inspect = self._add(recipe.inspect, subject, (quantize,), made)
        return _Checkpoint(build=build, quantize=quantize, inspect=inspect, made=made)

    def _made_of(self, model: Model) -> Made:
        return self._made.get(model.id) or self._made.setdefault(model.id, of_model(model))

    def served(self, cell: Cell) -> _Served:
        known = self._served.get(cell.server)
        return known or self._served.setdefault(cell.server, self._serve(cell.serve, cell.variant))

    def _serve(self, serve: ServeEnvironment, variant: Variant) -> _Served:
        # Its lock for a machine without a GPU, and that for what it generates on.
        lock, own = self._locks[serve.id, "cpu"], self._locks.get((serve.id, serve.device))
        locks = tuple(dict.fromkeys([own, *self._standing.get(serve.id, ())]))
        name = f"lock of {serve.id}"
        worker = {"preflight worker": source.of_worker("preflight")}
        preflight = Work(
            stage="preflight",
            environment=serve.id,
            params={"on_trial": True} if serve.label else {},
            inputs=self._by("preflight"),
            words=OfCheckpoint(
                stage="preflight",
                told={"judgement": source.of_judgement(), name: lock, **worker},
                own=(name, lock),
            ),
        )
        asked = {"exam": dict(self._exam), "options": {"device": serve.device, **variant.options}}
        params = digest.canonical(asked)
        told = {"exam and options": digest.of_text(params), "generate worker": source.of_worker("generate")}
        generate = Work(
            stage="generate",
            environment=serve.id,
            params=asked,
            inputs=self._by("generate"),
            device=serve.device,
            standing=tuple(one[:SHORT] for one in locks if one),
            words=OfRun(told={**told, **({name: own} if own else {})}, params=params, locks=locks),
        )
        return _Served(build=self._build(serve), preflight=_Kind.of(preflight), generate=_Kind.of(generate))

    def preflight(self, cell: Cell, of: _Checkpoint, served: _Served) -> str:
        # Variants of a cell have it in common.
        subject = cell.id if cell.variant.id == PLAIN.id else f"{cell.checkpoint}/{cell.serve.id}"
        return self._add(served.preflight, subject, (served.build, of.quantize), of.made)

    def generate(self, cell: Cell, of: _Checkpoint, served: _Served) -> str:
        build, baseline = self._build(cell.serve, cell.serve.device), self._baseline(cell, served)
        return self._add(served.generate, cell.id, (build, of.quantize, baseline), of.made)

    def _baseline(self, cell: Cell, served: _Served) -> str:
        """The run of the unquantized model that a cell's own is held against."""
        subject = cell.baseline
        if subject not in self._baselines:
            needs = (self._build(cell.serve, cell.serve.device), self._model(cell.model))
            self._baselines[subject] = self._add(served.generate, subject, needs, self._made_of(cell.model))
        return self._baselines[subject]
