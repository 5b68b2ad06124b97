"""Expectations against records: strict in both directions. Pure."""

from __future__ import annotations

from qvlfp8.matrix import Cell, Expectation
from qvlfp8.report.table import StageView


def surprise(
    cell: Cell, view: StageView, expected: Expectation | None, *, blocked_as_expected: bool
) -> str | None:
    """What is not as expected about one stage of one cell, with the cause and the mend; or None.

    Args:
        blocked_as_expected: an earlier stage of the cell was expected to fail, so that this one
            could not be executed.
    """
    subject = f"{cell.id if view.stage == 'preflight' else cell.checkpoint} · {view.stage}"
    match view.status:
        case "pass":
            if expected is None:
                return None
            return (
                f"{subject}: passed, but matrix.yaml expects {expected.finding} ({expected.reason})\n"
                "  mend: if the pass is right, narrow or remove that expectation"
            )
        case "fail":
            if expected is not None and expected.finding in view.findings:
                return None
            wanted = f"finding {expected.finding}" if expected else "a pass"
            return (
                f"{subject}: expected {wanted}, found {view.because}\n"
                f"  mend: if that is right, add to `expectations` in matrix.yaml: {suggestion(cell, view)}"
            )
        case "error":
            return f"{subject}: could not be executed: {view.because}"
        case "stale":
            return f"{subject}: stale: {view.because}\n  mend: nox -s matrix -- --only '{cell.id}'"
        case "blocked":
            return None if blocked_as_expected else f"{subject}: blocked by {view.because}"
        case "not run":
            return (
                None
                if blocked_as_expected
                else f"{subject}: not run\n  mend: nox -s matrix -- --only '{cell.id}'"
            )


def suggestion(cell: Cell, view: StageView) -> str:
    """The line of matrix.yaml that would expect what was found."""
    finding = view.findings[0] if view.findings else "unknown"
    cells = cell.id if view.stage == "preflight" else cell.checkpoint
    return f'- {{cells: "{cells}", stage: {view.stage}, finding: {finding}, reason: "…"}}'
