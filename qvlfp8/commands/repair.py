"""``qvlfp8 repair``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from qvlfp8 import checkpoint, repair
from qvlfp8.contract.asked import asked_for
from qvlfp8.contract.data import load_all
from qvlfp8.contract.subject import subject
from qvlfp8.contract.verdict import Range, Verdict, merged, verdicts
from qvlfp8.errors import CheckpointError, RepairError, UnknownModelError, UsageError
from qvlfp8.mending import Link, carry_out
from qvlfp8.quantization import UnknownQuantization
from qvlfp8.structure import UnknownModel
from qvlfp8.untrusted import collection_paused, printable


def run_repair(
    source: Path,
    out: Path,
    *,
    base: Path | None,
    without_kv_cache: bool,
    wanted: str | None,
    link: Link,
    as_json: bool,
) -> None:
    """Mend ``source`` into ``out``, and say what was changed and what each vLLM makes of it.

    With ``wanted``, a specifier of vLLM versions, the language model's KV cache is given up if it takes that,
    and a checkpoint that would not work in all of them is not made.

    Raises:
        QvlError: by class; ``out`` is then not there.
    """
    if base is not None and not base.is_dir():
        raise UsageError(f"{base}: no such folder", mend="name the unquantized model's folder (--base)")
    contracts = asked_for(load_all(), wanted, option="--for")
    try:
        with collection_paused():
            held = checkpoint.read(source)
            planned = repair.plan(held, base=base, without_kv_cache=without_kv_cache)
            found = verdicts(subject(planned.mended), contracts)
            if wanted is not None and not _works(found):
                planned = repair.plan(held, base=base, without_kv_cache=True)
                found = verdicts(subject(planned.mended), contracts)
    except checkpoint.NotACheckpoint as error:
        raise CheckpointError(f"{printable(str(error.file))}: {error.problem}", mend=error.mend) from None
    except UnknownModel as error:
        raise UnknownModelError(f"{source / 'config.json'}: {error}", mend="use a Qwen2.5-VL") from None
    except UnknownQuantization as error:
        raise UnknownModelError(
            f"{source}: its quantization configuration: {error}", mend="use an FP8 export of ModelOpt"
        ) from None
    spans = list(merged(found))
    if wanted is not None and not _works(found):
        first = next(span for span in spans if span.verdict.worth != "works")
        raise RepairError(
            f"{source}: mended, in vLLM {first.sentence}",
            mend="ask for other versions (--for), or quantize again",
        )
    if not planned.changes:
        _say_nothing_to_do(source, spans, as_json=as_json)
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("", total=held.nbytes)
        report = carry_out(planned, out, link=link, advance=lambda n: progress.advance(task, n))
    if as_json:
        print(json.dumps({**report, "vllm": [span.as_json for span in spans]}, indent=1))
        return
    console = Console(highlight=False)
    for change in planned.changes:
        console.print(f"  {change}", markup=False, soft_wrap=True)
    for name, done in report["weights"].items():
        digest = done.get("sha256_of_kept") or done.get("sha256")
        verified = f", bytes verified: sha256 {digest}" if digest else ""
        console.print(f"  {name}: {done['action']}{verified}", markup=False, soft_wrap=True)
    console.print(f"{out}: mended", markup=False, soft_wrap=True)
    for span in spans:
        console.print(f"  in vLLM {span.sentence}", markup=False, soft_wrap=True)


def _works(found: Sequence[Verdict]) -> bool:
    return all(verdict.worth == "works" for verdict in found)


def _say_nothing_to_do(source: Path, spans: Sequence[Range], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"changes": [], "vllm": [span.as_json for span in spans]}))
        return
    print(f"{source}: nothing to mend; nothing was written")
    for span in spans:
        print(f"  in vLLM {span.sentence}")
