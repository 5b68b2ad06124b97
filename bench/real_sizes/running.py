"""Do what is left of the steps, on as many GPUs as there are, until all is done or the time is over."""

from __future__ import annotations

import json
import queue
import shutil
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.real_sizes import records
from bench.real_sizes.jobs import BF16, PAIRS, SPEED_RECIPES, Step, not_here, seconds, speed_asked
from bench.real_sizes.processes import Ended, Environment, OutOfTime, Processes
from qvlfp8 import __version__
from qvlfp8.checkpoint import folder_digest
from qvlfp8.worker.protocol import write_json

SEED = 2026
MODELOPT = "modelopt-hf"
"""The exporter of ModelOpt's recipes."""

ROOM = 45_000_000_000
"""Bytes that must be free for a checkpoint to be kept until its speed is measured; else it is made again."""

Show = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where it is measured, and with what."""

    home: Path
    producers: Mapping[str, Environment]
    """By the exporter whose recipes they follow; ModelOpt's makes the models and inspects as well."""
    serve: Environment
    facts: Mapping[str, Any]
    recipes: Mapping[str, Mapping[str, Any]]

    @property
    def tools(self) -> Environment:
        """Where the project's own programs run."""
        return self.producers[MODELOPT]

    @property
    def device(self) -> str:
        return "cuda" if self.facts["gpus"] else "cpu"

    @property
    def records(self) -> Path:
        return self.home / "records" / records.accelerator(self.facts)


