"""What a step takes of a machine, and which machines of a cluster could give it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field, StringConstraints

from qvlfp8.cells import Globs, globs
from qvlfp8.plan import Step
from qvlfp8.yamlfile import Strict

ACCELERATOR = "accelerator_type:"
"""How the names of the resources begin by which Ray tells what GPU a node has."""

STAGES = ("quantize", "inspect", "preflight", "generate")
"""What takes something worth telling."""

_GB = 1e9


class ResourceRow(Strict):
    """What some steps take; the last row that names one counts, field by field."""

    stages: Globs = "*"
    """Of :data:`STAGES`."""
    subjects: Globs = "*"
    """Cells, for quantize and inspect checkpoints."""
    cpus: Annotated[float, Field(gt=0, le=1024)] | None = None
    memory_gb: Annotated[float, Field(gt=0, le=100_000)] | None = None
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    accelerator: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*$")] | None = None
    """The GPU's name as Ray has it: H100, H200, A100, L4 and so on."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What has to be free on one node. ``memory_gb`` is in 10⁹ bytes."""

    cpus: float = 1.0
    memory_gb: float = 3.0
    gpus: int = 0
    accelerator: str | None = None

    def __str__(self) -> str:
        words = [_count(self.gpus, "GPU") + (f" of type {self.accelerator}" if self.accelerator else "")]
        cpus = [_count(self.cpus, "CPU"), f"{self.memory_gb:g} GB of memory"]
        return ", ".join(words + cpus if self.gpus else cpus)

    @property
    def ray(self) -> dict[str, float | str]:
        """As options of a Ray task."""
        options: dict[str, float | str] = {"num_cpus": self.cpus, "memory": int(self.memory_gb * _GB)}
        if self.gpus:
            options["num_gpus"] = self.gpus
        if self.accelerator:
            options["accelerator_type"] = self.accelerator
        return options


def demand_of(step: Step, rows: Iterable[ResourceRow]) -> Demand:
    """What one step takes: a CPU and 3 GB, a GPU if it needs one, and what rows say of it."""
    found: dict[str, float | int | str] = {"gpus": 1} if step.device == "cuda" else {}
    for row in rows:
        if _any(step.stage, row.stages) and _any(step.subject, row.subjects):
            said = row.model_dump(exclude={"stages", "subjects"}, exclude_none=True)
            # Of a step that needs no GPU, nothing is asked of one.
            found |= said if step.device == "cuda" else {k: said[k] for k in said.keys() - _OF_GPUS}
    return Demand(**found)  # type: ignore[arg-type]


def together(demands: Sequence[Demand]) -> Demand:
    """What steps take that are carried out one after the other."""
    return Demand(
        cpus=max(demand.cpus for demand in demands),
        memory_gb=max(demand.memory_gb for demand in demands),
        gpus=max(demand.gpus for demand in demands),
        accelerator=next((demand.accelerator for demand in demands if demand.accelerator), None),
    )


def lacking(demand: Demand, nodes: Sequence[Mapping[str, float]]) -> str:
    """Why no node could ever carry out what takes so much; empty if one could.

    Args:
        demand: of the step.
        nodes: Ray's total resources of each node, memory in bytes.
    """
    if any(_fits(demand, node) for node in nodes):
        return ""
    return f"asks for a node with {demand}; the cluster has {_described(nodes)}"


def _fits(demand: Demand, node: Mapping[str, float]) -> bool:
    return (
        node.get("CPU", 0.0) >= demand.cpus
        and node.get("memory", 0.0) >= demand.memory_gb * _GB
        and node.get("GPU", 0.0) >= demand.gpus
        and (demand.accelerator is None or node.get(ACCELERATOR + demand.accelerator, 0.0) > 0)
    )


def _described(nodes: Sequence[Mapping[str, float]]) -> str:
    if not nodes:
        return "no node"
    kinds: dict[str, int] = {}
    for node in nodes:
        types = [name.removeprefix(ACCELERATOR) for name in node if name.startswith(ACCELERATOR)]
        gpus = f"{_count(node.get('GPU', 0.0), 'GPU')}{f' ({types[0]})' if types else ''}"
        what = f"{_count(node.get('CPU', 0.0), 'CPU')}, {node.get('memory', 0.0) / _GB:.0f} GB and {gpus}"
        kinds[what] = kinds.get(what, 0) + 1
    return "; ".join(f"{_count(number, 'node')} with {what}" for what, number in kinds.items())


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def _any(name: str, patterns: Globs) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs(patterns))


_OF_GPUS = {"gpus", "accelerator"}
