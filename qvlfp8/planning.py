"""Cells -> a plan. Pure: the same files always give the same plan.

What many steps have in common is worked out, and written as JSON, once for all; what planning itself does not
ask for (what a step was asked in words, the keys of its evidence) is worked out when somebody does.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, overload

from qvlfp8 import digest, source
from qvlfp8.cells import GENERATED, Cell, Model, Stage, Variant
from qvlfp8.environments import Device, Environment, QuantizeEnvironment, ServeEnvironment
from qvlfp8.plan import NOTHING, OWN_SOURCE, SHORT, LockKey, Plan, Step, Work
from qvlfp8.recipe import Recipe
from qvlfp8.results import RecordedStage
from qvlfp8.untrusted import collection_paused

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


class _Keys(Sequence[str]):
    """Keys that are worked out when somebody asks for them."""

    __slots__ = ("_from", "_known", "_make")

    def __init__(self, make: Callable[..., tuple[str, ...]], *of: Any) -> None:
        self._make = make
        self._from = of
        self._known: tuple[str, ...] | None = None

    def _all(self) -> tuple[str, ...]:
        if self._known is None:
            self._known = self._make(*self._from)
        return self._known

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self._all()[index]

    def __len__(self) -> int:
        return len(self._all())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._all())


class _Both(Mapping[str, str]):
    """Two mappings as one, which nobody has put together yet; the second counts."""

    __slots__ = ("_first", "_second")

    def __init__(self, first: Mapping[str, str], second: Mapping[str, str]) -> None:
        self._first = first
        self._second = second

    def _all(self) -> dict[str, str]:
        return {**self._first, **self._second}

    def __getitem__(self, name: str) -> str:
        return self._second[name] if name in self._second else self._first[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


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
    """The steps of a checkpoint by digest, and what every cell that serves it says of it."""

    build: str
    quantize: str
    inspect: str
    asked: Mapping[str, str]
    """:attr:`Step.asked` of quantizing."""
    meant: Mapping[str, str]
    """All of that but our own source, as canonical texts."""
    made: Mapping[str, str]
    """What it is made of, by name, as :attr:`Step.asked`."""
    of_run: Mapping[str, str]
    """What a run's key says of its making, as canonical texts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Served:
    """What all cells of one serve environment and variant have in common."""

    build: str
    name: str
    """What its lock is called in :attr:`Step.asked`."""
    lock: str
    locks: tuple[str, ...]
    """The locks under which a committed record of a run can stand, as canonical texts."""
    preflight: _Kind
    asked: Mapping[str, str]
    """Of preflight, as :attr:`Step.asked`."""
    generate: _Kind
    params: str
    """What a run is asked, as canonical text."""
    asked_of_run: Mapping[str, str]


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
        asked: Mapping[str, str] = NOTHING,
        evidence: Sequence[str] = (),
    ) -> str:
        """The digest of that step, which is made unless there is one."""
        listed = '","'.join(sorted(needs))
        listed = f'"{listed}"' if needs else ""
        key = digest.of_text(f"{kind.before}{listed}{kind.after}")
        if key not in self.steps:
            self.steps[key] = Step(
                work=kind.work, subject=subject, digest=key, needs=needs, asked=asked, evidence=evidence
            )
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
                stage="inspect", environment=None, params={"recipe": meaning}, inputs=self._by("inspect")
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
            work = Work(
                stage="quantize", environment=environment.id, params=params, inputs=self._by("quantize")
            )
            self._quantize[key] = _Kind.of(work)
        return self._quantize[key]

    def checkpoint(self, cell: Cell) -> _Checkpoint:
        known = self._checkpoints.get(cell.checkpoint)
        return known or self._checkpoints.setdefault(cell.checkpoint, self._checkpoint(cell))

    def _checkpoint(self, cell: Cell) -> _Checkpoint:
        subject, recipe = cell.checkpoint, self._recipe(cell.recipe)
        lock = self._locks[cell.quantize.id, "cpu"]
        made = {
            "recipe": recipe.digest,
            f"lock of {cell.quantize.id}": lock,
            "quantize worker": source.of_worker("quantize"),
            **_made_of(cell.model),
        }
        told = {**made, "judgement": source.of_judgement()}
        asked = _short(told)
        meant = _meant(asked)
        build = self._build(cell.quantize)
        quantize = self._add(
            self._quantizing(cell.recipe, cell.quantize),
            subject,
            (build, self._model(cell.model)),
            asked,
            _Keys(_keys, "quantize", subject, _meant(told)),
        )
        inspect = self._add(
            recipe.inspect,
            subject,
            (quantize,),
            {**asked, "inspect worker": source.of_worker("inspect")[:SHORT]},
            _Keys(_keys, "inspect", subject, meant),
        )
        return _Checkpoint(
            build=build,
            quantize=quantize,
            inspect=inspect,
            asked=asked,
            meant=meant,
            made=_short(made),
            of_run={
                "recipe": recipe.text,
                "quantize": digest.canonical(lock),
                "model": _of_model(cell.model),
            },
        )

    def served(self, cell: Cell) -> _Served:
        known = self._served.get(cell.server)
        return known or self._served.setdefault(cell.server, self._serve(cell.serve, cell.variant))

    def _serve(self, serve: ServeEnvironment, variant: Variant) -> _Served:
        # Its lock for a machine without a GPU, and that for what it generates on.
        lock, own = self._locks[serve.id, "cpu"], self._locks.get((serve.id, serve.device))
        locks = tuple(dict.fromkeys([own, *self._standing.get(serve.id, ())]))
        preflight = Work(
            stage="preflight",
            environment=serve.id,
            params={"on_trial": True} if serve.label else {},
            inputs=self._by("preflight"),
        )
        generate = Work(
            stage="generate",
            environment=serve.id,
            params={"exam": dict(self._exam), "options": {"device": serve.device, **variant.options}},
            inputs=self._by("generate"),
            device=serve.device,
            standing=tuple(one[:SHORT] for one in locks if one),
        )
        name, params = f"lock of {serve.id}", digest.canonical(generate.params)
        told = {"exam and options": digest.of_text(params), "generate worker": source.of_worker("generate")}
        return _Served(
            build=self._build(serve),
            name=name,
            lock=lock,
            locks=tuple(digest.canonical(one) for one in locks),
            preflight=_Kind.of(preflight),
            asked=_short({name: lock, "preflight worker": source.of_worker("preflight")}),
            generate=_Kind.of(generate),
            params=params,
            asked_of_run=_short({**told, **({name: own} if own is not None else {})}),
        )

    def preflight(self, cell: Cell, of: _Checkpoint, served: _Served) -> str:
        subject = f"{cell.checkpoint}/{cell.serve.id}"
        return self._add(
            served.preflight,
            subject,
            (served.build, of.quantize),
            _Both(of.asked, served.asked),
            _Keys(_keys, "preflight", subject, of.meant, served.name, served.lock),
        )

    def generate(self, cell: Cell, of: _Checkpoint, served: _Served) -> str:
        return self._add(
            served.generate,
            cell.id,
            (self._build(cell.serve, cell.serve.device), of.quantize, self._baseline(cell, served)),
            _Both(of.made, served.asked_of_run),
            _Keys(_keys_of_run, cell.id, of.of_run, served.params, served.locks),
        )

    def _baseline(self, cell: Cell, served: _Served) -> str:
        """The run of the unquantized model that a cell's own is held against."""
        subject = cell.baseline
        if subject not in self._baselines:
            of_run = {"recipe": "null", "quantize": "null", "model": _of_model(cell.model)}
            self._baselines[subject] = self._add(
                served.generate,
                subject,
                (self._build(cell.serve, cell.serve.device), self._model(cell.model)),
                _Both(_short(_made_of(cell.model)), served.asked_of_run),
                _Keys(_keys_of_run, subject, of_run, served.params, served.locks),
            )
        return self._baselines[subject]


