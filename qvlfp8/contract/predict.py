"""The static answer: what a vLLM's loader would do with a checkpoint, from contract and headers alone.

The loader is replayed over its recorded answers: tensor by tensor in vLLM's order, until one is refused. What
comes out has the form of what preflight measures, and :func:`qvlfp8.findings.diagnose_preflight` says what it
means - the same rules for both.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qvlfp8 import stated
from qvlfp8.contract import exclusions
from qvlfp8.contract.answers import Answers, NotRecorded
from qvlfp8.contract.data import Contract, Outcome
from qvlfp8.contract.forms import QuantizationForm
from qvlfp8.contract.names import SIBLINGS, Place
from qvlfp8.contract.shapes import RIGHT
from qvlfp8.contract.subject import Entry, Subject
from qvlfp8.findings import Finding, diagnose_preflight

__all__ = ["predict", "replay"]

_TORCH = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32":
    "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64":
    "float64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "C64":
    "complex64",
}  # fmt: skip

_KV_SCALES = (".k_scale", ".v_scale")


def predict(asked: Subject, contract: Contract) -> list[Finding]:
    """What preflight would find in this version; most severe first.

    Raises:
        NotRecorded: the contract does not say.
    """
    return diagnose_preflight(replay(asked, contract))


def replay(asked: Subject, contract: Contract) -> dict[str, Any]:
    """What preflight would measure, as far as findings depend on it. Like layers are listed once.

    Raises:
        NotRecorded: the contract does not say.
    """
    checkpoint = asked.checkpoint
    if strange := sorted({entry.dtype for entry in asked.entries} - set(_TORCH)):
        raise NotRecorded(f"tensors of the type {strange[0]}, which torch has not")
    if asked.odd is not None:
        raise NotRecorded(f"a config.json with such a {asked.odd}")
    measured: dict[str, Any] = {
        "stage_reached": "config",
        "exception": None,
        "refused": [],
        "exclusions": stated.exclusions(checkpoint.quantization),
        "tie_word_embeddings": stated.is_tied(checkpoint.config),
        "fp8_tensors": asked.fp8_tensors,
    }
    config = _recorded(contract.configs, asked.config, "a config.json of the form")
    declared = _declared(contract, asked.quantization)
    for refusal in (config, declared):
        if isinstance(refusal, str):
            return measured | {"exception": _error(refusal, None)}
    measured |= {
        "quantization": declared["method"],
        "kv_cache_dtype": declared["kv_cache"],
        "runner": config["runner"],
        "stage_reached": "build",
    }
    quantized = declared["method"] is not None
    fp8 = _fp8_modules(asked, contract, declared["reads"]) if quantized else frozenset()
    if fp8 is None:
        return measured | {"exception": _error("raises ValueError||checkpoint", None)}
    measured["stage_reached"] = "load"
    ahead = contract.reads_ahead and config["runner"] != "generate"
    tied = config["tied" if asked.head_stored else "tied_without_head"]
    run = _Replay(Answers(contract), asked, quantized=quantized, tied=tied, fp8=fp8, ahead=ahead)
    error = run.load_all()
    measured["refused"] = run.refused
    if error is not None:
        return measured | {"exception": error}
    measured["stage_reached"] = "done"
    return measured | run.summary()


def _recorded(table: Mapping[str, Any], key: str, what: str) -> Any:
    if key not in table:
        raise NotRecorded(f"{what} {key!r}")
    return table[key]


def _declared(contract: Contract, form: QuantizationForm) -> Any:
    """What vLLM makes of the declarations."""
    table = contract.quantizations
    if form.key not in table and form.inline and form.separate:
        # Where config.json counts beside every hf_quant_config.json that was shown, it counts beside any.
        alone = replace(form, separate=None).key
        beside = [outcome for key, outcome in table.items() if key.startswith(f"{alone} and ")]
        if beside and all(outcome == table.get(alone) for outcome in beside):
            return table[alone]
    return _recorded(table, form.key, "a quantization declared as")


def _error(outcome: Outcome, tensor: str | None) -> dict[str, Any]:
    kind, mark, origin = outcome.removeprefix("raises ").split("|")
    return {"type": kind, "message": mark, "where": "its contract", "tensor": tensor, "origin": origin}


def _fp8_modules(asked: Subject, contract: Contract, reads: str | None) -> frozenset[str] | None:
    """vLLM's modules, with numbers, that it builds in FP8; None if it refuses the exclusions."""
    if reads == "unknown":
        raise NotRecorded("which list of exclusions vLLM reads")
    modules = [m.replace("{}", str(n)) for m in contract.modules for n in _numbers(asked, m)]
    return exclusions.quantized(
        asked.exclusions.get(reads, ()) if reads else (),
        modules,
        contract.matching,
        prefixes=contract.prefixes,
        packed=contract.packed,
    )


