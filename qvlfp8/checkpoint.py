"""A checkpoint folder: safetensors headers, index, configuration and quantization configuration.

Only headers are read, so a folder of any size opens in milliseconds. Where several files could
disagree (index and shards, two shards, the two places of a quantization configuration) the rule is
vLLM's where vLLM has one, and a refusal where it has none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from qvlfp8 import digest
from qvlfp8.tensorfile import (
    NotACheckpoint,
    Tensor,
    parse_object,
    read_bytes,
    read_header,
    values,
    write_safetensors,
)

__all__ = [
    "CONFIG",
    "HF_QUANT_CONFIG",
    "INDEX",
    "WEIGHTS",
    "Checkpoint",
    "ConfigSource",
    "NotACheckpoint",
    "Tensor",
    "folder_digest",
    "read",
    "read_bytes",
    "read_header",
    "values",
    "write_safetensors",
]

CONFIG = "config.json"
HF_QUANT_CONFIG = "hf_quant_config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"

ConfigSource = Literal["config.json", "hf_quant_config.json"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a folder declares: tensors (sorted by name), model and quantization configuration.

    ``quantization`` is what vLLM takes: ``quantization_config`` of config.json if there is one,
    else the content of hf_quant_config.json; ``quantization_source`` says which. Both None: BF16.
    ``hf_quant_config`` is that file's content whether or not it was taken.
    """

    root: Path
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    quantization: Mapping[str, Any] | None
    quantization_source: ConfigSource | None
    hf_quant_config: Mapping[str, Any] | None
    weight_files: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together, headers not counted."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read(root: Path) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        NotACheckpoint: no folder, no configuration, no weights, or a file that breaks its format.
    """
    if not root.is_dir():
        raise NotACheckpoint(root, "there is no such folder", "give the folder with config.json")
    config = _read_object(root / CONFIG, "give a folder as save_pretrained or ModelOpt writes it")
    hf_quant_config = None
    if (root / HF_QUANT_CONFIG).exists():
        hf_quant_config = _read_object(root / HF_QUANT_CONFIG, "export the checkpoint again")
    quantization, source = _effective_quantization(root, config, hf_quant_config)
    weight_map = _read_weight_map(root)
    files = sorted(set(weight_map.values())) if weight_map else _weights_without_index(root)
    tensors = _merge(root, files)
    if weight_map:
        _check_index(root, weight_map, tensors)
    return Checkpoint(
        root=root,
        tensors=MappingProxyType(dict(sorted(tensors.items()))),
        config=config,
        quantization=quantization,
        quantization_source=source,
        hf_quant_config=hf_quant_config,
        weight_files=tuple(files),
    )


def folder_digest(root: Path) -> str:
    """Digest a folder: SHA-256, hexadecimal, over the sorted relative names and file digests.

    Links to files count as the files; links to folders are not followed.

    Raises:
        NotACheckpoint: a file cannot be read.
    """
    total = hashlib.sha256()
    for path in sorted(_files_below(root), key=lambda path: os.fsencode(path.relative_to(root))):
        try:
            file_digest = digest.of_file(path)
        except OSError as error:
            raise NotACheckpoint(
                path, f"cannot be read ({error.strerror})", "put the file back, or remove the link"
            ) from error
        total.update(os.fsencode(path.relative_to(root)) + f"\0{file_digest}\n".encode())
    return total.hexdigest()


def _read_object(file: Path, mend: str) -> dict[str, Any]:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise NotACheckpoint(file, f"cannot be read ({error.strerror})", mend) from error
    return parse_object(file, raw, mend)


def _effective_quantization(
    root: Path, config: Mapping[str, Any], hf_quant_config: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any] | None, ConfigSource | None]:
    inline = config.get("quantization_config")
    if inline is None:
        return hf_quant_config, "hf_quant_config.json" if hf_quant_config is not None else None
    if not isinstance(inline, dict):
        raise NotACheckpoint(
            root / CONFIG, "its quantization_config is not an object", "export the checkpoint again"
        )
    return inline, "config.json"


def _read_weight_map(root: Path) -> dict[str, str]:
    """The index's tensor name -> file name; empty without an index."""
    file = root / INDEX
    if not file.exists():
        return {}
    weight_map = _read_object(file, "copy the file again").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise NotACheckpoint(file, "it has no weight_map", "copy the file again")
    for shard in weight_map.values():
        if not _is_plain_name(shard):
            raise NotACheckpoint(
                file,
                f"its weight_map names {shard!r}",
                "only files of the folder itself may be named",
            )
    return weight_map


def _is_plain_name(shard: object) -> bool:
    """A file of the folder itself; what cannot be printed cannot be opened either."""
    return (
        isinstance(shard, str)
        and shard.isprintable()
        and shard not in {"", ".", ".."}
        and not {"/", "\\"} & set(shard)
    )


def _weights_without_index(root: Path) -> list[str]:
    files = sorted(path.name for path in root.glob("*.safetensors"))
    if not files:
        raise NotACheckpoint(root, "there is no *.safetensors file", "save the model with safetensors")
    return files


def _merge(root: Path, files: Iterable[str]) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read_header(root / file).items():
            if name in merged:
                raise NotACheckpoint(
                    root / file,
                    f"{name!r} is also in {merged[name].file.name}",
                    "remove the file that is left from another export",
                )
            merged[name] = tensor
    return merged


def _check_index(root: Path, weight_map: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    held = {name: tensor.file.name for name, tensor in tensors.items()}
    if differing := sorted(name for name, _ in held.items() ^ weight_map.items()):
        name = differing[0]
        raise NotACheckpoint(
            root / INDEX,
            f"{name!r} is in {held.get(name, 'no file')}, the index says {weight_map.get(name, 'nothing')}",
            "write index and weights anew from one export",
        )


def _files_below(root: Path) -> Iterable[Path]:
    for folder, _, names in os.walk(root):
        for name in names:
            yield Path(folder, name)
