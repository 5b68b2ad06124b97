"""The train worker: teaches the reference model to see and to speak, in a fixed number of steps.

Every batch, and the learning rate of every step, is a function of the parameters: no clock decides
anything. On one kind of machine with the same packages two runs agree but for the order of
floating-point sums in a few kernels.

What makes so small a model see: for the first part of the steps the tower is taught alone, by what
it ought to know of every cell of the picture (:data:`~qvlfp8.worker.lessons.TARGETS`), half of
which only attention over the whole picture tells; then tower and language model together. What
makes every vision block needed: each has to add more to the stream than it found there
(``balance``), so that no block can be left out. Both helps are thrown away after training.
"""

from __future__ import annotations

import math
import platform
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qvlfp8 import digest
from qvlfp8.checkpoint import WEIGHTS, write_safetensors
from qvlfp8.reference import architecture
from qvlfp8.reference.exam import CHANCE, Question, exam_digest, make_exam
from qvlfp8.reference.folder import NamedTensor, write_folder
from qvlfp8.structure import from_config
from qvlfp8.worker import lessons, scores
from qvlfp8.worker.protocol import write_json

RECORD = "training.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that decides what is learned; the defaults make the shipped model again.

    ``pictures`` and ``speeches`` are a batch's rows with and without a picture. The learning rate
    rises over ``warm_up`` steps, stays, and falls linearly to zero over the last ``fall`` of the
    steps; the tower is alone for the first ``tower_share`` of them.
    """

    seed: int = 5
    steps: int = 21_000
    pictures: int = 112
    speeches: int = 32
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warm_up: int = 200
    fall: float = 0.5
    tower_share: float = 0.2
    auxiliary: float = 0.5
    balance: float = 1.5
    balance_weight: float = 0.3
    smoothing: float = 0.03
    depth: int = architecture.DEPTH
    full_attention: tuple[int, ...] = architecture.FULL_ATTENTION


def prepare(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Import what training needs and say the versions; starts no CUDA."""
    del jobs
    import numpy
    import torch
    import transformers

    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def run(params: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train, score, and write ``out/model.safetensors`` and ``out/training.json``.

    Args:
        params: fields of :class:`Plan` (the others keep their defaults); ``workers``, processes
            that draw batches; ``graphs``, whether steps are replayed as CUDA graphs; ``exam``,
            the ``seed`` and ``per_task`` of the questions that score the result.
        out: an existing folder.

    Returns:
        The training record.
    """
    import torch

    fields = {name: params[name] for name in Plan.__dataclass_fields__ if name in params}
    if "full_attention" in fields:
        fields["full_attention"] = tuple(fields["full_attention"])
    plan = Plan(**fields)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # With cuDNN's attention and the fused norm of torch 2.11 gradients were NaN now and then on an
    # H200; with neither, never.
    torch.backends.cuda.enable_cudnn_sdp(False)
    config = architecture.seeing_config(tied=True, depth=plan.depth, full_attention=plan.full_attention)
    questions = make_exam(**params["exam"])
    started = time.monotonic()
    pupil = _Pupil(plan, config, device)
    graphs = bool(params.get("graphs", device.type == "cuda")) and device.type == "cuda"
    _teach(pupil, plan, int(params.get("workers", 0)), graphs=graphs)
    seconds = time.monotonic() - started
    weights = {name: value.detach().bfloat16() for name, value in pupil.weights.items()}
    write_safetensors(out / WEIGHTS, _named(weights), {"format": "pt"})
    table = score(weights, config, questions, device)
    record = {
        "plan": asdict(plan),
        "logit_difference_to_transformers": _difference(weights, config, plan.seed),
        "parameters": sum(value.numel() for value in weights.values()),
        "environment": prepare([]) | _machine(device),
        "seconds": round(seconds, 1),
        "graphs": graphs,
        "unsound_steps": int(pupil.unsound.item()),
        "exam": params["exam"] | {"digest": exam_digest(questions)},
        "scored_by": "batched forward pass, " + ("BF16" if device.type == "cuda" else "F32"),
        "chance": dict(CHANCE),
        "accuracy": table.pop("intact"),
        "ablations": table,
        "model_sha256": digest.of_file(out / WEIGHTS),
    }
    write_json(out / RECORD, record)
    return record


def _machine(device: Any) -> dict[str, Any]:
    import torch

    if device.type != "cuda":
        return {"device": "cpu"}
    driver = None
    version = Path("/proc/driver/nvidia/version")
    if version.exists():
        driver = version.read_text(encoding="utf-8").splitlines()[0]
    return {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": driver}


def _named(weights: Mapping[str, Any]) -> list[NamedTensor]:
    import torch

    return [
        (name, "BF16", tuple(value.shape), value.cpu().contiguous().view(torch.int16).numpy().tobytes())
        for name, value in weights.items()
    ]


def _difference(weights: Mapping[str, Any], config: dict[str, Any], seed: int) -> float:
    """Largest difference of a logit between transformers' forward pass and ours, in F32 on a CPU."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    from qvlfp8.worker import batched, evaluate

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_folder(folder, config, _named(weights))
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        examinee = evaluate.Examinee(
            model, (list(batched.MEAN), list(batched.DEVIATION)), torch.device("cpu")
        )
        batch = lessons.lesson(seed, 0, 4, 0)
        theirs = examinee.logits(batch.pictures, batch.ids)
    plain = {name: value.cpu().float() for name, value in weights.items()}
    with torch.no_grad():
        seen = batched.tower(plain, config, torch.from_numpy(batch.pictures))
        size = (batch.pictures.shape[1], batch.pictures.shape[2])
        ours = batched.speak(plain, config, torch.from_numpy(batch.ids), seen, size)
    return float((theirs - ours).abs().max())


class _Pupil:
    """The weights in F32, the auxiliary heads, and what one step of learning is."""

    def __init__(self, plan: Plan, config: dict[str, Any], device: Any) -> None:
        import torch

        self.plan, self.config, self.device = plan, config, device
        self.weights = {
            name: value.to(device).requires_grad_() for name, value in _initial(config, plan.seed).items()
        }
        # Two heads: one on what the tower says, one on what the first language layer makes of it.
        width, classes = config["hidden_size"], sum(lessons.TARGETS.values())
        source = torch.Generator().manual_seed(plan.seed + 1)
        self.heads = [
            (torch.randn(classes, width, generator=source) / math.sqrt(width)).to(device).requires_grad_()
            for _ in range(2)
        ]
        self.rate = torch.zeros((), device=device)
        # Steps whose gradient was not finite: they teach nothing, and are counted.
        self.unsound = torch.zeros((), dtype=torch.long, device=device)
        matrices = [value for value in self.weights.values() if value.ndim > 1]
        vectors = [value for value in self.weights.values() if value.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices}, {"params": [*vectors, *self.heads], "weight_decay": 0.0}],
            lr=self.rate if device.type == "cuda" else 1.0,
            betas=(0.9, 0.98), weight_decay=plan.weight_decay, fused=device.type == "cuda",
            capturable=device.type == "cuda",
        )  # fmt: skip

    def trained(self) -> list[Any]:
        """Everything that has a gradient."""
        return [*self.weights.values(), *self.heads]

    def set_rate(self, rate: float) -> None:
        """Set the learning rate; on a GPU in place, for the graphs that read it."""
        if self.device.type == "cuda":
            self.rate.fill_(rate)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def learn(self, batch: Mapping[str, Any], *, tower_alone: bool) -> Any:
        """One step; returns what to print: speech loss, auxiliary losses, balance, hits of targets."""
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        loss, report = self.loss(batch, tower_alone=tower_alone)
        loss.backward()
        gradients = [value.grad for value in self.trained() if value.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        sound = norm.isfinite()
        self.unsound += ~sound
        share = (1.0 / norm).clamp(max=1.0)
        for gradient in gradients:
            gradient.copy_(torch.where(sound, gradient * share, 0.0))
        self.optimizer.step()
        return report

    def loss(self, batch: Mapping[str, Any], *, tower_alone: bool) -> tuple[Any, Any]:
        """The loss of a batch of tensors, and the report that :meth:`learn` returns."""
        import torch
        from torch.nn.functional import cross_entropy

        from qvlfp8.worker import batched

        plan, pictures = self.plan, batch["pictures"]
        size = (pictures.shape[1], pictures.shape[2])
        rows = slice(len(pictures), None) if tower_alone else slice(None)
        # Few CPUs are quick at BF16.
        cuda = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=cuda, cache_enabled=False):
            seen = batched.tower(self.weights, self.config, pictures)
            logits = batched.speak(
                self.weights, self.config, batch["ids"][rows], None if tower_alone else seen, size
            )
        spoken = cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), batch["labels"][rows, 1:].flatten(),
            ignore_index=lessons.IGNORED, label_smoothing=plan.smoothing,
        )  # fmt: skip
        told, hits = self._auxiliary(0, seen.features, batch["targets"])
        auxiliary = told
        if seen.first_layer is not None:
            auxiliary = plan.auxiliary * (told + self._auxiliary(1, seen.first_layer, batch["targets"])[0])
        shares = torch.stack(seen.shares)
        balance = torch.relu(math.log(plan.balance) - shares.log()).square().sum()
        total = spoken + auxiliary + plan.balance_weight * balance
        report = torch.cat([torch.stack([spoken, told, balance]), hits, shares]).detach()
        return total, report

    def _auxiliary(self, head: int, features: Any, targets: Any) -> tuple[Any, Any]:
        """Cross-entropy over all targets, and the share of each that is hit."""
        import torch
        from torch.nn.functional import cross_entropy, linear

        from qvlfp8.worker.batched import normed

        guesses = (
            linear(normed(features), self.heads[head])
            .flatten(0, 1)
            .split([*lessons.TARGETS.values()], dim=-1)
        )
        total, hits = 0.0, []
        for name, guess, wanted in zip(lessons.TARGETS, guesses, targets.flatten(1), strict=True):
            if name == "quarter" and head == 0:
                continue
            asked = (wanted != lessons.IGNORED).sum().clamp(min=1)
            lost = cross_entropy(guess, wanted, ignore_index=lessons.IGNORED, reduction="sum")
            total = total + lost / asked
            hits.append((guess.argmax(-1) == wanted).sum() / asked)
        return total, torch.stack(hits)


