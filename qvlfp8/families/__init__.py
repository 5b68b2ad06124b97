"""The families of models that ``explain`` knows, and the structure that each config.json stands for.

A family is added by one module and one line in :data:`FAMILIES`. All share the canonical names of
:mod:`qvlfp8.structure`, which knows Qwen2.5-VL, the one family that workers and ``repair`` were measured on;
they ask it directly, so that nothing here changes what they accept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from qvlfp8 import structure
from qvlfp8.families import qwen2_vl, qwen3_vl
from qvlfp8.structure import Structure, UnknownModel

__all__ = ["EVERY", "FAMILIES", "Family", "ModelType", "from_config"]

ModelType = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
"""A family by ``model_type`` of its config.json."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: what people call it, its class in transformers and vLLM, and how a config is read."""

    model_type: ModelType
    title: str
    architecture: str
    read: Callable[[Mapping[str, Any]], Structure]


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.model_type: family
        for family in (
            Family(
                model_type="qwen2_vl", title="Qwen2-VL",
                architecture="Qwen2VLForConditionalGeneration", read=qwen2_vl.structure_of,
            ),
            Family(
                model_type="qwen2_5_vl", title="Qwen2.5-VL",
                architecture=structure.ARCHITECTURE, read=structure.from_config,
            ),
            Family(
                model_type="qwen3_vl", title="Qwen3-VL",
                architecture="Qwen3VLForConditionalGeneration", read=qwen3_vl.structure_of,
            ),
        )
    }
)  # fmt: skip
"""Every family, by ``model_type``. Mixtures of experts (``qwen3_vl_moe``) are not among them."""

EVERY: tuple[ModelType, ...] = tuple(family.model_type for family in FAMILIES.values())
"""What a caller that knows every family passes as ``known``."""


def from_config(
    config: Mapping[str, Any], known: Sequence[ModelType] = ("qwen2_5_vl",)
) -> tuple[Family, Structure]:
    """Derive family and structure from config.json, flat or with a ``text_config``.

    Args:
        config: the content of config.json.
        known: the families that the caller can deal with; Qwen2.5-VL alone unless it says more.

    Raises:
        UnknownModel: another family or class, or a size that is no positive integer or does not divide.
    """
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    classes = config.get("architectures")
    if family is None or family.model_type not in known:
        titles = " or ".join(FAMILIES[name].title for name in known)
        raise UnknownModel(f"this is {kind!r} ({_named(classes)}), not {titles}")
    if classes is not None and not (isinstance(classes, list) and family.architecture in classes):
        raise UnknownModel(f"its class is {_named(classes)}, not {family.architecture}")
    return family, family.read(config)


def _named(classes: object) -> str:
    if isinstance(classes, list) and classes:
        return ", ".join(map(str, classes))
    return "no architecture" if classes is None else repr(classes)
