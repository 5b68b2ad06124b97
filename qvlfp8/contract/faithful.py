"""Whether a contract says of every probe what its vLLM did with it: nothing may be lost in the condensing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qvlfp8 import checkpoint
from qvlfp8.contract.answers import NotRecorded
from qvlfp8.contract.control import BASES
from qvlfp8.contract.data import Contract
from qvlfp8.contract.predict import predict
from qvlfp8.contract.probes import Probe
from qvlfp8.contract.subject import subject
from qvlfp8.findings import diagnose_preflight
from qvlfp8.worker.contract import write_checkpoint

__all__ = ["unlike"]


def unlike(
    asked: Sequence[Probe], observed: Sequence[Mapping[str, Any]], contract: Contract
) -> Iterator[str]:
    """The probes of which the static answer names other findings than preflight; not those left unjudged.

    ``observed`` answers ``asked`` one to one.
    """
    for probe, measured in zip(asked, observed, strict=True):
        base = BASES[probe.base]
        tensors = {name: header for name, header in base.tensors.items() if name not in probe.drop}
        with tempfile.TemporaryDirectory(prefix="qvlfp8-") as folder:
            made = Path(folder) / "probe"
            write_checkpoint(made, {**base.files, **probe.files}, {**tensors, **probe.put})
            shown = subject(checkpoint.read(made))
        seen = sorted({finding.id for finding in diagnose_preflight(measured)})
        try:
            said = sorted({finding.id for finding in predict(shown, contract)})
        except NotRecorded:
            continue
        if said != seen:
            yield f"{' '.join(probe.key)}: vLLM had {_listed(seen)}, the contract says {_listed(said)}"


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(ids) or "no finding"
