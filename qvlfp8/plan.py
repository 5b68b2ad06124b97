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

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from types import MappingProxyType
from typing import Any, Literal, overload

from qvlfp8 import digest, source
from qvlfp8.cells import GENERATED, OF_CHECKPOINT, Cell, Model, Stage
from qvlfp8.environments import Device, Environment, ServeEnvironment
from qvlfp8.results import RecordedStage
from qvlfp8.untrusted import collection_paused

LockKey = tuple[str, Device]
"""Environment id, and the device that the lock is for."""

NOTHING: Mapping[Any, Any] = MappingProxyType({})

OWN_SOURCE = (" worker", "judgement", "reference source")
"""How the names of those inputs in ``Step.asked`` end that are our own source."""
SHORT = 16
"""Digits of a digest that only tells whether something has changed."""


class Keys(Sequence[str]):
    """Keys that are worked out when somebody asks for them: planning itself asks for none."""

    __slots__ = ("_known", "_make")

    def __init__(self, make: Callable[[], tuple[str, ...]]) -> None:
        self._make = make
        self._known: tuple[str, ...] | None = None

    def _all(self) -> tuple[str, ...]:
        if self._known is None:
            self._known = self._make()
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
    evidence: Sequence[str] = ()
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
        wanted: dict[str, None] = {}
        for digest_of_stage in dict.fromkeys(self.stages[cell.id].values()):
            for need in self.steps[digest_of_stage].needs:
                wanted |= self._with_needs(need)
            wanted[digest_of_stage] = None
        return tuple([self.steps[step] for step in wanted])

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


@dataclass(frozen=True, slots=True)
class _Told:
    """A JSON object that many steps have in common, and its canonical text, written once."""

    value: Mapping[str, Any]
    text: str

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> _Told:
        return cls(value, digest.canonical(value))


