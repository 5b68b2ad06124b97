"""`qvlfp8 explain`: what it says of checkpoints, its mends, its exit codes."""

from __future__ import annotations

import io
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import checkpoint, remote, repair
from qvlfp8.checkpoint import WEIGHTS
from qvlfp8.contract.data import load_all
from qvlfp8.contract.subject import subject
from qvlfp8.contract.verdict import Range, Verdict, merged, verdicts
from tests.unit import hostile
from tests.unit.checkpoints import (
    LM_EXCLUSIONS,
    SCALE,
    VLM_EXCLUSIONS,
    fp8_tensors,
    inline_quantization,
    lm_fp8,
    small_config,
    write,
)
from tests.unit.test_cli import fails, qvlfp8
from tests.unit.test_repair import naive

EVERY = [contract.vllm for contract in load_all()]


def explained(*arguments: object, code: int) -> dict[str, Any]:
    result = qvlfp8("explain", *map(str, arguments), "--json")
    assert result.returncode == code, result.stdout + result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def worth(found: dict[str, Any]) -> dict[str, str]:
    return {version["vllm"]: version["verdict"] for version in found["versions"]}


def portable(folder: Path) -> Path:
    """An export that every version reads alike: plain ``visual``, under both keys."""
    inline = inline_quantization(("lm_head", "visual"), kv=False)
    inline |= {"exclude_modules": inline["ignore"], "kv_cache_quant_algo": None}
    config = small_config()
    tensors = {
        name: entry
        for name, entry in fp8_tensors(config).items()
        if not name.endswith(("k_scale", "v_scale"))
    }
    return write(folder, tensors, config | {"quantization_config": inline})


def test_what_works_everywhere_is_0(tmp_path: Path) -> None:
    found = explained(portable(tmp_path / "a"), code=0)
    assert set(worth(found).values()) == {"works"}
    assert found["works"]
    assert found["mend"] is None
    assert found["ranges"] == [{"versions": EVERY, "verdict": "works", "findings": []}]


def test_stray_scales_fail_everywhere_and_the_mend_is_a_repair(tmp_path: Path) -> None:
    found = explained(naive(tmp_path / "a"), code=1)
    assert set(worth(found).values()) == {"fails"}
    assert all("stray-vision-kv-scale" in {f["id"] for f in v["findings"]} for v in found["versions"])
    assert found["mend"]["command"].startswith(f"qvlfp8 repair {tmp_path / 'a'} a-mended")
    assert "drop 2 KV cache scales of the vision tower" in found["mend"]["changes"]
    assert {span["verdict"] for span in found["mend"]["afterwards"]} == {"works", "fails"}
    assert found["mend"]["instead"]["command"].endswith("a-mended --without-kv-cache")
    assert [span["verdict"] for span in found["mend"]["instead"]["afterwards"]] == ["works"]


def test_the_mend_does_what_is_said_of_it(tmp_path: Path) -> None:
    source = naive(tmp_path / "a")
    promised = explained(source, code=1)["mend"]["afterwards"]
    assert qvlfp8("repair", str(source), str(tmp_path / "b"), *_options(source)).returncode == 0
    found = explained(tmp_path / "b", code=0 if len(promised) == 1 else 1)
    assert found["ranges"] == promised


def _options(source: Path) -> list[str]:
    command = explained(source, code=1)["mend"]["command"].split()
    return [word for word in command[4:] if word.startswith("--")]


def test_a_spelling_that_old_versions_do_not_match_is_blind_there(tmp_path: Path) -> None:
    config = small_config()
    inline = inline_quantization(("lm_head", "model.visual*"), kv=False)
    tensors = {
        name: entry
        for name, entry in fp8_tensors(config).items()
        if not name.endswith(("k_scale", "v_scale"))
    }
    folder = write(tmp_path / "a", tensors, config | {"quantization_config": inline})
    found = worth(explained(folder, code=1))
    assert {found[v] for v in ("0.10.0", "0.10.2", "0.11.0", "0.12.0")} == {"blind"}
    assert {found[v] for v in EVERY if v not in ("0.10.0", "0.10.2", "0.11.0", "0.12.0")} == {"works"}
    said = qvlfp8("explain", str(folder)).stdout
    assert "0.10.0 to 0.12.0: works for text only, blind (vision-exclusion-ignored)" in said
    assert "0.13.0 to 0.33.0: works" in said


def test_only_the_versions_asked_for_count(tmp_path: Path) -> None:
    config = small_config()
    inline = inline_quantization(("lm_head", "model.visual*"), kv=False)
    tensors = {
        name: entry
        for name, entry in fp8_tensors(config).items()
        if not name.endswith(("k_scale", "v_scale"))
    }
    folder = write(tmp_path / "a", tensors, config | {"quantization_config": inline})
    assert list(worth(explained(folder, "--vllm", ">=0.13,<0.15", code=0))) == ["0.13.0", "0.14.1"]
    assert list(worth(explained(folder, "--vllm", "0.12.0", code=1))) == ["0.12.0"]


def test_what_is_wrong_in_itself_is_said(tmp_path: Path) -> None:
    config = small_config()
    tensors = fp8_tensors(config)
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = ("F32", (), struct.pack("<f", -1.0))
    folder = write(
        tmp_path / "a", tensors, config | {"quantization_config": inline_quantization(LM_EXCLUSIONS)}
    )
    found = explained(folder, code=1)
    assert [fault["finding"] for fault in found["faults"]] == ["scale-not-positive"]
    assert found["mend"]["command"] is None
    assert "model.layers.0.mlp.up_proj.weight_scale" in found["mend"]["refused"]


