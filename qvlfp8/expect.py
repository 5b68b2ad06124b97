"""Expectations against records: strict in both directions. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from qvlfp8.cells import OF_CHECKPOINT, Cell, Expectation, Stage
from qvlfp8.report.table import StageView


def surprise(
    cell: Cell,
    view: StageView,
    expected: Sequence[Expectation],
    *,
    blocked_as_expected: bool,
    options: str = "",
) -> str | None:
    """What is not as expected about one stage of one cell, with the cause and the mend; or None.

    Args:
        expected: the findings that the stage has to show, all of them and no other; empty for a pass.
        blocked_as_expected: an earlier stage of the cell was expected to fail, so that this one
            could not be executed.
        options: of the command line that belong to these records; the command that corrects has them, too.
    """
    subject = f"{cell.subject(view.stage)} · {view.stage}"
    match view.status:
        case "pass" | "fail":
            return _compare(subject, cell, view, expected, options)
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


def unexpected(view: StageView, expected: Sequence[Expectation]) -> list[str]:
    """The findings that a stage shows, and that no expectation names."""
    named = {e.shows[view.stage] for e in expected}
    return [finding for finding in view.findings if finding not in named]


def _compare(
    subject: str, cell: Cell, view: StageView, expected: Sequence[Expectation], options: str
) -> str | None:
    wanted = {e.shows[view.stage]: e.reason for e in expected}
    missing = [e.shows[view.stage] for e in unshown(view, expected)]
    extra = unexpected(view, expected)
    unexplained = view.status == "fail" and not view.findings
    if not missing and not extra and not unexplained:
        return None
    command = partial(correction, cell.subject(view.stage), view.stage, options=options)
    lines = []
    if missing:
        lines.append(f"{subject}: did not show {', '.join(f'{f} ({wanted[f]})' for f in missing)}")
        lines += [f"  mend: if that is right: {command(finding, is_new=False)}" for finding in missing]
    if extra or unexplained:
        lines.append(f"{subject}: not expected: {view.because or 'a failure without a finding'}")
    lines += [f"  mend: if that is right: {command(finding, is_new=True)}" for finding in extra]
    return "\n".join(lines)


def correction(subject: str, stage: Stage, finding: str, *, is_new: bool, options: str = "") -> str:
    """The command that makes matrix.yaml say what a finding's records say.

    Args:
        is_new: it shows without being expected, and its reason is for a person to give.
        options: of the command line that belong to these records, such as `` --store DIR``.
    """
    glob = f"{subject}/*" if stage in OF_CHECKPOINT else subject
    reason = " --reason 'WHY IT SHOWS'" if is_new else ""
    return f"qvlfp8 expect update '{glob}' --stage {stage} --finding {finding}{reason}{options}"