_NONE = _Told.of({})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Checkpoint:
    """The steps of a checkpoint, and what every cell that serves it says of it."""

    quantize: Step
    inspect: Step
    meant: Mapping[str, str]
    """Of :attr:`Step.asked` of quantizing, all but our own source, as canonical texts."""
    made: dict[str, str]
    """What it is made of, by name, as :attr:`Step.asked`."""
    asked: Mapping[str, str]
    """What a run's key says of its making, as canonical texts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Served:
    """What all cells of one serve environment have in common."""

    build: Step
    name: str
    """What its lock is called in :attr:`Step.asked`."""
    lock: str
    own: str | None
    """Its lock for a machine without a GPU, and that for what it generates on."""
    locks: tuple[str, ...]
    """The locks under which a committed record of a run can stand, as canonical texts."""
    standing: tuple[str, ...]
    params: _Told
    asked: dict[str, str]
    """Both of preflight."""


class _Planner:
    """Makes steps, each once. What many of them share is worked out, and written as JSON, once for all."""

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
        self._builds: dict[LockKey, Step] = {}
        self._models: dict[str, Step] = {}
        self._checkpoints: dict[str, _Checkpoint] = {}
        self._served: dict[str, _Served] = {}
        self._runs: dict[tuple[str, str], tuple[_Told, dict[str, str]]] = {}
        self._baselines: dict[str, Step] = {}
        self._inputs: dict[RecordedStage, _Told] = {}

    def _add(
        self,
        stage: RecordedStage,
        subject: str,
        *,
        inputs: _Told,
        needs: tuple[Step, ...] = (),
        environment: str | None = None,
        params: _Told = _NONE,
        device: Device = "cpu",
        asked: Mapping[str, str] = NOTHING,
        evidence: Sequence[str] = (),
        standing: tuple[str, ...] = (),
        unresolved: str | None = None,
    ) -> Step:
        needed = tuple([need.digest for need in needs])
        listed = ",".join([f'"{need}"' for need in sorted(needed)])
        # The canonical text of an object with these four members, in the order of their names.
        key = digest.of_text(
            f'{{"inputs":{inputs.text},"needs":[{listed}],"params":{params.text},"stage":"{stage}"}}'
        )
        if (known := self.steps.get(key)) is not None:
            return known
        step = self.steps[key] = Step(
            stage=stage,
            subject=subject,
            digest=key,
            environment=environment,
            params=params.value,
            inputs=inputs.value,
            needs=needed,
            device=device,
            evidence=evidence,
            asked=asked,
            standing=standing,
            unresolved=unresolved,
        )
        return step

    def _by(self, stage: Literal["quantize", "inspect", "preflight", "generate"]) -> _Told:
        """The inputs of a stage that are our own source."""
        if stage not in self._inputs:
            judged = {} if stage == "generate" else {"judgement": source.of_judgement()}
            self._inputs[stage] = _Told.of({"worker": source.of_worker(stage), **judged})
        return self._inputs[stage]

    def build(self, environment: Environment, device: Device = "cpu") -> Step:
        key = (environment.id, device)
        if key not in self._builds:
            name = environment.id if device == "cpu" else f"{environment.id}.{device}"
            self._builds[key] = self._add(
                "build", name, inputs=_Told.of({"environment": environment.id, "lock": self._locks.get(key)}),
                environment=environment.id, device=device, unresolved=self._unresolved.get(key),
            )  # fmt: skip
        return self._builds[key]

    def model(self, model: Model) -> Step:
        if model.id not in self._models:
            inputs = {"source": source.of_modules("reference")}
            params: dict[str, Any] = {"tied": model.tie_word_embeddings}
            if model.reference == "trained":
                inputs["weights"] = source.of_trained_weights()
            else:
                params["seed"] = model.seed
            self._models[model.id] = self._add(
                "model", model.id, inputs=_Told.of(inputs), params=_Told.of(params)
            )
        return self._models[model.id]

    def checkpoint(self, cell: Cell) -> _Checkpoint:
        known = self._checkpoints.get(cell.checkpoint)
        return known or self._checkpoints.setdefault(cell.checkpoint, self._checkpoint(cell))

    def _checkpoint(self, cell: Cell) -> _Checkpoint:
        subject, meaning = cell.checkpoint, cell.recipe.meaning
        lock = self._locks[cell.quantize.id, "cpu"]
        made = {
            "recipe": digest.of_json(meaning),
            f"lock of {cell.quantize.id}": lock,
            "quantize worker": source.of_worker("quantize"),
            **_model(cell.model),
        }
        told = {**made, "judgement": source.of_judgement()}
        asked = _short(told)
        quantize = self._add(
            "quantize",
            subject,
            inputs=self._by("quantize"),
            needs=(self.build(cell.quantize), self.model(cell.model)),
            environment=cell.quantize.id,
            params=_Told.of({"recipe": meaning, "seed": cell.recipe.calibration.seed}),
            asked=asked,
            evidence=Keys(partial(_keys, "quantize", subject, _meant(told))),
        )
        meant = _meant(asked)
        inspect = self._add(
            "inspect",
            subject,
            inputs=self._by("inspect"),
            needs=(quantize,),
            params=_Told.of({"recipe": meaning}),
            asked={**asked, "inspect worker": source.of_worker("inspect")[:SHORT]},
            evidence=Keys(partial(_keys, "inspect", subject, meant)),
        )
        return _Checkpoint(
            quantize=quantize,
            inspect=inspect,
            meant=meant,
            made=_short(made),
            asked={
                "recipe": digest.canonical(meaning),
                "quantize": digest.canonical(lock),
                "model": _of_model(cell.model),
            },
        )

    def served(self, serve: ServeEnvironment) -> _Served:
        known = self._served.get(serve.id)
        if known is None:
            own = self._locks.get((serve.id, serve.device))
            locks = tuple(dict.fromkeys([own, *self._standing.get(serve.id, ())]))
            name, lock = f"lock of {serve.id}", self._locks[serve.id, "cpu"]
            known = self._served[serve.id] = _Served(
                build=self.build(serve),
                name=name,
                lock=lock,
                own=own,
                locks=tuple(digest.canonical(one) for one in locks),
                standing=tuple(one[:SHORT] for one in locks if one),
                params=_Told.of({"on_trial": True}) if serve.label else _NONE,
                asked=_short({name: lock, "preflight worker": source.of_worker("preflight")}),
            )
        return known

    def preflight(self, cell: Cell, of: _Checkpoint, served: _Served) -> Step:
        subject = f"{cell.checkpoint}/{cell.serve.id}"
        return self._add(
            "preflight",
            subject,
            inputs=self._by("preflight"),
            needs=(served.build, of.quantize),
            environment=cell.serve.id,
            params=served.params,
            asked={**of.quantize.asked, **served.asked},
            evidence=Keys(partial(_keys, "preflight", subject, of.meant, served.name, served.lock)),
        )

    def baseline(self, cell: Cell, served: _Served) -> Step:
        """The run of the unquantized model that a cell's own is held against."""
        subject = cell.baseline
        if subject not in self._baselines:
            self._baselines[subject] = self._generate(
                cell,
                served,
                subject,
                needs=(self.model(cell.model),),
                made=_short(_model(cell.model)),
                asked={"recipe": "null", "quantize": "null", "model": _of_model(cell.model)},
            )
        return self._baselines[subject]

    def generate(self, cell: Cell, of: _Checkpoint, served: _Served) -> Step:
        return self._generate(
            cell,
            served,
            cell.id,
            needs=(of.quantize, self.baseline(cell, served)),
            made=of.made,
            asked=of.asked,
        )

    def _generate(
        self,
        cell: Cell,
        served: _Served,
        subject: str,
        *,
        needs: tuple[Step, ...],
        made: dict[str, str],
        asked: Mapping[str, str],
    ) -> Step:
        params, told = self._run(cell, served)
        return self._add(
            "generate",
            subject,
            inputs=self._by("generate"),
            needs=(self.build(cell.serve, cell.serve.device), *needs),
            environment=cell.serve.id,
            params=params,
            device=cell.serve.device,
            asked=made | told,
            evidence=Keys(partial(_keys_of_run, subject, asked, params.text, served.locks)),
            standing=served.standing,
        )

    def _run(self, cell: Cell, served: _Served) -> tuple[_Told, dict[str, str]]:
        """What a run is asked, and that and what it is run by as :attr:`Step.asked`."""
        key = (cell.serve.id, cell.variant.id)
        if (known := self._runs.get(key)) is None:
            options = {"device": cell.serve.device, **cell.variant.options}
            params = _Told.of({"exam": dict(self._exam), "options": options})
            told = {
                "exam and options": digest.of_text(params.text),
                "generate worker": source.of_worker("generate"),
            }
            if served.own is not None:
                told[served.name] = served.own
            known = self._runs[key] = (params, _short(told))
        return known


def _short(told: Mapping[str, str]) -> dict[str, str]:
    return {name: value[:SHORT] for name, value in told.items()}


def _model(model: Model) -> dict[str, str]:
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
    with collection_paused():
        for cell in chosen:
            checkpoint, served = planner.checkpoint(cell), planner.served(cell.serve)
            steps: dict[Stage, str] = {
                "quantize": checkpoint.quantize.digest,
                "inspect": checkpoint.inspect.digest,
            }
            if "preflight" in cell.stages:
                steps["preflight"] = planner.preflight(cell, checkpoint, served).digest
            if _is_run(cell.stages):
                run = planner.generate(cell, checkpoint, served).digest
                for stage in GENERATED:
                    steps[stage] = run
            stages[cell.id] = steps
            builds[cell.id] = (checkpoint.quantize.needs[0], served.build.digest)
    return Plan(cells=chosen, steps=planner.steps, stages=stages, builds=builds)


@cache
def _is_run(stages: tuple[Stage, ...]) -> bool:
    return set(GENERATED) <= set(stages)


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
