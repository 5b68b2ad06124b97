"""A contract: what one vLLM version expects of a checkpoint and does with one, as recorded from its loader.

Every entry is what vLLM did with a probe (:mod:`qvlfp8.contract.probes`); a place, shape or form that was not
shown to it has no entry, and the static answer is then that it is not known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from qvlfp8.errors import FileFormatError

__all__ = ["FOLDER", "Contract", "Matching", "Outcome", "load", "load_all", "save"]

FOLDER = Path(__file__).with_name("recorded")

Outcome = str
"""What a loader does with a tensor: how it raises (``raises TYPE|mark|origin``), ``dropped``,
``fills PARAMETER``, ``loads`` (what its place says), or letters of effects and the type it is cast to."""


@dataclass(frozen=True, kw_only=True)
class Matching:
    """How exclusions are matched against vLLM's own module names; each rule is on or off.

    ``mapped``: prefixes are renamed as those of tensors are. ``star``: ``foo*`` stands for ``foo`` and
    ``foo.*``. ``whole``: an exact name. ``fused``: then an exact name, of a fused module those of its parts,
    which must agree. ``substring``: then a part of the name; ``equal``: or all of it. ``wildcard``: then a
    shell pattern.
    """

    mapped: bool
    star: bool
    whole: bool
    fused: bool
    substring: bool
    equal: bool
    wildcard: bool


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What was recorded of one serve environment. States, places and forms: see the modules that name them.

    ``modules``: linear modules of vLLM that are FP8 unless excluded. ``reads_ahead``: of a model that is
    taken for one that writes no text, all tensors are read before the first is placed. ``parameters``:
    state -> parameter -> whether a checkpoint must fill it. ``pieces``: state -> place -> what it fills,
    ``[parameter, how much]``: the ``whole``, a ``part``, or the ``first`` entry of a scale that has
    several. ``fates``: state -> spelling -> outcome -> places that the bases leave empty. ``shapes``,
    ``types``: state -> place -> relation or type -> outcome. ``configs``, ``quantizations``: form -> what
    vLLM makes of it.
    """

    environment: str
    vllm: str
    transformers: str
    lock: str
    prefixes: list[list[str]]
    packed: Mapping[str, list[str]]
    matching: Matching
    modules: list[str]
    reads_ahead: bool
    parameters: Mapping[str, Mapping[str, bool]]
    pieces: Mapping[str, Mapping[str, list[list[str]]]]
    fates: Mapping[str, Mapping[str, Mapping[Outcome, list[str]]]]
    shapes: Mapping[str, Mapping[str, Mapping[str, Outcome]]]
    types: Mapping[str, Mapping[str, Mapping[str, Outcome]]]
    configs: Mapping[str, Any]
    quantizations: Mapping[str, Any]


def save(contract: Contract, folder: Path = FOLDER) -> Path:
    """Write a contract as ``ENVIRONMENT.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{contract.environment}.json"
    file.write_text(json.dumps(asdict(contract), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return file


def load(file: Path) -> Contract:
    """Read a contract.

    Raises:
        FileFormatError: the file is not one, or of before a field was added.
    """
    try:
        content = json.loads(file.read_bytes())
        return _contract(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{file}: is no contract: {error}", mend="`qvlfp8 contract record` makes it anew"
        ) from None


def _contract(content: Mapping[str, Any]) -> Contract:
    known = {field.name for field in fields(Contract)}
    return Contract(
        **{k: v for k, v in content.items() if k in known} | {"matching": Matching(**content["matching"])}
    )


@cache
def load_all(folder: Path = FOLDER) -> tuple[Contract, ...]:
    """Every contract that ships with this package, oldest vLLM first."""
    from packaging.version import Version

    found = [load(file) for file in folder.glob("*.json")]
    return tuple(sorted(found, key=lambda contract: (Version(contract.vllm), contract.environment)))
