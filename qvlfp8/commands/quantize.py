"""``qvlfp8 quantize``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from qvlfp8 import dataset, single
from qvlfp8.engine.choose import EngineName, make_engine
from qvlfp8.errors import QvlError, UsageError
from qvlfp8.project import Project
from qvlfp8.report.progress import ConsoleProgress


class InspectionError(QvlError):
    """A checkpoint was made that does not pass inspection."""


def run_quantize(
    matrix: Path,
    store: Path | None,
    recipe: str,
    model: str,
    out: Path,
    environment: str | None,
    options: dataset.Options = dataset.NONE,
    *,
    hf_ptq: Path | None = None,
    time_limit: float,
    engine: EngineName,
    verbose: bool,
) -> None:
    """Quantize the user's model.

    Raises:
        QvlError: by class; ``out`` is then not there.
    """
    console = Console(stderr=True)
    project = Project.open(matrix, store)
    request = single.prepare(project, recipe, model, out, environment, options, hf_ptq)
    if engine == "docker":
        _refuse_what_must_be_fetched(request)
    with ExitStack() as stack:
        stack.enter_context(project.store.locked())
        progress = stack.enter_context(ConsoleProgress(console, verbose=verbose))
        running_in = make_engine(
            engine, project.store, project.matrix.file.locks, announce=progress.announce, offline=False
        )
        try:
            record = single.quantize(
                request, running_in, project.store, time_limit_s=time_limit, progress=progress
            )
        except BaseException:
            running_in.stop()
            raise
    if record.status != "pass":
        raise InspectionError(
            f"{out}: made, but it does not pass inspection: {record.because()}",
            mend="do not serve it; the record in the folder lists every finding",
        )
    size = f"{record.measured['tensors']} tensors, {record.measured['bytes'] / 1e6:.1f} MB"
    shown = _shown(record.measured["quantize"]["calibration"])
    console.print(f"{out}: {size}; {shown}", markup=False, highlight=False, soft_wrap=True)


def _refuse_what_must_be_fetched(request: single.Request) -> None:
    absent = "not in the hub's cache, and a container has no network to fetch it"
    if not single.model_folder(request.model).is_dir():
        raise UsageError(
            f"{request.model}: {absent}",
            mend=f"`hf download {request.model}` first, or name a folder (--model)",
        )
    chosen = request.dataset
    if chosen and chosen.hub_id and not chosen.reads[0].is_dir():
        raise UsageError(
            f"--dataset hub:{chosen.hub_id}: {absent}",
            mend=f"`hf download --repo-type dataset {chosen.hub_id}` first, or name files (data:PATH)",
        )


def _shown(calibration: Mapping[str, Any]) -> str:
    if calibration["modality"] == "none":
        return "nothing to calibrate"
    counts = "calibrated on " + ", ".join(
        f"{calibration[what]} {what}" for what in ("samples", "images", "tokens")
    )
    if (found := calibration.get("dataset")) is None:
        return f"{counts} of the recipe's own"
    skipped = ", ".join(f"{count} x {reason}" for reason, count in sorted(found["skipped"].items()))
    return f"{counts} of {found['source']}; skipped: {skipped or 'none'}"
