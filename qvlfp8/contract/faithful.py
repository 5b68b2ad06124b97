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
from qvlfp8.worker.contract import changed, write_checkpoint

__all__ = ["unlike"]


def unlike(
    asked: Sequence[Probe], observed: Sequence[Mapping[str, Any]], contract: Contract
) -> Iterator[str]:
    """Say of which probes the static answer names other findings than preflight did.

    ``observed`` answers ``asked`` one to one. Probes of which nothing was recorded are passed over.
    """
    for probe, measured in zip(asked, observed, strict=True):
        with tempfile.TemporaryDirectory(prefix="qvlfp8-") as folder:
            made = Path(folder) / "probe"
            write_checkpoint(made, *changed(BASES[probe.base].as_json, probe.as_json))
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