def _numbers(asked: Subject, name: str) -> tuple[int, ...]:
    """The numbers that stand for all layers or blocks, for a name of vLLM's; (0,) if it is of none."""
    if "{}" not in name:
        return (0,)
    return asked.blocks if name.startswith("visual.") else asked.layers


@dataclass
class _Replay:
    """One version's loader over one subject: ``filled`` parameter -> (module, how much) of each tensor."""

    answers: Answers
    subject: Subject
    quantized: bool
    tied: bool
    fp8: frozenset[str]
    ahead: bool
    refused: list[dict[str, Any]] = field(default_factory=list)
    left: Sequence[Entry] = ()
    filled: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    lists: dict[str, list[Any]] = field(default_factory=dict)

    def load_all(self) -> dict[str, Any] | None:
        """Load, and again without refused KV cache scales, as preflight does; the error if one is left."""
        self.left = self.subject.entries
        while (error := self._load()) is not None:
            if self.ahead and error["type"] != "KeyError":
                # Preflight holds the tensor that was read last for the one that was refused.
                error["tensor"] = max(self.left, key=lambda entry: entry.last).name
            tensor = error["tensor"]
            if tensor is None or error["origin"] != "checkpoint" or not tensor.endswith(_KV_SCALES):
                return error
            self.refused.append(error)
            family = re.sub(r"\d+", "0", tensor)
            self.left = [entry for entry in self.left if re.sub(r"\d+", "0", entry.name) != family]
        return None

    def _load(self) -> dict[str, Any] | None:
        self.filled, self.lists = defaultdict(list), defaultdict(list)
        for entry in self.left:
            outcome = self.answers.fate(self._base(entry.place), entry.place)
            if outcome.startswith("raises "):
                return _error(outcome, entry.name)
            if outcome == "dropped":
                self.lists["dropped"].append(entry.name)
            elif (error := self._fill(entry, outcome)) is not None:
                return error
        return None

    def _base(self, place: Place) -> str:
        """The recorded base whose answers hold for a module: by its own state, not by that of others."""
        tied = "-tied" if self.tied and place.module == "lm_head" else ""
        if not self.quantized:
            return "bf16" + tied
        target = self.answers.targets.get(place.module)
        is_fp8 = target is not None and target.replace("{}", str(place.index)) in self.fp8
        if place.module == "lm_head":
            # In the base "fp8" the head is excluded.
            return ("fp8-head" if is_fp8 else "fp8") + tied
        return "fp8" if target is None or is_fp8 else "excluded"

    def _fill(self, entry: Entry, outcome: Outcome) -> dict[str, Any] | None:
        """Fill what a tensor fills, note what becomes of shape and type; the error if it does not fit."""
        place, base = entry.place, self._base(entry.place)
        effects = "" if entry.shape == RIGHT else self.answers.reshaped(base, place, entry.shape)
        letters = effects.partition(" ")[0]
        if "D" in letters:
            self.lists["dropped"].append(entry.name)
            return None
        cast = self.answers.cast(base, place, entry.dtype)
        for refusal in (effects, cast):
            if refusal.startswith("raises "):
                return _error(refusal, entry.name)
        if "R" in letters:
            self.lists["reshapes"].append(_change(entry, "its shape", "the parameter's"))
        if "T" in letters:
            self.lists["truncated"].append({"name": entry.name, "touched": "not all", "total": "its"})
        if cast:
            self.lists["casts"].append(_change(entry, _TORCH[entry.dtype], cast))
        for parameter, much in self._pieces(base, place, outcome):
            if "N" not in letters:
                name = parameter if place.index is None else parameter.replace("{}", str(place.index), 1)
                self.filled[name].append((place.module, "some" if "P" in letters else much))
        return None

    def _pieces(self, base: str, place: Place, outcome: Outcome) -> list[list[str]]:
        if not outcome.startswith("fills "):
            return self.answers.pieces(base, place.key) or []
        parameter = outcome.removeprefix("fills ")
        fused = place.module in SIBLINGS and parameter.rpartition(".")[0] in self.answers.contract.modules
        return [[parameter, "part" if fused else "whole"]]

    def summary(self) -> dict[str, Any]:
        """The lists of what was changed, is empty, in part or twice filled."""
        names = (
            "casts", "reshapes", "truncated", "dropped", "never_loaded", "partly_written", "fused_scales",
            "defaulted", "multiply_written",
        )  # fmt: skip
        lists: dict[str, list[Any]] = {name: list(self.lists.get(name, ())) for name in names}
        for name, required in self._parameters():
            filled = self.filled.get(name)
            if not filled:
                lists["never_loaded" if required else "defaulted"].append(name)
                continue
            extent = _extent(filled)
            if extent.twice:
                lists["multiply_written"].append(name)
            if extent.first:
                lists["fused_scales"].append({"name": name, "touched": 1, "total": 3})
            elif not extent.whole:
                lists["partly_written"].append({"name": name, "touched": "not all", "total": "its"})
        scales = [entry.name for entry in self.left if entry.name.endswith(_KV_SCALES)]
        unpaired = _unpaired(lists["defaulted"])
        return {**lists, "kv_scales": {"in_checkpoint": len(scales), "unpaired": unpaired}}

    def _parameters(self) -> Iterator[tuple[str, bool]]:
        """vLLM's parameters, and whether a checkpoint must fill each."""
        tables = self.answers.contract.parameters
        tied = "-tied" if self.tied else ""
        if not self.quantized:
            yield from self._expanded(tables[f"bf16{tied}"])
            return
        plain = tables[f"excluded{tied}"]
        for collapsed, required in {**tables[f"fp8{tied}"], **tables.get(f"fp8-head{tied}", {})}.items():
            for name, _ in self._expanded({collapsed: required}):
                if collapsed in plain or name.rpartition(".")[0] in self.fp8:
                    yield name, required

    def _expanded(self, table: Mapping[str, bool]) -> Iterator[tuple[str, bool]]:
        for name, required in table.items():
            for number in _numbers(self.subject, name):
                yield name.replace("{}", str(number), 1), required


def _change(entry: Entry, old: str, new: str) -> dict[str, Any]:
    return {"tensor": entry.name, "from": old, "to": new}


def _unpaired(defaulted: Iterable[str]) -> list[str]:
    """KV cache scales without a tensor beside one, of K or V of the same layer, that has one."""
    twins = {".k_scale": ".v_scale", ".v_scale": ".k_scale"}
    missing = {name for name in defaulted if name[-8:] in twins}
    return sorted(name for name in missing if name[:-8] + twins[name[-8:]] not in missing)


@dataclass(frozen=True)
class _Extent:
    whole: bool
    first: bool
    twice: bool


def _extent(filled: Sequence[tuple[str, str]]) -> _Extent:
    """Of a parameter's tensors: whether they are all of it, only a scale's first entry, any part twice."""
    modules = [module for module, _ in filled]
    amounts = [amount for _, amount in filled]
    parts = {module for module, amount in filled if amount == "part"}
    complete = any(parts >= set(SIBLINGS.get(module, (module,))) for module in parts)
    overlaps = len(filled) > 1 and ("whole" in amounts or "first" in amounts)
    return _Extent(
        whole="whole" in amounts or complete,
        first=amounts == ["first"],
        twice=overlaps or len(modules) > len(set(modules)),
    )
