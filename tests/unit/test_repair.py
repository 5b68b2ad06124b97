"""Repair: what is changed, what is refused; the copy is whole and equal where it should be, or not there."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlfp8 import checkpoint, declared, mending, repair
from qvlfp8.checkpoint import INDEX, WEIGHTS, read_bytes, write_safetensors
from qvlfp8.conformance import Case, check_all
from qvlfp8.contract.verdict import Verdict
from qvlfp8.errors import RepairError, UsageError
from qvlfp8.mending import carry_out
from qvlfp8.quantization import UnknownQuantization
from qvlfp8.quantization import read as read_scheme
from qvlfp8.structure import from_config
from tests.unit.checkpoints import (
    SCALE,
    VLM_EXCLUSIONS,
    fp8_tensors,
    inline_quantization,
    small_config,
    write,
)
from tests.unit.test_cli import fails, qvlfp8

STRAYS = ("visual.blocks.0.attn.k_proj.k_scale", "visual.blocks.0.attn.v_proj.v_scale")


def naive(folder: Path, exclusions: tuple[str, ...] = VLM_EXCLUSIONS, *, vision: bool = True) -> Path:
    """An export with KV cache scales of the vision tower."""
    config = small_config()
    tensors = fp8_tensors(config, vision=vision) | dict.fromkeys(STRAYS, SCALE)
    return write(folder, tensors, config | {"quantization_config": inline_quantization(exclusions)})


def sharded(folder: Path) -> Path:
    """The same in two files: the tower's, and one that needs no change."""
    naive(folder)
    held = checkpoint.read(folder)
    weight_map: dict[str, str] = {}
    for file, part in (("a.safetensors", True), ("b.safetensors", False)):
        tensors = [t for t in held.tensors.values() if t.name.startswith("visual.") is part]
        write_safetensors(folder / file, [(t.name, t.dtype, t.shape, read_bytes(t)) for t in tensors])
        weight_map |= {tensor.name: file for tensor in tensors}
    (folder / WEIGHTS).unlink()
    index = {"metadata": {"total_size": held.nbytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def mend(source: Path, out: Path, **options: Any) -> checkpoint.Checkpoint:
    carry_out(repair.plan(checkpoint.read(source), **options), out)
    return checkpoint.read(out)


def problems(held: checkpoint.Checkpoint) -> list[str]:
    case = Case(held, from_config(held.config), declared.read(held.quantization))
    return [f"{p.finding} {p.subject}" for p in check_all(case, None)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_stray_scales_go_and_everything_else_is_byte_identical(tmp_path: Path) -> None:
    source = naive(tmp_path / "in")
    before = contents(source)
    mended = mend(source, tmp_path / "out")
    assert contents(source) == before
    held = checkpoint.read(source)
    assert set(held.tensors) - set(mended.tensors) == set(STRAYS)
    for name, tensor in mended.tensors.items():
        assert read_bytes(tensor) == read_bytes(held.tensors[name])
    assert problems(held)
    assert problems(mended) == []
    report = json.loads((tmp_path / "out" / repair.REPORT).read_text())
    assert report["dropped_tensors"] == list(STRAYS)


def test_what_was_mended_needs_no_mending(tmp_path: Path) -> None:
    mend(naive(tmp_path / "in"), tmp_path / "out")
    assert repair.plan(checkpoint.read(tmp_path / "out")).changes == ()


@pytest.mark.parametrize("link", ["copy", "hard"])
def test_a_shard_without_a_stray_scale_is_carried_over(tmp_path: Path, link: Any) -> None:
    source = sharded(tmp_path / "in")
    report = carry_out(repair.plan(checkpoint.read(source)), tmp_path / "out", link=link)
    assert report["weights"]["a.safetensors"]["action"] == "rewritten"
    assert report["weights"]["b.safetensors"]["action"] == ("hard-linked" if link == "hard" else "copied")
    same = (source / "b.safetensors").samefile(tmp_path / "out" / "b.safetensors")
    assert same is (link == "hard")
    mended = checkpoint.read(tmp_path / "out")
    assert problems(mended) == []
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == mended.nbytes


@pytest.mark.parametrize("spelling", ["model.visual*", "visual*", "model.layers.visual*", "*visual*"])
def test_the_tower_is_excluded_by_its_plain_name_in_both_files(tmp_path: Path, spelling: str) -> None:
    source = naive(tmp_path / "in", ("lm_head", spelling), vision=False)
    mended = mend(source, tmp_path / "out")
    assert mended.quantization is not None
    assert mended.quantization["ignore"] == mended.quantization["exclude_modules"] == ["lm_head", "visual"]
    separate = mended.hf_quant_config
    assert separate is not None
    assert separate["quantization"]["exclude_modules"] == ["lm_head", "visual"]


def test_an_exclusion_that_the_tensors_contradict_is_corrected(tmp_path: Path) -> None:
    mended = mend(naive(tmp_path / "in", ("lm_head", "visual*"), vision=True), tmp_path / "out")
    assert problems(mended) == []
    assert read_scheme(mended.quantization).exclusions == ("lm_head",)


def test_only_hf_quant_config_gives_both_files(tmp_path: Path) -> None:
    source = naive(tmp_path / "in")
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    (source / "config.json").write_text(json.dumps(config))
    separate = {
        "producer": {"name": "modelopt", "version": "0.0.0"},
        "quantization": {
            "quant_algo": "FP8",
            "kv_cache_quant_algo": "FP8",
            "exclude_modules": [*VLM_EXCLUSIONS],
        },
    }
    (source / "hf_quant_config.json").write_text(json.dumps(separate))
    mended = mend(source, tmp_path / "out")
    assert mended.quantization_source == "config.json"
    assert problems(mended) == []


def test_a_nested_config_becomes_the_published_one(tmp_path: Path) -> None:
    source = naive(tmp_path / "in")
    flat = json.loads((source / "config.json").read_text())
    outer = {*repair._OUTER, "vision_config", "quantization_config", "tie_word_embeddings"}
    inner = {key: value for key, value in flat.items() if key not in outer and "rope" not in key}
    flat = {key: value for key, value in flat.items() if key in outer} | {"hidden_size": 1}
    nested = flat | {
        "text_config": inner
        | {
            "model_type": "qwen2_5_vl_text",
            "rope_parameters": {"mrope_section": [1, 2, 3], "rope_theta": 7.0, "rope_type": "default"},
            "tie_word_embeddings": True,
        },
        "tie_word_embeddings": False,
    }
    (source / "config.json").write_text(json.dumps(nested))
    mended = mend(source, tmp_path / "out")
    assert "text_config" not in mended.config
    assert mended.config["model_type"] == flat["model_type"]
    assert {key: mended.config[key] for key in inner} == inner
    assert mended.config["rope_theta"] == 7.0
    assert mended.config["rope_scaling"] == {"type": "mrope", "mrope_section": [1, 2, 3]}
    assert mended.config["tie_word_embeddings"] is False
    assert problems(mended) == []


@pytest.mark.parametrize("odd", [{"rope_type": "yarn"}, {"factor": 4.0}])
def test_a_rotary_embedding_that_the_published_form_would_lose_is_refused(tmp_path: Path, odd: Any) -> None:
    source = naive(tmp_path / "in")
    flat = json.loads((source / "config.json").read_text())
    text = flat | {"rope_parameters": {"mrope_section": [1, 2, 3], "rope_theta": 7.0, **odd}}
    (source / "config.json").write_text(json.dumps(flat | {"text_config": text}))
    with pytest.raises(RepairError, match="rope"):
        repair.plan(checkpoint.read(source))


def test_a_base_that_is_not_there_is_said(tmp_path: Path) -> None:
    source = naive(tmp_path / "in")
    asked = qvlfp8("repair", str(source), str(tmp_path / "out"), "--base", str(tmp_path / "none"))
    fails(asked, 2, "none: no such folder", "--base")


def test_without_the_kv_cache_no_scale_and_no_claim_is_left(tmp_path: Path) -> None:
    mended = mend(naive(tmp_path / "in"), tmp_path / "out", without_kv_cache=True)
    assert not [name for name in mended.tensors if name.endswith((".k_scale", ".v_scale"))]
    assert not read_scheme(mended.quantization).kv_fp8
    assert problems(mended) == []


def test_missing_files_come_from_the_base_model(tmp_path: Path) -> None:
    source = naive(tmp_path / "in")
    base = tmp_path / "base"
    shutil.copytree(source, base)
    (base / "preprocessor_config.json").write_text('{"of": "base"}')
    (base / "tokenizer.json").write_text('{"of": "base"}')
    (source / "preprocessor_config.json").unlink()
    with pytest.raises(RepairError, match=r"(?s)preprocessor_config\.json.*--base"):
        repair.plan(checkpoint.read(source))
    mend(source, tmp_path / "out", base=base)
    assert (tmp_path / "out" / "preprocessor_config.json").read_text() == '{"of": "base"}'
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t.pop("model.layers.1.mlp.down_proj.weight_scale"), "scale-missing"),
        (lambda t: t.pop("model.norm.weight"), "missing-tensor"),
        (lambda t: t.update({"model.layers.0.mlp.extra": SCALE}), "unexpected-tensor"),
        (
            lambda t: t.update(
                {"model.layers.0.mlp.down_proj.input_scale": ("F32", (), struct.pack("<f", 0))}
            ),
            "scale-not-positive",
        ),
        (
            lambda t: t.update({"visual.blocks.0.mlp.up_proj.weight": ("BF16", (20, 16), bytes(640))}),
            "no spelling of that is known",
        ),
    ],
)
def test_what_a_copy_cannot_mend_is_refused(tmp_path: Path, edit: Any, says: str) -> None:
    config = small_config()
    tensors = fp8_tensors(config, vision=True)
    edit(tensors)
    inline = {"quantization_config": inline_quantization(VLM_EXCLUSIONS)}
    source = write(tmp_path / "in", tensors, config | inline)
    with pytest.raises(RepairError, match=says):
        repair.plan(checkpoint.read(source))
    fails(qvlfp8("repair", str(source), str(tmp_path / "out")), 18, "mend: ")
    assert not (tmp_path / "out").exists()


