"""From what a vLLM did with every probe to its contract. Nothing here knows a version."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qvlfp8.contract import exclusions
from qvlfp8.contract.control import BASES
from qvlfp8.contract.data import Contract, Outcome
from qvlfp8.contract.exclusions import Unexplained
from qvlfp8.contract.forms import MARKS
from qvlfp8.contract.names import collapse, locate
from qvlfp8.contract.probes import Probe

__all__ = ["Unexplained", "condense", "raised"]

Measured = Mapping[str, Any]

_NO_PLACE = ("no module or parameter named", "nested weight")


def condense(
    asked: Sequence[Probe], observed: Sequence[Measured], model_class: Mapping[str, Any], **names: str
) -> Contract:
    """Make the contract of one environment.

    ``observed`` answers ``asked`` one to one; ``names`` are the contract's own fields of text.

    Raises:
        Unexplained: exclusions are matched by none of the known rules, or a right base is not loaded.
    """
    found = {probe.key: measured for probe, measured in zip(asked, observed, strict=True)}
    by_kind: dict[str, list[tuple[Probe, Measured]]] = defaultdict(list)
    for probe in asked:
        by_kind[probe.key[0]].append((probe, found[probe.key]))
    bases = {name: found["base", name] for name in BASES}
    for name in ("fp8", "excluded", "bf16", "fp8-tied", "bf16-tied"):
        if (error := raised(bases[name])) is not None:
            raise Unexplained(f"the base {name!r} is not loaded: {error}")
    parameters = _parameters(found, bases)
    pieces = _pieces(by_kind, bases)
    modules = sorted(
        {
            n.removesuffix(".weight_scale")
            for s in parameters.values()
            for n in s
            if n.endswith(".weight_scale")
        }
    )
    matching = exclusions.fit(
        [(probe.key[1:], _quantized_modules(measured)) for probe, measured in by_kind["exclusion"]],
        modules=modules, prefixes=model_class["prefixes"], packed=model_class["packed"],
    )  # fmt: skip
    return Contract(
        **names,
        prefixes=model_class["prefixes"],
        packed=model_class["packed"],
        matching=matching,
        modules=modules,
        reads_ahead=_reads_ahead(by_kind["ahead"]),
        parameters=parameters,
        pieces=pieces,
        fates=_fates(by_kind, bases),
        shapes=_changes(by_kind["reshaped"], bases),
        types=_changes(by_kind["retyped"], bases),
        configs=_configs(by_kind["config"]),
        quantizations={probe.key[1]: _quantization(measured) for probe, measured in by_kind["quantization"]},
    )


def raised(measured: Measured) -> Outcome | None:
    """How vLLM refused, if it did: the type, what of the message counts, and whose fault."""
    errors = [*measured.get("refused", ()), *([measured["exception"]] if measured.get("exception") else [])]
    if "refused_kind" in measured:
        return f"raises {measured['refused_kind']}||refused"
    if not errors:
        return None
    error = errors[0]
    marks = [word for word in (*_NO_PLACE, "shape") if word in error["message"]]
    return f"raises {error['type']}|{marks[0] if marks else ''}|{error['origin']}"


def _reads_ahead(probes: Iterable[tuple[Probe, Measured]]) -> bool:
    """Whether another tensor than the one that cannot be placed was the last to be read."""
    return any(
        error["tensor"] not in probe.put
        for probe, measured in probes
        for error in [*measured.get("refused", ()), measured.get("exception")]
        if error is not None and measured.get("stage_reached") == "load"
    )


def _parameter_names(measured: Measured) -> dict[str, bool]:
    required = {collapse_parameter(name): True for name in measured["never_loaded"]}
    return required | {collapse_parameter(name): False for name in measured["defaulted"]}


def collapse_parameter(name: str) -> str:
    """A vLLM parameter's (or module's) name with the numbers of layers and blocks taken out."""
    prefix = "language_model." if name.startswith("language_model.") else ""
    return prefix + collapse(name.removeprefix(prefix))


def _parameters(found: Mapping[Any, Measured], bases: Mapping[str, Measured]) -> dict[str, dict[str, bool]]:
    """What vLLM builds in each state; the embedding, which was loaded, from a probe of its own."""
    embedding = [
        name
        for name in _parameter_names(found["parameters", "embedding"])
        if name.endswith("embed_tokens.weight")
    ]
    return {
        name: {**_parameter_names(found["parameters", name]), **dict.fromkeys(embedding, True)}
        for name in BASES
        if raised(bases[name]) is None and raised(found["parameters", name]) is None
    }


def _lists(measured: Measured) -> dict[str, set[str]]:
    return {
        "never": set(measured["never_loaded"]) | set(measured["defaulted"]),
        "partly": {entry["name"] for entry in measured["partly_written"]},
        "fused": {entry["name"] for entry in measured["fused_scales"]},
        "twice": set(measured["multiply_written"]),
    }


def _pieces(
    by_kind: Mapping[str, Sequence[tuple[Probe, Measured]]], bases: Mapping[str, Measured]
) -> dict[str, dict[str, list[list[str]]]]:
    """What each tensor fills: what is empty, or not whole, without it."""
    pieces: dict[str, dict[str, list[list[str]]]] = defaultdict(dict)
    for probe, measured in by_kind["drop"]:
        _, name, tensor = probe.key
        if raised(bases[name]) is not None:
            continue
        key = locate(tensor, BASES[name].model).key
        if (error := raised(measured)) is not None:
            raise Unexplained(f"without {key} the base {name!r} is refused: {error}")
        before, now = _lists(bases[name]), _lists(measured)
        filled = [
            [collapse_parameter(parameter), "first" if parameter in before["fused"] else "whole"]
            for parameter in sorted(now["never"] - before["never"])
        ]
        partly = (now["partly"] | now["fused"]) - before["partly"] - before["fused"]
        pieces[name][key] = filled + [[collapse_parameter(parameter), "part"] for parameter in sorted(partly)]
    for probe, measured in by_kind["fused"]:
        _, name, key = probe.key
        if raised(measured) is None:
            before, now = _lists(bases[name]), _lists(measured)
            missed = (now["never"] | now["partly"] | now["fused"]) - before["fused"] - before["never"]
            first = sorted(collapse_parameter(parameter) for parameter in now["fused"] - before["fused"])
            if not missed - (now["fused"] - before["fused"]):
                # Its parts' parameter, whole or in its first entry.
                part = probe.drop[0]
                target = pieces[name][locate(part, BASES[name].model).key][0][0]
                pieces[name][key] = [[target, "first" if first else "whole"]]
    return dict(pieces)


def _fates(
    by_kind: Mapping[str, Sequence[tuple[Probe, Measured]]], bases: Mapping[str, Measured]
) -> dict[str, dict[str, dict[Outcome, list[str]]]]:
    """What becomes of a tensor for which the base has no place, or under another spelling."""
    found: dict[str, dict[str, dict[Outcome, list[str]]]] = {}
    for probe, measured in (*by_kind["stray"], *by_kind["respelled"]):
        kind, name, spelling, _ = probe.key
        if raised(bases[name]) is not None:
            continue
        (tensor,) = probe.put
        place = locate(tensor, BASES[name].model)
        outcome = _fate(tensor, measured, bases[name], respelled=kind == "respelled")
        found.setdefault(name, {}).setdefault(spelling, {}).setdefault(outcome, []).append(place.key)
    return {
        name: {
            spelling: {o: sorted(keys) for o, keys in outcomes.items()} for spelling, outcomes in of.items()
        }
        for name, of in found.items()
    }


def _fate(tensor: str, measured: Measured, before: Measured, *, respelled: bool) -> Outcome:
    if (error := raised(measured)) is not None:
        return error
    if tensor in measured["dropped"]:
        return "dropped"
    if respelled:
        same = all(
            _lists(measured)[name] == _lists(before)[name] for name in ("never", "partly", "fused", "twice")
        )
        return "loads" if same else "unknown"
    now, then = _lists(measured), _lists(before)
    twice = {collapse_parameter(parameter) for parameter in now["twice"] - then["twice"]}
    defaulted = {collapse_parameter(parameter) for parameter in then["never"] - now["never"]}
    match sorted(twice), sorted(defaulted):
        case [parameter], []:
            return f"fills {parameter}"
        case [], [parameter]:
            return f"fills {parameter}"
        case _:
            return "unknown"


def _changes(
    probes: Iterable[tuple[Probe, Measured]], bases: Mapping[str, Measured]
) -> dict[str, dict[str, dict[str, Outcome]]]:
    """What a loader makes of a tensor of another shape or type at a place that is filled."""
    found: dict[str, dict[str, dict[str, Outcome]]] = {}
    for probe, measured in probes:
        _, name, tensor, change = probe.key
        if raised(bases[name]) is not None:
            continue
        key = locate(tensor, BASES[name].model).key
        found.setdefault(name, {}).setdefault(key, {})[change] = _change(tensor, measured, bases[name])
    return found


def _change(tensor: str, measured: Measured, before: Measured) -> Outcome:
    """How it raises, or the letters of ``effects``; then what it is cast to."""
    if (error := raised(measured)) is not None:
        return error
    now, then = _lists(measured), _lists(before)
    effects = {
        # Dropped, Never loaded, Partly written, Reshaped, Truncated, written tWice.
        "D": tensor in measured["dropped"],
        "N": bool(now["never"] - then["never"]),
        "P": bool((now["partly"] | now["fused"]) - (then["partly"] | then["fused"])),
        "R": any(entry["tensor"] == tensor for entry in measured["reshapes"]),
        "T": any(entry["name"] == tensor for entry in measured["truncated"]),
        "W": bool(now["twice"] - then["twice"]),
    }
    casts = sorted({entry["to"] for entry in measured["casts"] if entry["tensor"] == tensor})
    return " ".join(["".join(letter for letter, there in effects.items() if there), *casts])


def _quantized_modules(measured: Measured) -> frozenset[str] | None:
    """vLLM's modules that have scales, of a checkpoint that has none; None if it is refused."""
    if raised(measured) is not None:
        return None
    return frozenset(
        name.removesuffix(".weight_scale")
        for name in measured["never_loaded"]
        if name.endswith(".weight_scale")
    )


