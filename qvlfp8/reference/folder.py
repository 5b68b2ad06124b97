"""A model folder of ours: weights, configuration, tokenizer, preprocessor."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qvlfp8.checkpoint import CONFIG, WEIGHTS, folder_digest, write_safetensors
from qvlfp8.reference import architecture, tokenizer

NamedTensor = tuple[str, str, tuple[int, ...], bytes]
"""Published name, type, shape, little-endian bytes."""


def write_folder(folder: Path, config: dict[str, Any], tensors: Iterable[NamedTensor]) -> str:
    """Write a model folder; it appears whole or not at all.

    Returns:
        The folder's digest.

    Raises:
        FileExistsError: the folder exists already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: remove it, or give another folder")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    partial.mkdir(parents=True)
    try:
        _write_texts(partial, config)
        write_safetensors(partial / WEIGHTS, tensors, {"format": "pt"})
        digest = folder_digest(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return digest


def _write_texts(folder: Path, config: dict[str, Any]) -> None:
    documents = {
        CONFIG: config,
        "generation_config.json": architecture.generation_config(),
        "preprocessor_config.json": architecture.preprocessor_config(),
        "tokenizer.json": tokenizer.tokenizer_json(),
        "tokenizer_config.json": tokenizer.tokenizer_config(architecture.MAX_POSITIONS),
        "vocab.json": tokenizer.BYTE_IDS,
        "chat_template.json": {"chat_template": tokenizer.CHAT_TEMPLATE},
    }
    texts = {
        name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in documents.items()
    }
    texts["merges.txt"] = tokenizer.MERGES
    texts["chat_template.jinja"] = tokenizer.CHAT_TEMPLATE
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