def test_what_was_changed_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    source = naive(tmp_path / "in", (*VLM_EXCLUSIONS, "visual.\x1b]0;owned\x07"))
    done = qvlfp8("repair", str(source), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert r"visual.\x1b]0;owned\x07" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_link_out_of_the_folder_is_refused_and_one_into_the_hub_cache_is_not(tmp_path: Path) -> None:
    source = naive(tmp_path / "in")
    (tmp_path / "secret").write_text("mine")
    (source / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(RepairError, match=r"notes\.txt: a link out"):
        mend(source, tmp_path / "out")
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    (source / "notes.txt").unlink()
    snapshot = Path(shutil.copytree(source, cache / "snapshots" / "0"))
    (snapshot / WEIGHTS).rename(cache / "blobs" / "1")
    (snapshot / WEIGHTS).symlink_to("../../blobs/1")
    assert problems(mend(snapshot, tmp_path / "out")) == []


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sharded(tmp_path / "in")
    planned = repair.plan(checkpoint.read(source))

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(planned, tmp_path / "out", advance=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_source_that_shrinks_is_noticed(tmp_path: Path) -> None:
    source = naive(tmp_path / "in")
    planned = repair.plan(checkpoint.read(source))
    with (source / WEIGHTS).open("r+b") as stream:
        stream.truncate((source / WEIGHTS).stat().st_size - 8)
    with pytest.raises(RepairError, match="shorter"):
        carry_out(planned, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_byte_that_was_copied_wrongly_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = mending._copy_range

    def damage(source: int, target: int, begin: int, at: int, length: int) -> None:
        copy(source, target, begin, at, length)
        os.pwrite(target, b"\xaa", at)

    monkeypatch.setattr(mending, "_copy_range", damage)
    with pytest.raises(RepairError, match="changed while it was copied"):
        mend(naive(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_copy_that_lacks_a_tensor_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = mending._layout
    monkeypatch.setattr(mending, "_layout", lambda old, kept: layout(old, kept[1:]))
    with pytest.raises(RepairError, match="not what it must be"):
        mend(naive(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        mend(naive(tmp_path / "in"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    source = naive(tmp_path / "in")
    done = qvlfp8("repair", str(source), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "drop 2 KV cache scales of the vision tower" in done.stdout
    assert "bytes verified: sha256 " in done.stdout
    again = qvlfp8("repair", str(tmp_path / "out"), str(tmp_path / "more"))
    assert "nothing to mend" in again.stdout
    assert not (tmp_path / "more").exists()
    said = json.loads(qvlfp8("repair", "--json", str(source), str(tmp_path / "third")).stdout)
    judged = said.pop("vllm")
    assert said == json.loads((tmp_path / "third" / repair.REPORT).read_text())
    assert {span["verdict"] for span in judged} == {"works", "fails"}
    assert "in vLLM 0.24.0: fails (language-kv-scale-unsupported)" in done.stdout


def test_what_must_work_in_some_versions_does(tmp_path: Path) -> None:
    source = naive(tmp_path / "in")
    kept = mended_for(source, tmp_path / "a", ">=0.12,<0.24")
    assert any(name.endswith(".k_scale") for name in kept.tensors)
    given_up = mended_for(source, tmp_path / "b", "vllm>=0.10")
    assert not any(name.endswith(".k_scale") for name in given_up.tensors)


def mended_for(source: Path, out: Path, versions: str) -> checkpoint.Checkpoint:
    done = qvlfp8("repair", str(source), str(out), "--for", versions)
    assert done.returncode == 0, done.stderr
    assert "fails" not in done.stdout
    return checkpoint.read(out)


def test_what_would_not_work_in_the_versions_asked_for_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = naive(tmp_path / "in")
    refuses = Verdict(environment="vllm-9", vllm="9", worth="fails")
    monkeypatch.setattr("qvlfp8.commands.repair.verdicts", lambda *_: [refuses])
    fails(qvlfp8("repair", str(source), str(tmp_path / "out"), "--for", ">=0.10"), 18, "in vLLM 9: fails")
    assert not (tmp_path / "out").exists()
    fails(qvlfp8("repair", str(source), str(tmp_path / "out"), "--for", "x"), 2, "--for 'x' is no version")


@pytest.mark.parametrize(
    ("config", "code"), [(None, 3), ({"architectures": ["Other"]}, 4), ({"model_type": 1}, 4)]
)
def test_what_is_no_such_checkpoint(tmp_path: Path, config: Any, code: int) -> None:
    source = naive(tmp_path / "in")
    if config is None:
        (source / "config.json").unlink()
    else:
        (source / "config.json").write_text(json.dumps(config))
    fails(qvlfp8("repair", str(source), str(tmp_path / "out")), code, "in")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_mended_is_sound(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tensors dropped or added, any exclusions: the outcome is sound, or refused with nothing written."""
    root = tmp_path_factory.mktemp("any")
    config = small_config()
    vision = data.draw(st.booleans())
    tensors = fp8_tensors(config, vision=vision)
    for name in data.draw(st.sets(st.sampled_from(sorted(tensors)), max_size=1)):
        del tensors[name]
    added = ["visual.blocks.1.attn.k_proj.k_scale", "model.layers.0.k_scale", "visual.extra", *STRAYS]
    tensors |= dict.fromkeys(data.draw(st.sets(st.sampled_from(added))), SCALE)
    patterns = [
        "lm_head",
        "visual",
        "visual*",
        "model.visual*",
        "*",
        "model.layers.0*",
        "visual.patch_embed*",
    ]
    exclusions = tuple(data.draw(st.lists(st.sampled_from(patterns), max_size=3)))
    inline = inline_quantization(exclusions, kv=data.draw(st.booleans()))
    source = write(root / "in", tensors, config | {"quantization_config": inline})
    try:
        mended = mend(source, root / "out", without_kv_cache=data.draw(st.booleans()))
    except RepairError:
        assert not (root / "out").exists()
    else:
        assert problems(mended) == []


@pytest.mark.parametrize("listed", [7, {}, "", False, [1]])
def test_exclusions_that_are_no_list_of_names_are_refused(tmp_path: Path, listed: Any) -> None:
    source = naive(tmp_path / "in")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["ignore"] = listed
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownQuantization):
        repair.plan(checkpoint.read(source))