def test_missing_files_are_asked_of_the_base_model(tmp_path: Path) -> None:
    folder = naive(tmp_path / "a")
    (folder / "preprocessor_config.json").unlink()
    assert "--base BASE_MODEL" in explained(folder, code=1)["mend"]["command"]


def test_what_repair_refuses_is_said_with_its_reason(tmp_path: Path) -> None:
    config = small_config()
    tensors = fp8_tensors(config) | {"visual.blocks.0.attn.k_proj.k_scale": SCALE}
    del tensors["model.layers.0.mlp.down_proj.weight_scale"]
    folder = write(
        tmp_path / "a", tensors, config | {"quantization_config": inline_quantization(LM_EXCLUSIONS)}
    )
    found = explained(folder, code=1)
    assert found["mend"]["command"] is None
    assert "model.layers.0.mlp.down_proj" in found["mend"]["refused"]


@pytest.mark.parametrize("name", ["exclusions-many", "exclusions-wild", "exclusions-long", "hf-quant-number"])
def test_what_is_too_odd_to_be_repaired_is_explained_all_the_same(name: str, tmp_path: Path) -> None:
    folder = hostile.victim(tmp_path / "a")
    case = next(case for case in hostile.CASES if case.name == name)
    case.make(folder)
    assert case.says in explained(folder, code=1)["mend"]["refused"]


def test_usage_is_2_no_checkpoint_3_an_unknown_kind_4(tmp_path: Path) -> None:
    folder = lm_fp8(tmp_path / "a")
    fails(qvlfp8("explain", *map(str, [folder, "--vllm", ">>1"])), 2, "no version specifier")
    fails(
        qvlfp8("explain", *map(str, [folder, "--vllm", ">9"])), 2, "holds for none of the recorded versions"
    )
    fails(qvlfp8("explain", *map(str, [tmp_path / "none"])), 3, "there is no such folder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    fails(qvlfp8("explain", *map(str, [folder])), 4, "Llama")


def test_a_known_kind_without_verdicts_is_described_and_4(tmp_path: Path) -> None:
    folder = lm_fp8(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= {"quant_algo": "NVFP4"}
    (folder / "config.json").write_text(json.dumps(config))
    result = qvlfp8("explain", str(folder))
    assert result.returncode == 4


def test_two_checkpoints_are_compared(tmp_path: Path) -> None:
    a, b = lm_fp8(tmp_path / "a"), naive(tmp_path / "b")
    result = qvlfp8("explain", str(a), "--against", str(b))
    assert result.returncode == 0
    assert "visual.blocks.0.attn.k_proj.k_scale" in result.stdout
    assert json.loads(qvlfp8("explain", str(a), "--against", str(b), "--json").stdout)


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org").mkdir()
    shutil.move(portable(tmp_path / "a"), tmp_path / "org" / "model")
    monkeypatch.setattr(remote, "opened", lambda _: pytest.fail("the hub was asked"))
    assert qvlfp8("explain", "org/model", cwd=tmp_path).returncode == 0


def test_the_planned_mend_and_the_one_carried_out_are_judged_alike(tmp_path: Path) -> None:
    source = naive(tmp_path / "a", VLM_EXCLUSIONS)
    planned = repair.plan(checkpoint.read(source)).mended
    assert qvlfp8("repair", str(source), str(tmp_path / "b")).returncode == 0
    done = checkpoint.read(tmp_path / "b")
    contracts = load_all()
    assert [v.ids for v in verdicts(subject(planned), contracts)] == [
        v.ids for v in verdicts(subject(done), contracts)
    ]


def test_neighbours_with_one_verdict_are_one_range() -> None:
    def verdict(vllm: str, worth: Any) -> Verdict:
        return Verdict(environment=f"vllm-{vllm}", vllm=vllm, worth=worth)

    found = list(
        merged([verdict("1", "works"), verdict("2", "works"), verdict("3", "blind"), verdict("4", "works")])
    )
    assert [(span.words, span.verdict.worth) for span in found] == [
        ("1 to 2", "works"), ("3", "blind"), ("4", "works"),
    ]  # fmt: skip
    assert isinstance(found[0], Range)


def test_headers_alone_are_read(tmp_path: Path) -> None:
    folder = portable(tmp_path / "a")
    held = checkpoint.read(folder)
    with (folder / WEIGHTS).open("r+b") as stream:
        # What is left of a weight is a hole: were it read, it would be found to be zero.
        largest = max(held.tensors.values(), key=lambda tensor: tensor.nbytes)
        stream.seek(largest.start)
        stream.write(bytes(largest.nbytes))
    assert explained(folder, code=0)["works"]


@pytest.mark.parametrize("seen", [False, True])
def test_a_checkpoint_cannot_speak_to_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    folder = portable(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["producer"] = {"name": "modelopt", "version": "0.1\x1b]0;owned\x07"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("TERM", "dumb")
    screen = type("Screen", (io.StringIO,), {"isatty": lambda _self: seen})
    monkeypatch.setattr(io, "StringIO", screen)
    done = qvlfp8("explain", str(folder))
    assert r"0.1\x1b]0;owned\x07" in done.stdout
    assert "\x1b" not in done.stdout
