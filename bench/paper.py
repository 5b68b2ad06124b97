"""10,000 cells on 64 GPUs, on paper: hours, bytes moved, and what the limit is, from committed records.

    python -m bench.paper > docs/scale.md

What is measured is read from `results/`; what is assumed stands in :class:`Assumed`, with the reason beside it.
Nothing here was run on 64 GPUs.
"""

# ruff: noqa: E501
# Its lines are sentences of the page.

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.real_sizes.records import Record as RealSize
from bench.real_sizes.records import read
from qvlfp8.kept import KeptRecords
from qvlfp8.results import Record

RESULTS = Path(__file__).parents[1] / "results"
ACCELERATOR = "nvidia-h200"
MODELS = ("3b", "7b")
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What no record says. ``WHY`` has the reason of each."""

    recipes: int = 25
    quantize: int = 10
    serve: int = 20
    gpus: int = 64
    gpus_a_node: int = 8
    cpus_a_node: int = 128
    gigabytes_a_second: float = 2.5
    image_gigabytes: float = 10.0
    import_seconds: float = 60.0
    lost: float = 0.05


WHY = {
    "recipes": "with 10 quantize environments and 2 models (3B, 7B): 500 checkpoints",
    "quantize": "versions of ModelOpt",
    "serve": "each serves every checkpoint: 10,000 cells; and the 2 unquantized models: 40 runs beside them",
    "gpus": "the question",
    "gpus_a_node": "as the servers that carry H100 and H200 mostly have",
    "cpus_a_node": "preflight runs on them, beside the GPUs",
    "gigabytes_a_second": "what one node reads from or writes to the store that all reach: 20 Gbit/s, shared fairly",
    "image_gigabytes": "an environment with CUDA's libraries, of which each node fetches each once",
    "import_seconds": "a loader's start, once a node and vLLM: preflight batches stay together",
    "lost": "of GPU time: idle at the end of each serve environment, and steps that are tried again",
}


@dataclass(frozen=True)
class Measured:
    """Of one size: seconds and bytes of a step, means over the recipes; ``images``: pictures a second, whole."""

    quantize: float
    run: float
    checkpoint: float
    model: float
    images: float
    recipes: int


def measured(size: str) -> Measured:
    """Read the records of one size."""
    folder = RESULTS / "real-sizes" / ACCELERATOR / size
    made = _passed(read(sorted(folder.glob("*~quantize.json"))))
    ran = _passed(read(sorted(folder.glob("*~answers.json"))))
    (model,) = read([folder / "bf16~model.json"])
    (speed,) = read([folder / "bf16~speed-compiled.json"])
    return Measured(
        quantize=_mean(record["seconds"] for record in made),
        run=_mean(record["seconds"] for record in ran),
        checkpoint=_mean(float((record["checkpoint"] or {})["bytes"]) for record in made),
        model=float((model["checkpoint"] or {})["bytes"]),
        images=float(speed["measured"]["speed"]["prefill"][0]["whole"]["median"]),
        recipes=len(made),
    )


def pictures() -> int:
    """How many pictures the exam of matrix.yaml shows a model, as a run of the small one was shown them."""
    path = RESULTS / ACCELERATOR / "vllm-0.26.0" / "vlm-fp8~modelopt-0.47.0~seeing-untied.json"
    answers = Record.model_validate_json(path.read_bytes()).measured["answers"]
    return sum(answer["sight"] + (answer["swapped_answer"] is not None) for answer in answers)


def _passed(records: list[RealSize]) -> list[RealSize]:
    return [record for record in records if record["status"] == "pass"]


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def preflight_seconds() -> tuple[float, int]:
    """Mean seconds of a loader's answer, and of how many that is."""
    found = [record.seconds for record in KeptRecords(RESULTS).records() if record.stage == "preflight"]
    return _mean(found), len(found)


def page(told: Assumed = Assumed()) -> str:
    """The page, computed."""
    return "\n".join(_lines(told)) + "\n"


