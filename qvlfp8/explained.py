"""The answer to ``qvlfp8 explain`` about one checkpoint: asked, refused, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from qvlfp8 import checkpoint
from qvlfp8.contract.asked import asked_for
from qvlfp8.contract.data import load_all
from qvlfp8.describe import Described, look
from qvlfp8.describe import as_json as described_as_json
from qvlfp8.errors import CheckpointError, UnknownModelError
from qvlfp8.explain import Explanation, Mend, covered, explain

__all__ = ["NOT", "WORKS", "as_json", "ask", "not_a_checkpoint", "of_folder", "refusal"]

WORKS, NOT = 0, 1
"""Exit codes of a checkpoint that is explained."""


def of_folder(folder: Path) -> Described:
    """Describe a folder of this machine.

    Raises:
        CheckpointError: it is not a readable checkpoint.
        UnknownModelError: a kind that the project does not know.
    """
    try:
        return look(checkpoint.read(folder))
    except checkpoint.NotACheckpoint as error:
        raise not_a_checkpoint(error) from None


def not_a_checkpoint(error: checkpoint.NotACheckpoint) -> CheckpointError:
    """Say the same as an error of the command line."""
    return CheckpointError(f"{error.file}: {error.problem}", mend=error.mend)


def ask(described: Described, *, source: str, vllm: str | None, values: bool) -> Explanation:
    """Ask the contract, or the records of forms, about the versions that ``vllm`` specifies.

    Args:
        described: the checkpoint.
        source: what the user calls it; commands name it so.
        vllm: a version specifier, or None for all that are recorded.
        values: whether values of scales can be read.

    Raises:
        UsageError: ``vllm`` is no specifier, or holds for no recorded version.
    """
    if covered(described):
        return explain(described, asked_for(load_all(), vllm, option="--vllm"), source=source, values=values)
    # Imported where used: most questions need neither, and each costs milliseconds.
    from qvlfp8.contract import form_data
    from qvlfp8.explain_form import explain_form

    return explain_form(described, asked_for(form_data.load_all(), vllm, option="--vllm"))


def refusal(found: Explanation, source: str) -> UnknownModelError | None:
    """What to end with after it was said what the checkpoint is, if nothing is known of any version."""
    if found.known:
        return None
    return UnknownModelError(
        f"{source}: what vLLM makes of such a checkpoint was not recorded: {found.verdicts[0].reason}",
        mend="known are the forms that ModelOpt and llm-compressor write; this says what it is",
    )


def as_json(found: Explanation) -> dict[str, Any]:
    """Give the explanation as JSON values: what ``--json`` prints."""
    return {
        "checkpoint": described_as_json(found.described.description),
        "works": found.works,
        "versions": [
            {
                "vllm": verdict.vllm,
                "environment": verdict.environment,
                "verdict": verdict.worth,
                "findings": [asdict(finding) for finding in verdict.findings],
                "reason": verdict.reason,
            }
            for verdict in found.verdicts
        ],
        "ranges": [span.as_json for span in found.ranges],
        "faults": [asdict(fault) for fault in found.faults],
        "mend": None if found.mend is None else _mend_as_json(found.mend),
    }


def _mend_as_json(mend: Mend) -> dict[str, Any]:
    return {
        "command": mend.command,
        "changes": list(mend.changes),
        "afterwards": [span.as_json for span in mend.afterwards],
        "instead": None if mend.instead is None else _mend_as_json(mend.instead),
        "refused": mend.refused,
        "served": mend.served,
    }
