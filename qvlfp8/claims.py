"""What the two files of a checkpoint say of its quantization, against each other and against the tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qvlfp8 import declared
from qvlfp8.checkpoint import CONFIG, HF_QUANT_CONFIG, Checkpoint, ConfigSource
from qvlfp8.collapse import collapse
from qvlfp8.declared import Method, UnknownDeclaration
from qvlfp8.formats import Format


@dataclass(frozen=True, kw_only=True)
class FileClaim:
    """What one of the two files says: the exclusions as written, and where the tensors are otherwise.

    ``stored_quantized``: modules that it leaves unquantized and that are; ``stored_unquantized``: the
    reverse; ``stored_otherwise``: FP8 where it says NVFP4, or the reverse. All collapsed. ``unknown`` is what
    is not known of a file that vLLM does not take.
    """

    file: ConfigSource
    taken: bool
    method: Method | None
    exclusions: tuple[str, ...]
    stored_quantized: tuple[str, ...]
    stored_unquantized: tuple[str, ...]
    stored_otherwise: tuple[str, ...]
    unknown: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether the tensors are as it says."""
        return not (self.stored_quantized or self.stored_unquantized or self.stored_otherwise or self.unknown)


def claims(checkpoint: Checkpoint, formats: Mapping[str, Format]) -> Iterator[FileClaim]:
    """Give what each file that speaks of quantization says.

    Args:
        checkpoint: the checkpoint.
        formats: how each linear module is stored, by canonical name.

    Raises:
        UnknownDeclaration: the file that vLLM takes says something that is not known.
    """
    written: dict[ConfigSource, object] = {
        "config.json": checkpoint.config.get("quantization_config"),
        "hf_quant_config.json": checkpoint.hf_quant_config,
    }
    for file, content in written.items():
        if not isinstance(content, Mapping):
            continue
        taken = file == checkpoint.quantization_source
        try:
            said = declared.read(content)
            quantizes = said.quantizes()
        except UnknownDeclaration as error:
            if taken:
                raise
            yield FileClaim(
                file=file, taken=False, method=None, exclusions=(), stored_quantized=(),
                stored_unquantized=(), stored_otherwise=(), unknown=str(error),
            )  # fmt: skip
            continue
        expected = said.method.rpartition("-")[2]
        contradicted: dict[str, list[str]] = {"quantized": [], "unquantized": [], "otherwise": []}
        for name, form in formats.items():
            says = quantizes(name)
            if form.kind == "missing" or (says and form.kind == expected):
                continue
            if says:
                contradicted["otherwise" if form.quantized else "unquantized"].append(name)
            elif form.quantized:
                contradicted["quantized"].append(name)
        yield FileClaim(
            file=file,
            taken=taken,
            method=said.method,
            exclusions=said.exclusions,
            stored_quantized=tuple(collapse(contradicted["quantized"])),
            stored_unquantized=tuple(collapse(contradicted["unquantized"])),
            stored_otherwise=tuple(collapse(contradicted["otherwise"])),
        )


def differences(checkpoint: Checkpoint) -> Iterator[str]:
    """Say what the two files say differently; vLLM takes config.json's word, where it has one."""
    inline, separate = checkpoint.config.get("quantization_config"), checkpoint.hf_quant_config
    if not isinstance(inline, Mapping) or separate is None:
        return
    try:
        here, there = declared.read(inline), declared.read(separate)
    except UnknownDeclaration:
        return  # the claim says so
    for what, one, other in (
        ("method", here.method, there.method),
        ("exclusions", sorted(here.exclusions), sorted(there.exclusions)),
        ("KV cache", here.kv_cache, there.kv_cache),
    ):
        if one != other:
            yield f"{what}: {CONFIG} says {one}, {HF_QUANT_CONFIG} {other}"
