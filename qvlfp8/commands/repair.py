"""``qvlfp8 repair``."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from qvlfp8 import checkpoint, repair
from qvlfp8.errors import CheckpointError, UnknownModelError, UsageError
from qvlfp8.mending import Link, carry_out
from qvlfp8.quantization import UnknownQuantization
from qvlfp8.structure import UnknownModel
from qvlfp8.untrusted import collection_paused, printable


def run_repair(
    source: Path, out: Path, *, base: Path | None, without_kv_cache: bool, link: Link, as_json: bool
) -> None:
    """Mend ``source`` into ``out``, and say what was changed.

    Raises:
        QvlError: by class; ``out`` is then not there.
    """
    if base is not None and not base.is_dir():
        raise UsageError(f"{base}: no such folder", mend="name the unquantized model's folder (--base)")
    try:
        with collection_paused():
            held = checkpoint.read(source)
            planned = repair.plan(held, base=base, without_kv_cache=without_kv_cache)
    except checkpoint.NotACheckpoint as error:
        raise CheckpointError(f"{printable(str(error.file))}: {error.problem}", mend=error.mend) from None
    except UnknownModel as error:
        raise UnknownModelError(f"{source / 'config.json'}: {error}", mend="use a Qwen2.5-VL") from None
    except UnknownQuantization as error:
        raise UnknownModelError(
            f"{source}: its quantization configuration: {error}", mend="use an FP8 export of ModelOpt"
        ) from None
    if not planned.changes:
        _say_nothing_to_do(source, as_json=as_json)
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("", total=held.nbytes)
        report = carry_out(planned, out, link=link, advance=lambda n: progress.advance(task, n))
    if as_json:
        print(json.dumps(report, indent=1))
        return
    console = Console(highlight=False)
    for change in planned.changes:
        console.print(f"  {change}", markup=False, soft_wrap=True)
    for name, done in report["weights"].items():
        digest = done.get("sha256_of_kept") or done.get("sha256")
        verified = f", bytes verified: sha256 {digest}" if digest else ""
        console.print(f"  {name}: {done['action']}{verified}", markup=False, soft_wrap=True)
    console.print(f"{out}: mended", markup=False, soft_wrap=True)


def _say_nothing_to_do(source: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"changes": []}))
    else:
        print(f"{source}: nothing to mend; nothing was written")
