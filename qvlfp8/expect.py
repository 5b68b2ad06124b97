"""Expectations against records: strict in both directions. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from qvlfp8.cells import Cell, Expectation
from qvlfp8.report.table import StageView


def surprise(
    cell: Cell, view: StageView, expected: Sequence[Expectation], *, blocked_as_expected: bool
) -> str | None:
    """What is not as expected about one stage of one cell, with the cause and the mend; or None.

    Args:
        expected: the findings that the stage has to show, all of them and no other; empty for a pass.
        blocked_as_expected: an earlier stage of the cell was expected to fail, so that this one
            could not be executed.
    """
    subject = f"{cell.subject(view.stage)} · {view.stage}"
    match view.status:
        case "pass" | "fail":
            return _compare(subject, cell, view, expected)
        case "error":
            return f"{subject}: could not be executed: {view.because}"
        case "stale":
            if view.excused:
                return None
            return f"{subject}: stale: {view.because}\n  mend: nox -s matrix -- --only '{cell.id}'"
        case "blocked":
            return None if blocked_as_expected else f"{subject}: blocked by {view.because}"
        case "not run":
            if blocked_as_expected or view.excused:
                return None
            return f"{subject}: not run\n  mend: nox -s matrix -- --only '{cell.id}'"


def unshown(view: StageView, expected: Sequence[Expectation]) -> list[Expectation]:
    """The expectations whose finding has to show at a stage that was executed, and does not."""
    return [e for e in expected if not e.flaky and e.shows[view.stage] not in view.findings]


def _compare(subject: str, cell: Cell, view: StageView, expected: Sequence[Expectation]) -> str | None:
    wanted = {e.shows[view.stage]: e.reason for e in expected}
    missing = [e.shows[view.stage] for e in unshown(view, expected)]
    extra = [finding for finding in view.findings if finding not in wanted]
    unexplained = view.status == "fail" and not view.findings
    if not missing and not extra and not unexplained:
        return None
    lines = []
    if missing:
        lines.append(f"{subject}: did not show {', '.join(f'{f} ({wanted[f]})' for f in missing)}")
        lines.append("  mend: if that is right, narrow or remove the expectation in matrix.yaml")
    if extra or unexplained:
        lines.append(f"{subject}: not expected: {view.because or 'a failure without a finding'}")
    lines += [f"  mend: if that is right, add to `expectations`: {suggestion(cell, view, f)}" for f in extra]
    return "\n".join(lines)


def suggestion(cell: Cell, view: StageView, finding: str) -> str:
    """The line of matrix.yaml that would expect a finding."""
    return f'- {{cells: "{cell.subject(view.stage)}", shows: {{{view.stage}: {finding}}}, reason: "…"}}'
