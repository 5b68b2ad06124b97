"""A page of the records: the same records give the same page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.real_sizes.jobs import BF16, SPEED_RECIPES
from bench.real_sizes.records import Record, accelerator
from bench.real_sizes.sizes import SIZES

Table = Iterable[Sequence[str]]

INTRO = """\
# Real sizes, on GPUs

Random weights at the true dimensions of the published models, all layers, through every stage: made on the
GPU, quantized and exported by this project's worker with ModelOpt, served by vLLM. Made by
`python -m bench.real_sizes report` from the records beside this page;
[CONTRIBUTING](../../CONTRIBUTING.md#real-sizes) says how they are made.

Random weights speak nonsense: no answer is right. What is measured is that there are answers, that
log-probabilities change with the picture as BF16's do, how far they are from BF16's in the same vLLM on the
same words, and what it costs. How far a trained model's are is in the records of
[the model that sees](../README.md).
"""

FIDELITY = """\
Over the same forced words, of text and (after the picture) about pictures: KL divergence from BF16 in nats,
mean and 99th percentile, and how often the likeliest token is the same. Sight: what another picture changes,
in nats, and in BF16 (the same words; 0 would be blind)."""

SPEED = """\
Medians of repeated runs; in brackets, times BF16. Prefill: pictures with a question each, in one batch, one
token of answer: in the engine alone, and (whole) with the host's preparation of the pictures. Decode: tokens
a second over all sequences."""

BESIDE = """\
The worker, inspection of the checkpoint included, and a plain script of `from_pretrained`, `mtq.quantize` and
`export_hf_checkpoint` with the same calibration (`bench/plain_export.py`): whole processes in turns on an
idle host, medians. Bounds: 1.05 of the time, 1.1 of the host's memory."""

MOST_TIME, MOST_MEMORY = 1.05, 1.1


def render(found: Sequence[Record]) -> str:
    """The page, as Markdown."""
    parts = [INTRO]
    hosts = sorted({accelerator(record["host"]) for record in found})
    for host in hosts:
        here = [record for record in found if accelerator(record["host"]) == host]
        parts.append(f"## {_title(here)}\n")
        sizes = [name for name in SIZES if any(record["size"] == name for record in here)]
        for size in sizes:
            parts += _of_size(size, {(r["recipe"], r["kind"]): r for r in here if r["size"] == size})
    return "\n".join(parts).rstrip() + "\n"


def _title(here: Sequence[Record]) -> str:
    host = here[0]["host"]
    gpus = host["gpus"]
    if not gpus:
        return f"No GPU ({host['cpus']} CPUs)"
    return f"{gpus[0]['name']}, driver {gpus[0]['driver']}"


Found = Mapping[tuple[str, str], Record]


def _of_size(size: str, found: Found) -> Iterator[str]:
    recipes = sorted({recipe for recipe, _ in found}, key=lambda name: (name != BF16, name))
    model = found.get((BF16, "model"))
    about = f"### {size.upper()}: {SIZES[size].says}\n"
    if model is not None and model["status"] == "pass":
        about += (
            f"\n{model['measured']['parameters'] / 1e9:.2f} billion parameters. " + _versions(found) + "\n"
        )
    yield about
    yield from _section("Quantize and export", None, _quantized(recipes, found))
    yield from _section("In vLLM", FIDELITY, _answered(recipes, found))
    yield from _section("Speed", SPEED, _speed(found))
    yield from _section("Beside a plain script", BESIDE, _beside(found))
    notes = [
        f"- {recipe}, {kind}: {record['status']}: {_plain(record['why'] or '')}"
        for (recipe, kind), record in sorted(found.items())
        if record["status"] != "pass"
    ]
    if notes:
        yield "\n".join(("What is not a pass:\n", *notes)) + "\n"


def _versions(found: Found) -> str:
    """Versions of all environments that the records name."""
    named = {
        package: sorted(
            {str(r["environment"][package]) for r in found.values() if package in r["environment"]}
        )
        for package in ("modelopt", "vllm", "torch", "transformers")
    }
    return ", ".join(f"{package} {' and '.join(versions)}" for package, versions in named.items() if versions)


def _section(title: str, says: str | None, table: Table) -> Iterator[str]:
    head, *rows = table
    if not rows:
        return
    lines = [_row(head), _row(["---", *("---:" for _ in head[1:])]), *map(_row, rows)]
    yield f"#### {title}\n" + (f"\n{says}\n" if says else "") + "\n" + "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """The first line of a message, short, and harmless in a list."""
    first = text.strip().splitlines()[0] if text.strip() else ""
    return first[:240].replace("|", "\\|").replace("<", "&lt;")


def _quantized(recipes: Sequence[str], found: Found) -> Table:
    yield ("recipe", "load s", "calibrate s", "audit s", "export s", "in all s", "GPU GB", "host GB",
           "checkpoint GB", "inspected")  # fmt: skip
    for recipe in recipes:
        record = found.get((recipe, "quantize"))
        if record is None:
            continue
        measured, took = record["measured"], record["measured"].get("seconds", {})
        inspected = measured.get("inspected")
        yield (
            recipe,
            *(_number(took.get(phase)) for phase in ("load", "quantize", "audit", "export")),
            _number(measured.get("wall_seconds")),
            _gb(measured.get("peak_gpu_mb")),
            _gb(measured.get("peak_host_mb")),
            _number(record["checkpoint"]["bytes"] / 1e9) if record["checkpoint"] else record["status"],
            _inspected(inspected),
        )


def _inspected(inspected: Mapping[str, Any] | None) -> str:
    if inspected is None:
        return ""
    return ", ".join(sorted(inspected["counts"] or {})) or ("failed" if inspected["failure"] else "sound")


def _answered(recipes: Sequence[str], found: Found) -> Table:
    yield (
        *("recipe", "status", "load s", "weights GB", "KV cache", "text KL", "p99", "top-1"),
        *("picture KL", "p99", "top-1", "sight", "of BF16"),
    )
    for recipe in recipes:
        record = found.get((recipe, "answers"))
        if record is None:
            continue
        measured = record["measured"]
        fidelity = measured.get("fidelity") or {}
        yield (
            recipe,
            record["status"],
            _number(measured.get("load", {}).get("seconds")),
            _gb(measured.get("load", {}).get("weights_mb")),
            measured.get("kv_cache_dtype", ""),
            *(
                cell
                for kind in ("text", "picture")
                for cell in (
                    _number(fidelity.get(kind, {}).get("mean_kl"), 4),
                    _number(fidelity.get(kind, {}).get("p99_kl"), 3),
                    _percent(fidelity.get(kind, {}).get("top1_agreement")),
                )
            ),
            _number(measured.get("sight", {}).get("mean_kl"), 3),
            _number(measured.get("sight_of_bf16", {}).get("mean_kl"), 3),
        )


def _speed(found: Found) -> Table:
    """A row a checkpoint and mode; columns as the first record has them."""
    measured = {
        (recipe, kind): record["measured"]["speed"]
        for (recipe, kind), record in found.items()
        if kind.startswith("speed-") and "speed" in record["measured"]
    }
    first: Mapping[str, Any] = next(iter(measured.values()), {"prefill": [], "decode": []})
    yield (
        "recipe",
        "mode",
        "weights GB",
        *(f"{p['side']}² images/s{of}" for p in first["prefill"] for of in ("", ", whole")),
        *(f"tokens/s, batch {d['batch']}" for d in first["decode"]),
    )
    for kind in ("speed-compiled", "speed-eager"):
        base = _figures(measured.get((BF16, kind)))
        for recipe in SPEED_RECIPES:
            figures = _figures(measured.get((recipe, kind)))
            if not figures:
                continue
            yield (
                recipe,
                kind.removeprefix("speed-") + _at_once(found[recipe, kind]["measured"]),
                _gb(found[recipe, kind]["measured"]["load"]["weights_mb"]),
                *(
                    _number(value) + (f" ({value / base[n]:.2f})" if base and recipe != BF16 else "")
                    for n, value in enumerate(figures)
                ),
            )


def _at_once(measured: Mapping[str, Any]) -> str:
    gpus = measured.get("gpus_at_once", 1)
    return f", {gpus} GPUs at once" if gpus > 1 else ""


def _figures(speed: Mapping[str, Any] | None) -> list[float]:
    if speed is None:
        return []
    prefill = [p[of]["median"] for p in speed["prefill"] for of in ("engine", "whole")]
    return prefill + [d["tokens_per_second"]["median"] for d in speed["decode"]]


def _beside(found: Found) -> Table:
    yield (
        "recipe",
        "pairs",
        "worker s",
        "plain s",
        "ratio",
        "worker host GB",
        "plain host GB",
        "ratio",
        "within",
    )
    for (recipe, kind), record in sorted(found.items()):
        if kind != "beside" or record["status"] != "pass":
            continue
        took, memory = record["measured"]["seconds"], record["measured"]["peak_host_mb"]
        within = took["ratio"] <= MOST_TIME and memory["ratio"] <= MOST_MEMORY
        yield (
            recipe,
            str(len(record["measured"]["runs"]) // 2),
            _number(took["worker"]),
            _number(took["plain"]),
            f"{took['ratio']:.3f}",
            _gb(memory["worker"]),
            _gb(memory["plain"]),
            f"{memory['ratio']:.3f}",
            "yes" if within else "**no**",
        )


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _gb(megabytes: float | None) -> str:
    return "" if megabytes is None else f"{megabytes / 1000:.2f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
