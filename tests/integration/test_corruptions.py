"""A corrupted checkpoint turns its cell red on every vLLM version: real exports, real inspect, real loaders.

Each checkpoint is a copy of a real ModelOpt export with one thing wrong. Which stage sees it is recorded;
that one of the two does is asserted, and that the untouched copy is clean.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import checkpoint
from qvlfp8.judge import Verdict
from qvlfp8.project import Project
from qvlfp8.tensorfile import Tensor, read_bytes, write_safetensors
from tests.integration.asking import Asker
from tests.integration.loader import Hosts

Entry = tuple[str, str, tuple[int, ...], bytes]
Edit = Callable[[dict[str, Entry]], None]

LINEAR = "model.layers.1.mlp.down_proj"
SHARD = "model.layers.1.self_attn.k_proj"


def _drop(name: str) -> Edit:
    def edit(entries: dict[str, Entry]) -> None:
        del entries[name]

    return edit


def _rename(name: str, new: str) -> Edit:
    def edit(entries: dict[str, Entry]) -> None:
        _, dtype, shape, data = entries.pop(name)
        entries[new] = (new, dtype, shape, data)

    return edit


def _add(name: str) -> Edit:
    def edit(entries: dict[str, Entry]) -> None:
        entries[name] = (name, "F32", (), bytes(4))

    return edit


def _retype(name: str, dtype: str, size: int) -> Edit:
    def edit(entries: dict[str, Entry]) -> None:
        shape = entries[name][2]
        count = 1
        for side in shape:
            count *= side
        entries[name] = (name, dtype, shape, bytes(size * count))

    return edit


def _reshape(name: str) -> Edit:
    def edit(entries: dict[str, Entry]) -> None:
        _, dtype, shape, data = entries[name]
        entries[name] = (name, dtype, (shape[0] // 2, *shape[1:]), data[: len(data) // 2])

    return edit


TENSOR_EDITS: Mapping[str, Edit] = {
    "weight dropped": _drop(f"{LINEAR}.weight"),
    "scale dropped": _drop(f"{LINEAR}.weight_scale"),
    "input scale dropped": _drop(f"{LINEAR}.input_scale"),
    "one shard of a fused weight dropped": _drop(f"{SHARD}.weight"),
    "norm dropped": _drop("model.norm.weight"),
    "vision weight dropped": _drop("visual.blocks.1.attn.proj.weight"),
    "tensor added": _add("model.layers.1.mlp.extra_proj.weight_scale"),
    "vision KV scale added": _add("visual.blocks.0.attn.k_proj.k_scale"),
    "weight renamed": _rename(f"{LINEAR}.weight", "model.layers.1.mlp.down_prj.weight"),
    "FP8 weight as BF16": _retype(f"{LINEAR}.weight", "BF16", 2),
    "BF16 norm as FP8": _retype("model.norm.weight", "F8_E4M3", 1),
    "half a weight": _reshape(f"{LINEAR}.weight"),
    "half a norm": _reshape("visual.blocks.0.norm1.weight"),
}


def _contradict(key: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        key(config["quantization_config"])
        path.write_text(json.dumps(config))

    return edit


def _exclude_what_is_quantized(config: dict[str, Any]) -> None:
    config["ignore"] = [
        *config["ignore"],
        "model.layers.1.mlp.down_proj",
        "model.language_model.layers.1.mlp.down_proj",
    ]


def _include_what_is_not(config: dict[str, Any]) -> None:
    config["ignore"] = ["lm_head"]


CONFIG_EDITS: Mapping[str, Callable[[Path], None]] = {
    "config excludes an FP8 module": _contradict(_exclude_what_is_quantized),
    "config includes the BF16 tower": _contradict(_include_what_is_not),
}


def _entries(folder: Path) -> dict[str, Entry]:
    def entry(tensor: Tensor) -> Entry:
        return tensor.name, tensor.dtype, tensor.shape, read_bytes(tensor)

    return {name: entry(tensor) for name, tensor in checkpoint.read(folder).tensors.items()}


@pytest.fixture(scope="session")
def corrupted(shipped: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name of the corruption -> a copy of a real export that has it; ``good`` is untouched."""
    cells = shipped.cells(only=["lm-fp8/modelopt-0.47.0/seeing-untied/*"])
    plan = shipped.plan(cells, shipped.locks(cells))
    source = shipped.store.entry("quantize", plan.step(cells[0], "quantize").digest) / "checkpoint"
    assert source.is_dir(), "run `nox -s matrix` first"
    root = tmp_path_factory.mktemp("corrupted")
    made = {}
    for name in ("good", *TENSOR_EDITS, *CONFIG_EDITS):
        folder = root / name.replace(" ", "-")
        shutil.copytree(source, folder)
        if name in TENSOR_EDITS:
            entries = _entries(folder)
            TENSOR_EDITS[name](entries)
            for old in folder.glob("*.safetensors*"):
                old.unlink()
            write_safetensors(folder / "model.safetensors", list(entries.values()), {"format": "pt"})
        elif name in CONFIG_EDITS:
            CONFIG_EDITS[name](folder)
        made[name] = folder
    return made


@pytest.fixture(scope="session")
def asker(shipped: Project, corrupted: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Asker:
    return Asker(shipped, corrupted, tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="session")
def inspected(asker: Asker) -> dict[str, Verdict]:
    return asker.inspect()


def test_inspect_sees_every_corruption_and_nothing_in_the_good_one(inspected: Mapping[str, Verdict]) -> None:
    assert {name: v.status for name, v in inspected.items()} == {
        name: "pass" if name == "good" else "fail" for name in inspected
    }


def default_serve() -> list[Any]:
    project = Project.open(Path(__file__).parents[2] / "matrix.yaml")
    asked = [e for e in project.matrix.file.serve if e.default and e.recordable]
    return [pytest.param(e.id, id=e.id) for e in asked]


@pytest.mark.parametrize("serve", default_serve())
def test_every_corruption_is_red_in_every_vllm(
    shipped: Project, hosts: Hosts, asker: Asker, inspected: Mapping[str, Verdict], serve: str
) -> None:
    cell = shipped.cells(only=[f"lm-fp8/modelopt-0.47.0/seeing-untied/{serve}"])[0]
    verdicts = asker.preflight(serve, hosts.of(serve))
    assert not {n: v.fault for n, v in verdicts.items() if v.status == "error"}
    stored = next(v for v in shipped.views(shipped.plan([cell], shipped.locks([cell]))))
    foretold = stored.stage("preflight")
    assert foretold is not None
    assert verdicts["good"].status == foretold.status
    green = [
        name for name, verdict in verdicts.items()
        if name != "good" and verdict.status == "pass" and inspected[name].status == "pass"
    ]  # fmt: skip
    assert green == []
    blind_to = [n for n, v in verdicts.items() if n != "good" and v.status == "pass"]
    print(
        f"{serve}: preflight alone sees {len(verdicts) - 1 - len(blind_to)} of {len(verdicts) - 1};"
        f" not {blind_to}"
    )
