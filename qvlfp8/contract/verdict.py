"""What a checkpoint is worth in each vLLM of the contract, and the same merged into ranges of versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from qvlfp8.contract.answers import NotRecorded
from qvlfp8.contract.data import Contract
from qvlfp8.contract.predict import predict
from qvlfp8.contract.subject import Subject
from qvlfp8.findings import Finding
from qvlfp8.structure import canonical, part_of

__all__ = ["Range", "Verdict", "Worth", "failing", "merged", "verdicts", "worth_of"]

Worth = Literal["works", "blind", "fails", "unknown"]
"""``works``: vLLM's loader takes all of it as meant. ``blind``: it loads and writes, and its vision tower is
not what the checkpoint holds. ``fails``: it is refused, or not loaded as it is meant. ``unknown``: nothing
was recorded that says so."""

_WORDS: dict[Worth, str] = {
    "works": "works",
    "blind": "works for text only, blind",
    "fails": "fails",
    "unknown": "not known",
}

_OF_A_TOWER = frozenset({"vision-exclusion-ignored", "scale-never-loaded", "cast-to-fp8"})
"""What a tower that is built in FP8 and never was quantized shows; all of it in the tower: blind."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one vLLM makes of a checkpoint; ``findings`` are those that count, most severe first.

    ``reason`` says what is not recorded.
    """

    environment: str
    vllm: str
    worth: Worth
    findings: tuple[Finding, ...] = ()
    reason: str | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """The findings' ids."""
        return tuple(finding.id for finding in self.findings)


@dataclass(frozen=True, kw_only=True)
class Range:
    """Neighbouring recorded versions with the same verdict for the same findings."""

    versions: tuple[str, ...]
    verdict: Verdict

    @property
    def words(self) -> str:
        """Such as ``0.10.2 to 0.12.0``."""
        first, last = self.versions[0], self.versions[-1]
        return first if first == last else f"{first} to {last}"

    @property
    def sentence(self) -> str:
        """The versions, the verdict, and why."""
        why = ", ".join(self.verdict.ids) or self.verdict.reason
        return f"{self.words}: {_WORDS[self.verdict.worth]}" + (f" ({why})" if why else "")

    @property
    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "versions": list(self.versions),
            "verdict": self.verdict.worth,
            "findings": list(self.verdict.ids),
        }


def verdicts(asked: Subject, contracts: Iterable[Contract]) -> list[Verdict]:
    """One for each contract, in their order."""
    return [_verdict(asked, contract) for contract in contracts]


def _verdict(asked: Subject, contract: Contract) -> Verdict:
    def verdict(worth: Worth, findings: Iterable[Finding] = (), reason: str | None = None) -> Verdict:
        return Verdict(
            environment=contract.environment,
            vllm=contract.vllm,
            worth=worth,
            findings=tuple(findings),
            reason=reason,
        )

    try:
        findings = predict(asked, contract)
    except NotRecorded as error:
        return verdict("unknown", reason=f"not recorded: {error}")
    if any(finding.severity == "error" for finding in findings):
        return verdict("unknown", reason="vLLM's loader does not say so without a GPU")
    return verdict(worth_of(findings), failing(findings))


def failing(findings: Iterable[Finding]) -> list[Finding]:
    """Those that count against a checkpoint."""
    return [finding for finding in findings if finding.severity == "fail"]


def worth_of(findings: Sequence[Finding]) -> Worth:
    """What a checkpoint with these findings is worth, none of them an error."""
    counting = failing(findings)
    if not counting:
        return "works"
    return "blind" if _is_blind(counting) else "fails"


def _is_blind(findings: Sequence[Finding]) -> bool:
    return all(
        finding.id in _OF_A_TOWER and all(_is_of_the_tower(line) for line in finding.evidence)
        for finding in findings
    )


def _is_of_the_tower(evidence: str) -> bool:
    # The first word is a tensor's or a parameter's name; the rest of a long list is of the same finding.
    return evidence.startswith("and ") or part_of(canonical(evidence.split(" ", maxsplit=1)[0])) == "vision"


def merged(found: Sequence[Verdict]) -> Iterator[Range]:
    """Merge neighbours; the order is that of the contracts, by version."""
    for _, group in groupby(found, key=lambda verdict: (verdict.worth, verdict.ids, verdict.reason)):
        same = list(group)
        yield Range(versions=tuple(dict.fromkeys(v.vllm for v in same)), verdict=same[0])