def _configs(probes: Iterable[tuple[Probe, Measured]]) -> dict[str, Any]:
    """Form -> how vLLM raises, or its runner, and whether it ties lm_head: if one is stored, if none is."""
    found: dict[str, Any] = {}
    heads: dict[str, dict[str, int]] = defaultdict(dict)
    for probe, measured in probes:
        _, name, form = probe.key
        error = raised(measured)
        if error is not None and measured.get("stage_reached") != "load":
            found[form] = error
        elif "parameters" in measured:
            heads[form][name] = measured["parameters"]
            found[form] = {"runner": measured["runner"]}
    most = max((count for counts in heads.values() for count in counts.values()), default=0)
    for form, counts in heads.items():
        if not isinstance(found[form], str):
            # An lm_head of its own is one parameter more.
            found[form]["tied"] = counts.get("fp8", most) < most
            found[form]["tied_without_head"] = counts.get("fp8-tied", most) < most
    return found


def _quantization(measured: Measured) -> Any:
    """How vLLM raises, or: the method it takes, the list of exclusions that it reads, and its KV cache."""
    error = raised(measured)
    if error is not None:
        return error
    quantized = _quantized_modules(measured)
    read = [mark for mark, module in MARKS.items() if quantized and module not in quantized]
    if len(read) > 1:
        read = ["unknown"]
    return {
        "method": measured["quantization"],
        "reads": read[0] if read else None,
        "kv_cache": measured["kv_cache_dtype"],
    }
