"""A checkpoint folder: safetensors headers, index, configuration and quantization configuration.

Only headers are read, so a folder of any size opens in milliseconds; what would cost more than a second, or
lies outside the folder, is refused (:mod:`qvlfp8.untrusted`). Nothing is ever unpickled or imported. Where
several files could disagree (index and shards, two shards, the two places of a quantization configuration)
the rule is vLLM's where vLLM has one, and a refusal where it has none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from qvlfp8 import untrusted
from qvlfp8.tensorfile import (
    MAX_HEADER_BYTES,
    MAX_HEADER_VALUES,
    Tensor,
    of_headers,
    read_bytes,
    read_header,
    values,
    write_safetensors,
)
from qvlfp8.untrusted import Allowance, NotACheckpoint, is_inside

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
    "is_inside",
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

MAX_FILES = 1_000
"""Most weight files of a checkpoint; the largest published models have some 200."""

_PICKLES = frozenset({".bin", ".ckpt", ".pkl", ".pt", ".pth"})

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
    if not os.path.isdir(root):  # noqa: PTH112  (a Path raises for a name that is too long)
        raise NotACheckpoint(root, "there is no such folder", "give the folder with config.json")
    with untrusted.collection_paused():
        return _read(root)


def _read(root: Path) -> Checkpoint:
    config = _read_object(root, CONFIG, "give a folder as save_pretrained or ModelOpt writes it")
    hf_quant_config = None
    if os.path.lexists(root / HF_QUANT_CONFIG):
        hf_quant_config = _read_object(root, HF_QUANT_CONFIG, "export the checkpoint again")
    quantization, source = _effective_quantization(root, config, hf_quant_config)
    weight_map = _read_weight_map(root)
    files = sorted(set(weight_map.values())) if weight_map else _weights_without_index(root)
    if len(files) > MAX_FILES:
        raise NotACheckpoint(
            root,
            f"it has {len(files)} weight files, of which {MAX_FILES} at most are read",
            "give a Qwen VL checkpoint; this is many times what any of them has",
        )
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
        NotACheckpoint: a file cannot be read, is no regular file, or a link leads out of the folder.
    """
    total = hashlib.sha256()
    paths = sorted(_files_below(root), key=lambda path: os.fsencode(path.relative_to(root)))
    # Gigabytes, in several files: one processor needs seconds for them.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, file_digest in zip(
            paths, pool.map(lambda path: _file_digest(path, root), paths), strict=True
        ):
            total.update(os.fsencode(path.relative_to(root)) + f"\0{file_digest}\n".encode())
    return total.hexdigest()


def _file_digest(path: Path, root: Path) -> str:
    try:
        with untrusted.open_regular(path, root, mend="put the file back, or remove the link") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise NotACheckpoint(path, f"cannot be read ({error.strerror})", "put the file back") from error


def _read_object(root: Path, name: str, mend: str, bound: Allowance | None = None) -> dict[str, Any]:
    found = untrusted.read_object(root / name, bound or untrusted.of_configuration(), mend, root)
    untrusted.check_depth(root / name, found, mend)
    return found


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
    if not os.path.lexists(file):
        return {}
    bound = Allowance(nbytes=MAX_HEADER_BYTES, values=MAX_HEADER_VALUES // 4)
    weight_map = _read_object(root, INDEX, "copy the file again", bound).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise NotACheckpoint(file, "it has no weight_map", "copy the file again")
    others = [shard for shard in weight_map.values() if not isinstance(shard, str)]
    for shard in others or set(weight_map.values()):
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
    names = [path.name for path in root.iterdir()]
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if odd := [name for name in files if not _is_plain_name(name)]:
        raise NotACheckpoint(root, f"the name of its file {odd[0]!r} cannot be printed", "rename the file")
    if not files:
        pickles = sorted(name for name in names if Path(name).suffix in _PICKLES)
        if pickles:
            raise NotACheckpoint(
                root,
                f"there is no *.safetensors file; {pickles[0]!r} is a pickle, which can run any code",
                "have the model saved with safetensors by someone you trust",
            )
        raise NotACheckpoint(root, "there is no *.safetensors file", "save the model with safetensors")
    return files


def _merge(root: Path, files: Iterable[str]) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    allowance = of_headers()
    for file in files:
        for name, tensor in read_header(root / file, root=root, allowance=allowance).items():
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
