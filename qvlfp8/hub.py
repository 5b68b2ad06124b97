"""Where downloaded models and data sets of the Hugging Face hub lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def hub_cache() -> Path:
    """The hub's cache, as its own variables name it."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("HF_HOME", f"{base}/huggingface")).expanduser()
    return home.absolute() / "hub"


def downloaded(model: str) -> Path:
    """Where the cache has a model such as ``Qwen/Qwen2.5-VL-3B-Instruct``, whether or not it is there."""
    return hub_cache() / f"models--{model.replace('/', '--')}"


def downloaded_dataset(name: str) -> Path:
    """Where the cache has a data set such as ``HuggingFaceM4/COCO``, whether or not it is there."""
    return hub_cache() / f"datasets--{name.replace('/', '--')}"
