"""What a checkpoint is worth in every vLLM of the contract, and the smallest mend: pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from qvlfp8 import conformance, repair
from qvlfp8.checkpoint import Checkpoint, NotACheckpoint
from qvlfp8.conformance import Case
from qvlfp8.contract.data import Contract
from qvlfp8.contract.subject import subject
from qvlfp8.contract.verdict import Range, Verdict, merged, verdicts
from qvlfp8.declared import UnknownDeclaration
from qvlfp8.describe import Described
from qvlfp8.errors import RepairError
from qvlfp8.quantization import UnknownQuantization
from qvlfp8.structure import UnknownModel

__all__ = ["Explanation", "Fault", "Mend", "covered", "explain", "faults_of"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with a checkpoint whatever serves it: a finding's id, how often, and the first case."""

    finding: str
    count: int
    first: str


@dataclass(frozen=True, kw_only=True)
class Mend:
    """What to do: the exact ``command`` if there is one, and what the mended checkpoint is worth then.

    ``made`` is what it would be; ``instead``: a mend that takes more away, and works in more versions.
    ``refused``: why only quantizing again helps. ``served``: what to do where repair does not know the kind.
    """

    command: str | None = None
    changes: tuple[str, ...] = ()
    afterwards: tuple[Range, ...] = ()
    made: Checkpoint | None = None
    instead: Mend | None = None
    refused: str | None = None
    served: str | None = None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A described checkpoint with one verdict for each version asked for; oldest first.

    ``mend`` is None where nothing has to be done.
    """

    described: Described
    verdicts: tuple[Verdict, ...]
    faults: tuple[Fault, ...]
    mend: Mend | None

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The verdicts merged."""
        return tuple(merged(self.verdicts))

    @property
    def known(self) -> bool:
        """Whether anything is known of any version asked for."""
        return any(verdict.worth != "unknown" for verdict in self.verdicts)

    @property
    def works(self) -> bool:
        """Whether it works in all versions asked for, and nothing else is wrong with it."""
        return not self.faults and all(verdict.worth == "works" for verdict in self.verdicts)


def covered(described: Described) -> bool:
    """Whether the contract was recorded for checkpoints of this kind."""
    kinds = {"none", "modelopt-fp8", "modelopt-kv-cache-only"}
    return described.description.family == "qwen2_5_vl" and described.description.method in kinds


def explain(
    described: Described, contracts: Sequence[Contract], *, source: str, values: bool = True
) -> Explanation:
    """Explain a checkpoint of a kind that is :func:`covered`.

    Args:
        described: the checkpoint.
        contracts: of the versions asked for, oldest first.
        source: what the user calls it; commands name it so.
        values: whether the values of scales can be read (not of a checkpoint on the hub).
    """
    held = described.checkpoint
    found = verdicts(subject(held), contracts)
    faults = tuple(faults_of(described, values=values))
    explanation = Explanation(described=described, verdicts=tuple(found), faults=faults, mend=None)
    if explanation.works or described.description.method == "none":
        return explanation
    return replace(explanation, mend=_mend(explanation, contracts, source))


_BEYOND_REPAIR = frozenset({"scale-not-finite", "scale-not-positive"})
"""Faults that repair refuses, and that are not seen in headers."""


def _mend(explanation: Explanation, contracts: Sequence[Contract], source: str) -> Mend:
    """The smallest mend after which more versions work."""
    for fault in explanation.faults:
        if fault.finding in _BEYOND_REPAIR:
            return Mend(refused=f"{fault.first} [{fault.finding}]")
    held = explanation.described.checkpoint
    mends: list[Mend] = []
    refused = None
    for without_kv_cache in (False, True):
        try:
            planned = repair.plan(held, without_kv_cache=without_kv_cache, headers_only=True)
        except (RepairError, UnknownModel, UnknownQuantization) as error:
            refused = refused or f"{error}"
            continue
        if mends and planned.mended == mends[0].made:
            continue
        mends.append(
            Mend(
                command=_command(explanation, source, without_kv_cache=without_kv_cache),
                changes=planned.changes,
                afterwards=tuple(merged(verdicts(subject(planned.mended), contracts))),
                made=planned.mended,
            )
        )
    before = _working(merged(explanation.verdicts))
    helpful = [mend for mend in mends if explanation.faults or _working(mend.afterwards) > before]
    if not helpful:
        return Mend(refused=refused or "no repair makes it work in more of these versions")
    first, last = helpful[0], helpful[-1]
    return replace(first, instead=last) if _working(last.afterwards) > _working(first.afterwards) else first


def _working(spans: Iterable[Range]) -> int:
    return sum(len(span.versions) for span in spans if span.verdict.worth == "works")


def _command(explanation: Explanation, source: str, *, without_kv_cache: bool) -> str:
    words = ["qvlfp8", "repair", source, f"{Path(source).name}-mended"]
    words += ["--without-kv-cache"] if without_kv_cache else []
    words += ["--base", "BASE_MODEL"] if explanation.described.description.missing_files else []
    return shlex.join(words)


def faults_of(described: Described, *, values: bool) -> list[Fault]:
    """What inspect finds without a recipe, apart from what the verdicts say already.

    Nothing of a kind of which it is not known here what it must hold.
    """
    case = Case(described.checkpoint, described.structure, described.declaration)
    try:
        _ = case.stored
    except UnknownDeclaration:
        return []
    checks: list[Callable[[Case], object]] = [
        conformance.check_both_configs, conformance.check_structure, conformance.check_linears,
    ]  # fmt: skip
    problems = [problem for check in checks for problem in check(case)]  # type: ignore[attr-defined]
    problems += conformance.check_kv_scales(case, calibrated=False)
    problems += conformance.check_foreign(case)
    if values:
        with suppress(NotACheckpoint):
            problems += conformance.check_scale_values(case)
    said = {"stray-vision-kv-scale"}
    problems = sorted((p for p in problems if p.finding not in said), key=lambda p: p.finding)
    return [
        Fault(finding=finding, count=len(same), first=f"{same[0].subject}: {same[0].detail}")
        for finding, group in groupby(problems, key=lambda problem: problem.finding)
        for same in (list(group),)
    ]