def _short(told: Mapping[str, str]) -> dict[str, str]:
    return {name: value[:SHORT] for name, value in told.items()}


def _made_of(model: Model) -> dict[str, str]:
    """What a model is made of, by name; one of random weights is what our source makes of its seed."""
    own = source.of_modules("reference")
    made: dict[str, Any] = {"seed": model.seed, "source": own}
    if model.reference == "trained":
        made = {"weights": source.of_trained_weights()}
    return {"model": digest.of_json({**made, "tied": model.tie_word_embeddings}), "reference source": own}


def _of_model(model: Model) -> str:
    """What a run's key says of its model, as canonical text."""
    return digest.canonical({"weights": source.of_trained_weights(), "tied": model.tie_word_embeddings})


def _meant(asked: Mapping[str, str]) -> dict[str, str]:
    """All but our own source, as canonical texts: what a committed record of a CPU step is found by."""
    return {name: f'"{value}"' for name, value in asked.items() if not name.endswith(OWN_SOURCE)}


def _keys(
    stage: RecordedStage, subject: str, meant: Mapping[str, str], name: str = "", value: str = ""
) -> tuple[str]:
    """The key under which a committed record of a CPU step is found, of what it was asked.

    Args:
        meant: names and canonical texts.
        name: that of one more, if any.
        value: a digest.
    """
    told = {
        "stage": digest.canonical(stage),
        "subject": digest.canonical(subject),
        "asked": digest.joined({**meant, name: digest.canonical(value)} if name else meant),
    }
    return (digest.of_text(digest.joined(told)),)


def _keys_of_run(
    subject: str, asked: Mapping[str, str], params: str, locks: Sequence[str]
) -> tuple[str, ...]:
    """The keys under which a committed record of a run is found, one for each lock it may be made in."""
    shared = {**asked, "subject": digest.canonical(subject), "params": params}
    return tuple(digest.of_text(digest.joined({**shared, "serve": lock})) for lock in locks)
