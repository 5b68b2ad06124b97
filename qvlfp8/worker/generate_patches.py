"""What has to be changed in a vLLM so that it generates where it was not built to.

On a GPU nearly nothing. On vLLM's CPU build, ModelOpt's FP8 lacks an operator, takes kernels that leave
activations unquantized where the processor has AMX, and has no FP8 KV cache without AVX-512: with the
patches here it computes on every processor what a GPU computes, to rounding: static activation
scales, FP8 weights, keys and values rounded to FP8 by their scales.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qvlfp8.worker.vllm_patches import PATCHES as PREFLIGHT
from qvlfp8.worker.vllm_patches import Patch, apply_patches, version_of_vllm

if TYPE_CHECKING:
    import torch

__all__ = ["EVERYWHERE", "ON_CPU", "ON_GPU", "apply", "round_to_fp8", "scaled_fp8_quant"]

FP8_MAX = 448.0
"""Largest number of E4M3."""


def apply(*, on_cpu: bool) -> list[dict[str, str]]:
    """Apply in order what this vLLM needs; returns id, versions and why of each as JSON facts.

    Raises:
        PatchFailed: a patch does not fit this vLLM.
        PackageNotFoundError: there is none.
    """
    return apply_patches(version_of_vllm(), (*EVERYWHERE, *(ON_CPU if on_cpu else ON_GPU)))


def apply_on_cpu() -> None:
    """As a plugin of vLLM: patch a process of its server, once."""
    if not _applied:
        _applied.extend(apply(on_cpu=True))


_applied: list[dict[str, str]] = []


def round_to_fp8(values: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """``values / scale`` as E4M3: what is too large becomes the largest number, NaN stays."""
    import torch

    return (values.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def scaled_fp8_quant(
    input: torch.Tensor,  # noqa: A002  (vLLM calls it by these names)
    scale: torch.Tensor | None = None,
    num_token_padding: int | None = None,
    scale_ub: torch.Tensor | None = None,
    use_per_token_if_dynamic: bool = False,
    output: torch.Tensor | None = None,
    group_shape: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize rows to E4M3, as vLLM's operator of this name; returns them and the scale.

    Args:
        input: of rows and columns.
        scale: one number; None: the largest magnitude of the tensor, or of each row, over 448.
        num_token_padding: fewest rows of the result; those added are zero.

    Raises:
        NotImplementedError: a scale for each group.
    """
    import torch

    if group_shape not in (None, (-1, -1)) or (scale is not None and scale.numel() != 1):
        raise NotImplementedError("scaled_fp8_quant: only one scale for the whole tensor")
    if scale is None:
        largest = input.abs().amax(-1, keepdim=True) if use_per_token_if_dynamic else input.abs().amax()
        largest = largest.float() if scale_ub is None else torch.minimum(largest.float(), scale_ub)
        scale = (largest / FP8_MAX).clamp(min=1e-12)
        scale = scale if use_per_token_if_dynamic else scale.reshape(1)
    quantized = round_to_fp8(input, scale)
    if num_token_padding is not None and num_token_padding > len(quantized):
        padded = torch.zeros(num_token_padding, input.shape[1], dtype=quantized.dtype)
        # Copied as bytes: indexing is not made for FP8 everywhere.
        padded.view(torch.uint8)[: len(quantized)] = quantized.view(torch.uint8)
        quantized = padded
    if output is not None:
        output.copy_(quantized)
        quantized = output
    return quantized, scale


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Declares, when torchvision is about to be imported, the operators that its compiled part would."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_operators()
        return None