def _initial(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Weights of variance 1 / fan-in, the patch embedding's a hundredth of it, norms one, biases zero."""
    import torch

    source = torch.Generator().manual_seed(seed)
    model = from_config(config)
    weights = {}
    for name, shape in model.shapes.items():
        if name in model.optional:
            continue
        if len(shape) == 1:
            weights[name] = torch.zeros(shape) if name.endswith(".bias") else torch.ones(shape)
            continue
        scale = 1 / math.sqrt(math.prod(shape[1:]))
        if name == "visual.patch_embed.proj.weight":
            scale *= 0.1
        weights[name] = torch.randn(shape, generator=source) * scale
    return weights


def _rate(plan: Plan, step: int) -> float:
    left = (plan.steps - step) / (plan.fall * plan.steps)
    return plan.learning_rate * min(1.0, (step + 1) / plan.warm_up, left)


def _teach(pupil: _Pupil, plan: Plan, workers: int, *, graphs: bool) -> None:
    import torch

    learn = _Replayed(pupil) if graphs else pupil.learn
    started = time.monotonic()
    reports: dict[tuple[int, ...], Any] = {}
    for step, batch in enumerate(_batches(plan, workers)):
        pupil.set_rate(_rate(plan, step))
        moved = {name: value.to(pupil.device, non_blocking=True) for name, value in batch.items()}
        report = learn(moved, tower_alone=step < plan.tower_share * plan.steps)
        reports[lessons.size_of(plan.seed, step)] = report.clone()
        if step % 250 == 249 or step in {9, plan.steps - 1}:
            mean = torch.stack([*reports.values()]).mean(0).tolist()
            names = list(lessons.TARGETS)[:-1]
            told = " ".join(f"{n[:3]}{n[-4:]} {v:.2f}" for n, v in zip(names, mean[3:], strict=False))
            shares = " ".join(f"{value:.1f}" for value in mean[3 + len(names) :])
            print(
                f"step {step + 1} {time.monotonic() - started:.0f}s speech {mean[0]:.3f} told {mean[1]:.2f} "
                f"balance {mean[2]:.3f} [{told}] shares {shares} unsound {pupil.unsound.item()}",
                flush=True,
            )


def _batches(plan: Plan, workers: int) -> Iterable[dict[str, Any]]:
    """The lessons in order, drawn by worker processes."""
    import torch

    class Lessons(torch.utils.data.Dataset[dict[str, Any]]):  # type: ignore[misc]
        def __len__(self) -> int:
            return plan.steps

        def __getitem__(self, step: int) -> dict[str, Any]:
            batch = lessons.lesson(plan.seed, step, plan.pictures, plan.speeches)
            return {name: torch.from_numpy(value) for name, value in vars(batch).items()}

    cuda = torch.cuda.is_available()
    loader: Iterable[dict[str, Any]] = torch.utils.data.DataLoader(
        Lessons(), batch_size=None, num_workers=workers, pin_memory=cuda,
        prefetch_factor=4 if workers else None,
    )  # fmt: skip
    return loader


class _Replayed:
    """Learning as CUDA graphs: one for each shape of batch, captured when it first comes."""

    def __init__(self, pupil: _Pupil) -> None:
        self._pupil = pupil
        self._held: dict[tuple[object, ...], tuple[Any, Any, Any]] = {}
        self._begun = False

    def __call__(self, batch: Mapping[str, Any], *, tower_alone: bool) -> Any:
        """One step, as :meth:`_Pupil.learn`."""
        key = (tower_alone, batch["pictures"].shape)
        if key not in self._held:
            self._held[key] = self._capture(batch, tower_alone=tower_alone)
        graph, inputs, report = self._held[key]
        for name, value in batch.items():
            inputs[name].copy_(value)
        graph.replay()
        return report

    def _capture(self, batch: Mapping[str, Any], *, tower_alone: bool) -> tuple[Any, Any, Any]:
        """Record one step without changing what has been learned."""
        import torch

        inputs = {name: value.clone() for name, value in batch.items()}
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._pupil.loss(inputs, tower_alone=tower_alone)[0].backward()
            if not self._begun:
                self._begin()
        torch.cuda.current_stream().wait_stream(aside)
        self._pupil.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that pins the next batches' memory is no part of it.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            report = self._pupil.learn(inputs, tower_alone=tower_alone)
        return graph, inputs, report

    def _begin(self) -> None:
        """Make the optimizer's state, all zero: a graph can only use what is there."""
        optimizer = self._pupil.optimizer
        rate = self._pupil.rate.clone()
        self._pupil.rate.zero_()
        for value in self._pupil.trained():
            value.grad = value.grad if value.grad is not None else value.detach() * 0
        optimizer.step()
        self._pupil.rate.copy_(rate)
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
        self._begun = True


def score(
    weights: Mapping[str, Any], config: dict[str, Any], questions: tuple[Question, ...], device: Any
) -> dict[str, scores.Accuracy]:
    """Accuracy per task, as trained and broken in each way, by the batched forward pass."""
    import torch

    from qvlfp8.worker import batched

    cuda = device.type == "cuda"
    intact = {
        name: value.to(device).to(torch.bfloat16 if cuda else torch.float32)
        for name, value in weights.items()
    }
    strewn = shuffled_tower(intact)

    def say(pictures: Any, ids: Any, fault: scores.Fault) -> Any:
        held = strewn if fault.shuffled else intact
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            seen, size = None, (lessons.CELL, lessons.CELL)
            if pictures is not None:
                seen = batched.tower(held, config, torch.from_numpy(pictures).to(device), fault)
                size = pictures.shape[1:3]
            logits = batched.speak(held, config, torch.from_numpy(ids).to(device), seen, size)
        return logits.argmax(-1).cpu().numpy()

    return scores.table(questions, scores.faults(config["vision_config"]["depth"]), say)


def shuffled_tower(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights with the numbers of each tensor of the vision tower in random order."""
    import torch

    source = torch.Generator().manual_seed(0)

    def shuffled(value: Any) -> Any:
        order = torch.randperm(value.numel(), generator=source).to(value.device)
        return value.flatten()[order].view(value.shape)

    return {name: shuffled(value) if name.startswith("visual.") else value for name, value in weights.items()}