class Session:
    """One call: steps over GPUs."""

    def __init__(
        self, host: Host, processes: Processes, gpus: Sequence[str], show: Show, *, together: bool = False
    ) -> None:
        """``together``: speed is measured on all GPUs at once, and the records say so."""
        self._host, self._processes, self._gpus, self._show = host, processes, gpus, show
        self._together = together
        self._work = host.home / "work"
        self._making: dict[str, threading.Lock] = {}
        self._baseline: dict[str, threading.Event] = {}
        self._guard = threading.Lock()

    def run(self, steps: Sequence[Step]) -> None:
        """Do every step that has no record: spread over GPUs where it may be, else one by one.

        Raises:
            OutOfTime: some are left.
        """
        left = [step for step in steps if not self._done(step)]
        for size in dict.fromkeys(step.size for step in steps):
            self._making[size] = threading.Lock()
            self._baseline[size] = threading.Event()
            answers = Step(size=size, recipe=BF16, kind="answers")
            if self._done(answers) or answers not in left:
                self._baseline[size].set()
        self._spread([step for step in left if step.phase == "checkpoints"])
        if self._together:
            self._spread([step for step in left if step.phase == "speed"])
        for step in left:
            if step.phase == "beside" or (step.phase == "speed" and not self._together):
                self._group([step], self._gpus[0])

    def _done(self, step: Step) -> bool:
        path = records.path_of(self._host.records, step)
        if (step.recipe, step.kind) == (BF16, "answers") and path.exists():
            # Records may come from an earlier host, what others are held against not.
            return records.read([path])[0]["status"] != "pass" or (self._folder(step) / "kinds.json").exists()
        return path.exists()

    def _spread(self, steps: Sequence[Step]) -> None:
        """Do the steps of each checkpoint one after the other, those of several at once."""
        groups: dict[tuple[str, str], list[Step]] = {}
        for step in steps:
            groups.setdefault((step.size, step.recipe), []).append(step)
        waiting: queue.SimpleQueue[Sequence[Step]] = queue.SimpleQueue()
        for group in groups.values():
            waiting.put(group)

        def drain(gpu: str) -> None:
            while True:
                try:
                    group = waiting.get_nowait()
                except queue.Empty:
                    return
                self._group(group, gpu)

        with ThreadPoolExecutor(len(self._gpus)) as pool:
            for ended in [pool.submit(drain, gpu) for gpu in self._gpus]:
                ended.result()

    def _group(self, group: Sequence[Step], gpu: str) -> None:
        """The steps of one checkpoint."""
        size, recipe = group[0].size, group[0].recipe
        if recipe != BF16 and (why := not_here(self._host.recipes[recipe], self._host.producers)):
            for step in group:
                self._write(step, "not run", why, {}, None, 0.0)
            return
        for step in group:
            if self._processes.left() < seconds(step):
                raise OutOfTime
            match step.kind:
                case "model":
                    self._model(size, gpu)
                case "quantize":
                    self._quantize(step, gpu)
                case "beside":
                    self._beside(step, gpu)
                case _:
                    self._serve(step, gpu)
        self._tidy(size, recipe)

    # --- checkpoints ----------------------------------------------------------------------------------------

    def _folder(self, step: Step) -> Path:
        return self._work / step.name

    def _model(self, size: str, gpu: str) -> Path:
        """The unquantized model, made if it is not there."""
        folder = self._work / "models" / size
        step = Step(size=size, recipe=BF16, kind="model")
        with self._making[size]:
            if folder.exists() and self._done(step):
                return folder
            out = self._folder(step)
            spec = {"size": size, "seed": SEED, "folder": str(folder)}
            ended = self._python(self._host.tools, "bench.real_sizes.making", spec, out, gpu)
            status, why = records.judge(ended.result, ended.code, ended.tail)
            measured = (ended.result or {}).get("measured", {}) | {"peak_host_mb": ended.peak_host_mb}
            checkpoint = _described(folder, folder_digest(folder)) if status == "pass" else None
            self._write(step, status, why, measured, checkpoint, ended.seconds)
        return folder

    def _checkpoint(self, size: str, recipe: str) -> Path:
        return self._work / f"{size}~{recipe}~quantize" / "checkpoint"

    def _quantize(self, step: Step, gpu: str, *, again: bool = False) -> bool:
        """Quantize with the project's worker; the record is written unless it is made ``again``."""
        model = self._model(step.size, gpu)
        ended = self._worker(model, self._host.recipes[step.recipe], self._folder(step), gpu)
        status, why = records.judge(ended.result, ended.code, ended.tail)
        if not again:
            measured = (ended.result or {}).get("measured", {})
            measured |= {"wall_seconds": ended.seconds, "peak_host_mb": ended.peak_host_mb}
            made = self._checkpoint(step.size, step.recipe)
            checkpoint = None
            if status == "pass":
                inspected = self._inspect(step, made)
                checkpoint = _described(made, inspected.pop("digest"))
                measured["inspected"] = inspected
            environment = (ended.result or {}).get("environment", {})
            self._write(step, status, why, measured, checkpoint, ended.seconds, environment)
        return status == "pass"

    def _worker(self, model: Path, recipe: Mapping[str, Any], out: Path, gpu: str) -> Ended:
        shutil.rmtree(out, ignore_errors=True)
        params = {"model": str(model), "recipe": recipe, "seed": SEED}
        return self._batch("quantize", params, out, gpu, self._host.producers[recipe["exporter"]])

    def _inspect(self, step: Step, checkpoint: Path) -> dict[str, Any]:
        """What the project's inspection finds, and how long the process took."""
        params = {"checkpoint": str(checkpoint), "recipe": self._host.recipes[step.recipe]}
        ended = self._batch("inspect", params, self._folder(step) / "inspect", None)
        result = ended.result or {"measured": {}, "failure": ended.tail[-400:]}
        kept = ("counts", "kv_scales", "scope_quantized", "tensors", "exclusions", "digest")
        return {
            "failure": result["failure"],
            "wall_seconds": ended.seconds,
            **{key: result["measured"].get(key) for key in kept},
        }

    def _batch(
        self,
        worker: str,
        params: Mapping[str, Any],
        out: Path,
        gpu: str | None,
        environment: Environment | None = None,
    ) -> Ended:
        """A job of one of the project's own workers."""
        out.mkdir(parents=True, exist_ok=True)
        job = {"id": worker, "out": str(out), "params": dict(params)}
        spec = out / "spec.json"
        write_json(spec, {"worker": worker, "time_limit_s": 3600, "jobs": [job]})
        return self._processes.run(
            environment or self._host.tools, ["-P", "qvlfp8/worker/__main__.py", str(spec)], out, gpu=gpu
        )

    def _python(
        self, environment: Environment, module: str, spec: Mapping[str, Any], out: Path, gpu: str
    ) -> Ended:
        """A process of this bench."""
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        write_json(out / "spec.json", {**spec, "out": str(out)})
        return self._processes.run(environment, ["-m", module, str(out / "spec.json")], out, gpu=gpu)

    # --- vLLM -----------------------------------------------------------------------------------------------

    def _serve(self, step: Step, gpu: str) -> None:
        checkpoint = self._there(step, gpu)
        try:
            if checkpoint is None:
                self._write(step, "not run", "there is no checkpoint", {}, None, 0.0)
                return
            baseline = None
            if step.kind == "answers" and step.recipe != BF16:
                while not self._baseline[step.size].wait(1.0):
                    if self._processes.left() <= 0:
                        raise OutOfTime
                folder = self._folder(Step(size=step.size, recipe=BF16, kind="answers"))
                baseline = str(folder) if (folder / "kinds.json").exists() else None
            spec = {
                "checkpoint": str(checkpoint),
                "device": self._host.device,
                "eager": step.kind != "speed-compiled",
                "do": "answers" if step.kind == "answers" else "speed",
                "baseline": baseline,
                "speed": speed_asked(step),
            }
            ended = self._python(self._host.serve, "bench.real_sizes.serving", spec, self._folder(step), gpu)
            status, why = records.judge(ended.result, ended.code, ended.tail)
            measured = (ended.result or {}).get("measured", {})
            environment = measured.pop("environment", {})
            if status == "pass" and step.kind == "answers":
                status, why = records.judge_answers(measured)
            measured |= {"wall_seconds": ended.seconds, "peak_host_mb": ended.peak_host_mb}
            if step.phase == "speed":
                measured["gpus_at_once"] = len(self._gpus) if self._together else 1
            self._write(step, status, why, measured, None, ended.seconds, environment)
        finally:
            if step.kind == "answers" and step.recipe == BF16:
                self._baseline[step.size].set()

    def _there(self, step: Step, gpu: str) -> Path | None:
        """The step's checkpoint: made again if it was deleted, None if it could not be made."""
        if step.recipe == BF16:
            return self._model(step.size, gpu)
        made = self._checkpoint(step.size, step.recipe)
        if not made.exists():
            source = Step(size=step.size, recipe=step.recipe, kind="quantize")
            if not self._quantize(source, gpu, again=self._done(source)):
                return None
        return made

    def _tidy(self, size: str, recipe: str) -> None:
        """Delete a checkpoint that nothing waits for, or that the disk has no room for."""
        if recipe == BF16:
            return
        waited = recipe in SPEED_RECIPES and not all(
            self._done(Step(size=size, recipe=recipe, kind=kind))
            for kind in ("speed-compiled", "speed-eager")
        )
        if not waited or shutil.disk_usage(self._work).free < ROOM:
            shutil.rmtree(self._checkpoint(size, recipe), ignore_errors=True)

    # --- side by side ---------------------------------------------------------------------------------------

    def _beside(self, step: Step, gpu: str) -> None:
        """The worker and the plain script in turns; a run that is finished is not done again."""
        model = self._model(step.size, gpu)
        recipe = self._host.recipes[step.recipe]
        runs: list[dict[str, Any]] = []
        for number, who in enumerate(_turns(PAIRS[step.size])):
            out = self._folder(step) / f"{number}-{who}"
            kept = out.with_suffix(".json")
            if not kept.exists():
                if self._processes.left() < seconds(step):
                    raise OutOfTime
                write_json(kept, self._run_beside(step, who, model, recipe, out, gpu))
            runs.append(json.loads(kept.read_text(encoding="utf-8")))
        del runs[0]  # it read packages and model from the disk for all others
        failed = next((run["why"] for run in runs if run["why"]), None)
        measured: dict[str, Any] = {"runs": runs}
        if failed is None:
            measured |= _ratios(runs)
        self._write(
            step, "error" if failed else "pass", failed, measured, None, sum(run["seconds"] for run in runs)
        )

    def _run_beside(
        self, step: Step, who: str, model: Path, recipe: Mapping[str, Any], out: Path, gpu: str
    ) -> dict[str, Any]:
        inspected = 0.0
        if who == "worker":
            ended = self._worker(model, recipe, out, gpu)
            if (out / "checkpoint").exists():
                params = {"checkpoint": str(out / "checkpoint"), "recipe": recipe}
                inspected = self._batch("inspect", params, out / "inspect", None).seconds
        else:
            spec = {"model": str(model), "recipe": recipe, "seed": SEED}
            ended = self._python(self._host.tools, "bench.plain_export", spec, out, gpu)
        _, why = records.judge(ended.result, ended.code, ended.tail)
        measured = (ended.result or {}).get("measured", {})
        shutil.rmtree(out, ignore_errors=True)
        self._show(f"{step.name}: {who} {ended.seconds + inspected:.1f} s, {ended.peak_host_mb} MB")
        return {
            "who": who,
            "seconds": round(ended.seconds + inspected, 2),
            "inspect_seconds": inspected,
            "peak_host_mb": ended.peak_host_mb,
            "peak_gpu_mb": measured.get("peak_gpu_mb"),
            "phases": measured.get("seconds", {}),
            "why": why,
        }

    # --- records --------------------------------------------------------------------------------------------

    def _write(
        self,
        step: Step,
        status: records.Status,
        why: str | None,
        measured: dict[str, Any],
        checkpoint: dict[str, Any] | None,
        took: float,
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        recipe = self._host.recipes.get(step.recipe)
        host = dict(self._host.facts)
        host["locks"] = {name: spec["lock"] for name, spec in host.pop("environments").items()}
        with self._guard:
            records.write(
                records.path_of(self._host.records, step),
                {
                    "size": step.size,
                    "recipe": step.recipe,
                    "kind": step.kind,
                    "status": status,
                    "why": why,
                    "measured": measured,
                    "checkpoint": checkpoint,
                    "recipe_file": recipe,
                    "environment": dict(environment or {}),
                    "host": host,
                    "started": datetime.now(UTC).isoformat(timespec="seconds"),
                    "seconds": round(took, 2),
                    "repeat": (
                        f"python -m bench.real_sizes run --home HOME --out OUT --sizes {step.size}"
                        f" --recipes {step.recipe} --phase {step.phase}"
                    ),
                    "qvlfp8": __version__,
                },
            )
        self._show(f"{step.name}: {status} {took:.0f} s {(why or '').splitlines()[0][:160] if why else ''}")


def _turns(pairs: int) -> list[str]:
    """Who runs, in turns, each first as often as the other; one run before, which does not count."""
    return [
        "plain",
        *(who for n in range(pairs) for who in (("worker", "plain") if n % 2 else ("plain", "worker"))),
    ]


def _described(folder: Path, digest: str | None) -> dict[str, Any]:
    """A checkpoint as a record names it; the digest covers every file of its folder."""
    files = list(folder.glob("*.safetensors"))
    return {"digest": digest, "files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def _ratios(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The worker's medians over the plain script's."""
    found = {}
    for what in ("seconds", "peak_host_mb"):
        ours, plain = (
            statistics.median(run[what] for run in runs if run["who"] == who) for who in ("worker", "plain")
        )
        found[what] = {"worker": ours, "plain": plain, "ratio": round(ours / plain, 3)}
    return found
