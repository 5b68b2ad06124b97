"""Records: what an executed stage measured. Immutable, one JSON file each; every view derives from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints
from pydantic_core import from_json

from qvlfp8.yamlfile import Strict

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

Recorded = Literal["pass", "fail", "error"]
"""What an executed stage can end as. ``error`` is the machine's fault, never the checkpoint's."""

Status = Literal["pass", "fail", "error", "stale", "blocked", "not run"]
"""What a stage of a cell is shown as; the last three are derived, never recorded."""

RecordedStage = Literal["build", "model", "quantize", "inspect", "preflight", "generate", "truth"]
"""What is executed. ``generate`` is one run of vLLM, which answers the stages load to speed; ``truth`` the
runs of vLLM that test the oracle in one environment."""


class Finding(Strict):
    """A diagnosed cause with a stable id, and what was seen. A ``note`` does not fail the stage."""

    id: str
    severity: Literal["fail", "note"] = "fail"
    summary: str
    evidence: tuple[str, ...] = ()


class Fault(Strict):
    """Why a stage ended without its measurement."""

    kind: str
    message: str
    where: str | None = None


class Attempt(Strict):
    """An earlier try of a step, which ended in an error: the machine's fault."""

    started: str
    seconds: float
    fault: Fault
    where: str | None = None
    """The node of a cluster that it ran on."""


class Host(Strict):
    """The machine that executed a stage."""

    machine: str
    system: str
    cpus: int
    memory_gb: float
    accelerator: str | None = None


class Record(Strict):
    """One executed stage. ``digest`` is its input digest, the key it is stored under."""

    version: Literal[1] = 1
    stage: RecordedStage
    subject: str
    digest: Digest
    status: Recorded
    inputs: dict[str, Any]
    environment: dict[str, Any] = Field(default_factory=dict)
    host: Host
    started: str
    seconds: float
    measured: dict[str, Any] = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    fault: Fault | None = None
    repeat: str
    made: Digest | None = None
    """Digest of the files that the stage made: a model, a checkpoint."""
    read: dict[str, Digest] = Field(default_factory=dict)
    """Step digest -> digest of the files of that step which this one read."""
    attempts: tuple[Attempt, ...] | None = None
    """The earlier tries of a step that a cluster tried again."""
    evidence: Digest | None = None
    """Key under which the record can stand, committed, for a step that was executed elsewhere."""
    log: str | None = None
    log_digest: Digest | None = None
    qvlfp8: str

    @property
    def elsewhere(self) -> bool:
        """Whether it was executed on another machine: it read nothing of this store."""
        return self.stage in {"quantize", "inspect", "preflight", "generate"} and not self.read

    @property
    def causes(self) -> tuple[Finding, ...]:
        """The findings that fail the stage."""
        return tuple(f for f in self.findings if f.severity == "fail")

    def because(self) -> str:
        """One line: the findings, or the fault; empty for a pass."""
        if self.fault is not None:
            return f"{self.fault.kind}: {self.fault.message}"
        return "; ".join(f"{f.id}: {f.summary}" for f in self.causes)


def record_of(content: bytes) -> Record:
    """A record from its file's bytes: as ``Record.model_validate_json``, in half the time.

    Raises:
        ValidationError: they are none.
    """
    try:
        told = from_json(content)
    except ValueError:
        # Which says what is wrong with it, and where.
        return Record.model_validate_json(content)
    return Record.model_validate(told)
