"""Looking up what a contract recorded of a place in a state: exactly, then where nothing else can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from qvlfp8.contract.data import Contract, Outcome
from qvlfp8.contract.names import FUSED, Place, kind_of

__all__ = ["Answers", "NotRecorded"]


class NotRecorded(Exception):
    """Nothing was recorded of this version that says what it does with something of the checkpoint."""


@dataclass(frozen=True)
class Answers:
    """A contract, indexed. A ``base`` names the recorded state (:data:`qvlfp8.contract.control.BASES`).

    Every method raises :class:`NotRecorded` where the contract does not say.
    """

    contract: Contract
    _turned: dict[tuple[str, str], Mapping[str, Outcome]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def targets(self) -> Mapping[str, str]:
        """A checkpoint's linear module -> vLLM's that it becomes (part of), for those that can be FP8."""
        found: dict[str, str] = {}
        for base in ("fp8", "fp8-head"):
            for key, filled in self.contract.pieces.get(base, {}).items():
                module, _, leaf = key.rpartition("/")
                for parameter, _ in filled:
                    target = parameter.removesuffix(".weight")
                    if leaf == "weight" and target in self.contract.modules:
                        found[module] = target
        for whole, parts in FUSED.items():
            fused = next((found[module] for module in (whole, *parts) if module in found), None)
            if fused is not None:
                found |= dict.fromkeys((whole, *parts), fused)
        return found

    def _fates(self, base: str, spelling: str) -> Mapping[str, Outcome]:
        """Turned about where asked for: a checkpoint needs few of them."""
        found = self._turned.get((base, spelling))
        if found is None:
            outcomes = self.contract.fates.get(base, {}).get(spelling, {})
            found = {key: outcome for outcome, keys in outcomes.items() for key in keys}
            self._turned[base, spelling] = found
        return found

    def pieces(self, base: str, key: str) -> list[list[str]] | None:
        """What a tensor at a place fills, ``[parameter, how much]``; None if the base has none there."""
        pieces = self.contract.pieces.get(base) or self.contract.pieces.get(base.removesuffix("-tied"), {})
        return pieces.get(key)

    def fate(self, base: str, place: Place) -> Outcome:
        """What becomes of a tensor by name: raises, dropped, ``fills PARAMETER`` or ``loads`` its pieces."""
        # Of a tied head the base holds no tensor.
        own = self.pieces(base, place.key) is not None
        own = own and not (base.endswith("-tied") and place.module == "lm_head")
        if own and place.spelling == "published":
            return "loads"
        if own:
            return self._fates(base, place.spelling).get(place.key, "loads")
        # Renamed prefixes lead to the same place, whose answer holds where theirs was not recorded.
        for name in _alike(base):
            for spelling in dict.fromkeys((place.spelling, "published")):
                found = self._fates(name, spelling).get(_kind_key(place))
                if found == "unknown":
                    raise NotRecorded(f"what vLLM fills from {place.key} ({base})")
                if found is not None and found != "loads":
                    return found
        raise NotRecorded(f"what vLLM does with a tensor at {place.key} ({base}, {place.spelling})")

    def reshaped(self, base: str, place: Place, relation: str) -> Outcome:
        """What becomes of a tensor of another shape: raises, or letters (:mod:`qvlfp8.contract.condense`)."""
        for name in _states(base):
            found = self.contract.shapes.get(name, {}).get(_kind_key(place), {}).get(relation)
            if found is not None:
                return found
        raise NotRecorded(f"what vLLM does with the shape {relation!r} at {place.key} ({base})")

    def cast(self, base: str, place: Place, dtype: str) -> str:
        """The type, by torch's name, that a tensor is cast to; empty if none; or raises."""
        recorded: Mapping[str, Outcome] = {}
        for name in _states(base):
            recorded = recorded or self.contract.types.get(name, {}).get(_kind_key(place), {})
        if not recorded and (other := _alike_place(place)):
            return self.cast(base, other, dtype)
        if dtype in recorded:
            return recorded[dtype].strip()
        if recorded and dtype in {"BF16", "F32", "F8_E4M3"}:
            # The base's own type, which is why it was not asked about.
            return ""
        outcomes = set(recorded.values())
        if len(outcomes) != 1:
            raise NotRecorded(f"what vLLM does with the type {dtype} at {place.key} ({base})")
        return outcomes.pop().strip()


def _kind_key(place: Place) -> str:
    kind = kind_of(place.module)
    return place.key if kind == place.module else replace(place, module=kind).key


_KV_SCALE = ("model.layers.{}.self_attn", "k_scale")
"""The name that every version has a place for: of others some refuse the name, whatever the type."""


def _alike_place(place: Place) -> Place | None:
    """Where types were recorded, for a place that fills the same parameter and that few checkpoints have."""
    if place.leaf in {"k_scale", "v_scale", "kv_scale"} and (place.module, place.leaf) != _KV_SCALE:
        return replace(place, module=_KV_SCALE[0], leaf=_KV_SCALE[1])
    if place.module in FUSED and place.module.endswith("_proj"):
        return replace(place, module=FUSED[place.module][0])
    wholes = (whole for whole, parts in FUSED.items() if place.module in parts and whole.endswith(".qkv"))
    return next((replace(place, module=whole) for whole in wholes), None)


def _alike(base: str) -> tuple[str, ...]:
    """Where fates are recorded, best first: what does not hang on the module's own state, of one only."""
    return (base,) if base in {"fp8", "bf16", "bf16-tied"} else (base, "fp8")


def _states(base: str) -> tuple[str, ...]:
    """Where changes are recorded, best first: those of no quantized module of one state only."""
    if base.startswith("bf16"):
        return (base, "excluded", "fp8")
    return (base, "fp8-head", "fp8") if base.startswith("fp8-head") else (base, "fp8")