def declare_torchvision_operators() -> None:
    """Without CUDA's libraries its released builds do not import, for want of two operators."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchvision())


def _declare_operators() -> None:
    import torch

    if torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    # Declarations last as long as the object that made them.
    _libraries.append(library)
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_libraries: list[Any] = []


def _see_without_xformers() -> None:
    from vllm.platforms import current_platform

    platform = type(current_platform)
    choose = require(platform, "get_vit_attn_backend")

    def chosen(cls: type, *arguments: Any, **named: Any) -> Any:
        backend = choose.__func__(cls, *arguments, **named)
        missing = backend.name == "XFORMERS" and importlib.util.find_spec("xformers") is None
        return type(backend)["TORCH_SDPA"] if missing else backend

    platform.get_vit_attn_backend = classmethod(chosen)


def _quantize_in_torch() -> None:
    import vllm._custom_ops as ops

    _replace_everywhere(ops, "scaled_fp8_quant", scaled_fp8_quant)


def _quantize_activations() -> None:
    from vllm.model_executor.kernels.linear.scaled_mm import cpu

    def unsupported(_cls: type, _capability: int | None = None) -> tuple[bool, str]:
        return False, "does not use the checkpoint's activation scales"

    for name in ("CPUFp8PerTensorScaledMMLinearKernel", "CPUFP8W8A8ScaledMMLinearKernel"):
        kernel = require(cpu, name)
        require(kernel, "is_supported")
        kernel.is_supported = classmethod(unsupported)


def _round_kv_cache() -> None:
    """The cache is BF16 and holds what FP8 keeps of keys and values; vLLM believes it to be FP8."""
    import vllm._custom_ops as ops
    from vllm.model_executor.layers.attention import attention
    from vllm.v1.attention.backends import cpu_attn

    store = require(ops, "cpu_attn_reshape_and_cache")
    attend = require(ops, "cpu_attention_with_kv_cache")
    schedule = require(ops, "cpu_attn_get_scheduler_metadata")
    isa_of = require(cpu_attn, "_get_attn_isa")
    dtype_of = require(attention, "kv_cache_dtype_str_to_dtype")

    def kept(values: Any, scale: float) -> Any:
        return (round_to_fp8(values, scale).float() * scale).to(values.dtype)

    def store_rounded(
        key: Any, value: Any, *others: Any, k_scale: float = 1.0, v_scale: float = 1.0,
        kv_cache_dtype: str = "auto", **named: Any,
    ) -> Any:  # fmt: skip
        if kv_cache_dtype.startswith("fp8"):
            key, value = kept(key, k_scale), kept(value, v_scale)
        return store(key, value, *others, **named)

    def attend_plain(*, k_scale: float, v_scale: float, kv_cache_dtype: str, **named: Any) -> Any:
        del k_scale, v_scale, kv_cache_dtype
        return attend(**named)

    def schedule_plain(*, kv_cache_dtype: str = "auto", **named: Any) -> Any:
        del kv_cache_dtype
        return schedule(**named)

    def dtype_plain(kv_cache_dtype: str, model_config: Any) -> Any:
        return dtype_of("auto" if kv_cache_dtype.startswith("fp8") else kv_cache_dtype, model_config)

    ops.cpu_attn_reshape_and_cache = store_rounded
    ops.cpu_attention_with_kv_cache = attend_plain
    ops.cpu_attn_get_scheduler_metadata = schedule_plain
    cpu_attn._get_attn_isa = lambda dtype, block_size, head_size=None, *_: isa_of(
        dtype, block_size, head_size
    )
    attention.kv_cache_dtype_str_to_dtype = dtype_plain


def require(owner: Any, name: str) -> Any:
    """The attribute; AttributeError where vLLM has given the name up: setting it would be silent."""
    if not hasattr(owner, name):
        raise AttributeError(f"{owner!r} has no {name!r} any more")
    return getattr(owner, name)


def _replace_everywhere(owner: Any, name: str, replacement: Callable[..., Any]) -> None:
    """Also where vLLM's modules have imported it by name already."""
    original = require(owner, name)
    for module in [m for key, m in sys.modules.items() if key.partition(".")[0] == "vllm"]:
        if getattr(module, name, None) is original:
            setattr(module, name, replacement)


EVERYWHERE: tuple[Patch, ...] = (
    Patch(
        id="declare-torchvision-operators",
        versions=">=0.10",
        why="released torchvision needs CUDA's libraries to import; two operators that no image "
        "processor calls are declared instead",
        apply=declare_torchvision_operators,
    ),
    next(patch for patch in PREFLIGHT if patch.id == "inspect-in-process"),
)
"""In the order of application, before anything of vLLM is imported."""

ON_GPU: tuple[Patch, ...] = (
    Patch(
        id="see-without-xformers",
        versions=">=0.10,<0.12",
        why="the vision tower's attention is xformers'; where it is not installed, PyTorch's is taken",
        apply=_see_without_xformers,
    ),
)
"""For released wheels on a GPU."""

ON_CPU: tuple[Patch, ...] = (
    Patch(
        id="quantize-in-torch",
        versions=">=0.32",
        why="the CPU build declares its FP8 quantization operators without their arguments",
        apply=_quantize_in_torch,
    ),
    Patch(
        id="quantize-activations",
        versions=">=0.32",
        why="FP8 kernels of some processors leave activations unquantized, or scale them anew; GPUs "
        "use the checkpoint's scales",
        apply=_quantize_activations,
    ),
    Patch(
        id="round-kv-cache",
        versions=">=0.32",
        why="an FP8 KV cache needs AVX-512 here; a BF16 one holds keys and values rounded to FP8",
        apply=_round_kv_cache,
    ),
)
"""For vLLM's CPU build."""