def _lines(told: Assumed) -> Iterator[str]:
    sizes = {size: measured(size) for size in MODELS}
    loader, loaders = preflight_seconds()
    shown = pictures()
    made_of_each = told.recipes * told.quantize
    cells_of_each = made_of_each * told.serve
    cells = cells_of_each * len(MODELS)
    nodes = told.gpus // told.gpus_a_node
    yield from _head(told, sizes, loader, loaders)

    yield from ("## Hours", "", "| GPU work | steps | seconds each | GPU hours |", "|---|---:|---:|---:|")
    hours = 0.0
    for size, one in sizes.items():
        asked = shown / one.images
        for what, steps, seconds in (
            ("quantize", made_of_each, one.quantize),
            ("run in vLLM", cells_of_each, one.run + asked),
            ("run of BF16", told.serve, one.run + asked),
        ):
            hours += steps * seconds / 3600
            yield f"| {size.upper()}: {what} | {steps:,} | {seconds:.1f} | {steps * seconds / 3600:,.1f} |"
    whole = hours / told.gpus / (1 - told.lost)
    asking = ", ".join(f"{shown / one.images:.1f} s ({size.upper()})" for size, one in sizes.items())
    yield f"| together | | | {hours:,.1f} |"
    yield ""
    yield (
        "A run is what one took that was asked 40 things, and beside it the exam's "
        f"{shown} pictures of 448 x 448 at BF16's measured pace: {asking}."
    )
    yield (
        f"{hours:,.1f} GPU hours / {told.gpus} GPUs / (1 - {told.lost}) = **{whole:.1f} hours**. "
        f"The longest chain is one quantize and one run: {max(o.quantize + o.run for o in sizes.values()) / 60:.1f} "
        "minutes, so that it sets no limit."
    )
    preflights = cells * loader + nodes * told.serve * told.import_seconds
    yield (
        f"Preflight needs no GPU: {cells:,} x {loader:.2f} s + {nodes} nodes x {told.serve} starts x "
        f"{told.import_seconds:.0f} s = {preflights / 3600:.1f} CPU hours, beside the GPUs, on "
        f"{nodes * told.cpus_a_node:,} CPUs: no limit."
    )
    yield from ("", "## Bytes", "", "| what moves | how often | GB each | TB |", "|---|---:|---:|---:|")
    near = far = 0.0
    for size, one in sizes.items():
        rows = (
            (f"{size.upper()}: checkpoints written", made_of_each, made_of_each, one.checkpoint),
            (f"{size.upper()}: checkpoints read", made_of_each * nodes, cells_of_each, one.checkpoint),
            (f"{size.upper()}: the model read", nodes, made_of_each + told.serve, one.model),
        )
        for what, often, most, nbytes in rows:
            near, far = near + often * nbytes, far + most * nbytes
            yield f"| {what} | {often:,} | {nbytes / GB:.2f} | {often * nbytes / 1e12:.2f} |"
    images = nodes * (told.serve + told.quantize)
    near, far = near + images * told.image_gigabytes * GB, far + images * told.image_gigabytes * GB
    yield f"| environments | {images:,} | {told.image_gigabytes:.0f} | {images * told.image_gigabytes / 1e3:.2f} |"
    yield f"| together | | | {near / 1e12:.1f} |"
    rate = nodes * told.gigabytes_a_second * GB
    kept = sum(made_of_each * one.checkpoint for one in sizes.values())
    yield ""
    yield (
        f"Each node reads each checkpoint once and keeps it: {near / 1e12:.1f} TB / ({nodes} x "
        f"{told.gigabytes_a_second} GB/s) = {near / rate / 3600:.1f} hours. Were it read anew for each cell, it would be "
        f"{far / 1e12:.1f} TB and {far / rate / 3600:.1f} hours. The store holds {kept / 1e12:.1f} TB of checkpoints, and so "
        "does each node's disk."
    )
    yield from ("", "## The limit", "")
    yield (
        f"GPU time: {whole:.1f} hours, against {near / rate / 3600:.1f} hours of transfers that run beside it "
        f"({far / rate / 3600:.1f} where no node keeps what it read). Of the seconds that a run of 7B took, "
        f"{_share_of_start():.0%} went into importing vLLM, in which the GPU does nothing: what would help most is to "
        "import once for several checkpoints, which one process for a batch could."
    )
    yield (
        f"Transfers would become the limit below {near / (whole * 3600) / nodes / GB:.2f} GB/s a node, or "
        f"{far / (whole * 3600) / nodes / GB:.2f} GB/s without keeping. What planning such a matrix, a rerun and the "
        "report cost on one machine, `python -m bench.scale` measures (CONTRIBUTING has the figures)."
    )


def _share_of_start() -> float:
    """Of the runs of 7B: the share of a run that importing takes."""
    folder = RESULTS / "real-sizes" / ACCELERATOR / "7b"
    ran = _passed(read(sorted(folder.glob("*~answers.json"))))
    return _mean(record["environment"]["import_seconds"] / record["seconds"] for record in ran)


def _head(told: Assumed, sizes: dict[str, Measured], loader: float, loaders: int) -> Iterator[str]:
    yield from (
        "# 10,000 cells on 64 GPUs, on paper",
        "",
        "Computed by `python -m bench.paper > docs/scale.md` from the records in `results/`; nothing here was run on 64 GPUs.",
        "",
        "## Measured",
        "",
        "On an NVIDIA H200, random weights at true dimensions ([results/real-sizes](../results/real-sizes/README.md)): means over the recipes that passed, whole processes with their start.",
        "",
        "| | recipes | quantize s | run in vLLM s | checkpoint GB | model GB | pictures a second |",
        "|---|---:|---:|---:|---:|---:|---:|",
    )
    for size, one in sizes.items():
        yield (
            f"| {size.upper()} | {one.recipes} | {one.quantize:.1f} | {one.run:.1f} | {one.checkpoint / GB:.2f} | "
            f"{one.model / GB:.2f} | {one.images:.1f} |"
        )
    yield from (
        "",
        f"Preflight: {loader:.2f} s, the mean of {loaders:,} loaders' answers on 2 CPUs about the small model (`results/loaders/`). It loads no weights; a real size has more tensors, and was not measured.",
        "",
        "## Assumed",
        "",
        "| | | why |",
        "|---|---:|---|",
    )
    for name, why in WHY.items():
        yield f"| {name.replace('_', ' ')} | {getattr(told, name):g} | {why} |"
    yield ""


if __name__ == "__main__":
    sys.stdout.write(page())
