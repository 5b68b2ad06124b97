"""A checkpoint with what is known of it: its model's structure, and what its configuration declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qvlfp8 import declared, families, quantization
from qvlfp8.checkpoint import Checkpoint, Tensor
from qvlfp8.conformance.stored import Scale, Stored, stored_as
from qvlfp8.declared import Declaration
from qvlfp8.modules import Matcher, expressions
from qvlfp8.structure import Linear, Part, Structure, canonical, part_of

KV_ENDS = (".k_scale", ".v_scale")

_DTYPES: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def of_checkpoint(held: Checkpoint) -> Case:
    """Read what a checkpoint of any known family declares.

    Raises:
        UnknownModel: the model is of no known family.
        UnknownDeclaration: what it declares is not known here.
    """
    _, model = families.from_config(held.config, known=families.EVERY)
    case = Case(held, model, declared.read(held.quantization))
    case.declared.quantizes()  # refuses expressions that might never end
    _ = case.stored
    return case


@dataclass(frozen=True)
class Case:
    """A checkpoint with its structure and quantization, its tensors by canonical name."""

    checkpoint: Checkpoint
    model: Structure
    declared: Declaration

    @cached_property
    def stored(self) -> Stored:
        """How quantized modules are stored, by the configuration."""
        return stored_as(self.declared)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by canonical name; of two spellings of one name the first counts."""
        named: dict[str, Tensor] = {}
        for name, tensor in self.checkpoint.tensors.items():
            named.setdefault(canonical(name), tensor)
        return named

    @cached_property
    def dtype(self) -> str:
        """The type of everything that is not quantized, as config.json declares it."""
        return _DTYPES.get(str(_said_dtype(self.checkpoint.config)), "BF16")

    @cached_property
    def kv_fp8(self) -> bool:
        """Whether the configuration says that the key-value cache is FP8."""
        return self.declared.kv_cache == "fp8"

    def is_quantized(self, linear: Linear) -> bool:
        """Whether the module's weight really is of the quantized type."""
        weight = self.tensors.get(f"{linear.name}.weight")
        return weight is not None and weight.dtype == self.stored.dtype

    def declared_quantized(self, linear: Linear) -> bool:
        """Whether the configuration says that the module is quantized."""
        return self._quantizes(linear.name)

    @cached_property
    def _quantizes(self) -> Matcher:
        if self.declared.method in {"modelopt-fp8", "modelopt-nvfp4"}:
            excludes = self.excludes(self.declared.exclusions)
            return lambda module: not excludes(module)
        return self.declared.quantizes()

    def excludes(self, patterns: Iterable[str]) -> Matcher:
        """Give what says whether one of the patterns names a module, as the producer reads them."""
        if self.declared.method.startswith("compressed-tensors"):
            return expressions(patterns)
        kept = tuple(patterns)
        return lambda module: quantization.excludes(kept, module)

    def quantized(self, part: Part) -> tuple[list[str], list[str]]:
        """Give the part's linear modules that are quantized, and those that are not."""
        linears = [linear for linear in self.model.linears.values() if linear.part == part]
        return (
            [linear.name for linear in linears if self.is_quantized(linear)],
            [linear.name for linear in linears if not self.is_quantized(linear)],
        )

    def kv_scales(self, part: Part) -> list[str]:
        """Give the part's key and value cache scales, by canonical name."""
        return [name for name in self.tensors if name.endswith(KV_ENDS) and part_of(name) == part]

    def scale_of(self, name: str) -> tuple[Linear, Scale] | None:
        """Say which module's scale a tensor (canonical name) is, and what is expected of it."""
        module, _, suffix = name.rpartition(".")
        linear, scale = self.model.linears.get(module), self.stored.scales.get(suffix)
        return None if linear is None or scale is None else (linear, scale)


def _said_dtype(config: Mapping[str, Any]) -> object:
    return config.get("dtype", config.get("torch_dtype"))
