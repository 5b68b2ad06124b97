"""Faults are planted where they should be, and nowhere else; verdicts follow from results."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvlfp8 import checkpoint as ck
from qvlfp8.tensorfile import decode_e4m3
from qvlfp8.truth.editing import Draft, encode_e4m3, rescale_e4m3
from qvlfp8.truth.faults import FAULTS, SENTINEL, faults_for, plant
from qvlfp8.truth.session import BASELINE, Subject, judge, runs, subjects, summary, table
from qvlfp8.worker import generate, inspect
from qvlfp8.worker import planted as worker
from qvlfp8.worker.protocol import Refused
from tests.unit import checkpoints
from tests.unit.test_scoring import blinded, good

pytestmark = pytest.mark.usefixtures("fast_disk")

ALL = faults_for({"vision_config": {"depth": 3}})
BY_ID = {fault.id: fault for fault in ALL}


def write_checkpoint(folder: Path, *, vision: bool) -> Path:
    """The reference model's layout, narrow, with weights that differ from element to element."""
    config = checkpoints.small_config()
    config["vision_config"]["depth"] = 3
    tensors = checkpoints.fp8_tensors(config, vision=vision)
    varied = {
        name: (dtype, shape, bytes((i * 7 + len(name)) % 120 for i in range(len(data))))
        if len(data) > 8
        else (dtype, shape, data)
        for name, (dtype, shape, data) in tensors.items()
    }
    exclusions = checkpoints.VLM_EXCLUSIONS if vision else checkpoints.LM_EXCLUSIONS
    config["quantization_config"] = checkpoints.inline_quantization(exclusions)
    checkpoints.write(folder, varied, config)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [1]}))
    return folder


@pytest.fixture(scope="module")
def good_ones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("good")
    return {
        "lm-fp8": write_checkpoint(root / "lm", vision=False),
        "vlm-fp8": write_checkpoint(root / "vlm", vision=True),
    }


def difference(one: Path, other: Path) -> tuple[set[str], set[str]]:
    """The tensors and the files (weights aside) that differ between two folders."""
    a, b = ck.read(one).tensors, ck.read(other).tensors
    tensors = {n for n in a.keys() | b.keys() if n not in a or n not in b or _raw(a[n]) != _raw(b[n])}
    names = {p.name for p in (*one.iterdir(), *other.iterdir())} - {ck.WEIGHTS}
    return tensors, {name for name in names if _content(one / name) != _content(other / name)}


def _raw(tensor: ck.Tensor) -> tuple[str, tuple[int, ...], bytes]:
    return tensor.dtype, tensor.shape, ck.read_bytes(tensor)


def _content(path: Path) -> Any:
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else text


@pytest.fixture
def planted(good_ones: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        folder = tmp_path / name
        plant(BY_ID[name], good_ones[BY_ID[name].base], folder)
        return folder

    return make


IN_FILES = {
    "exclusion-ignored": {"config.json"},
    "all-windowed": {"config.json"},
    "plain-positions": {"config.json"},
    "image-token-wrong": {"config.json"},
    "chat-template": {"chat_template.jinja", "tokenizer_config.json"},
    "image-normalization": {"preprocessor_config.json"},
}
IN_TENSORS: dict[str, Callable[[str], bool]] = {
    "scales-unset": lambda n: n.startswith("visual.") and n.endswith(("weight_scale", "input_scale")),
    "tower-shuffled": lambda n: n.startswith("visual.") and n.endswith(".weight"),
    "block-1-skipped": lambda n: (
        n.startswith(("visual.blocks.1.attn.proj.", "visual.blocks.1.mlp.down_proj."))
        and n.endswith((".weight", ".bias"))
    ),
    "patch-embed-permuted": lambda n: n == "visual.patch_embed.proj.weight",
    "kv-scales-x8": lambda n: n.endswith((".k_scale", ".v_scale")),
    "kv-scales-by-8": lambda n: n.endswith((".k_scale", ".v_scale")),
    "one-weight-scale-x4": lambda n: n == "model.layers.1.self_attn.o_proj.weight_scale",
    "vision-scales-x1.25": lambda n: n.startswith("visual.") and n.endswith(".weight_scale"),
    "input-scales-x0.1": lambda n: n.endswith(".input_scale"),
    "gate-up-swapped": lambda n: (
        n.startswith("visual.")
        and n.endswith(("gate_proj.weight", "gate_proj.bias", "up_proj.weight", "up_proj.bias"))
    ),
    "nan-scale": lambda n: n == "model.layers.1.mlp.down_proj.weight_scale",
    "cast-to-scale-one": lambda n: n.endswith(".weight_scale"),
}  # fmt: skip


def test_the_cases_cover_the_faults() -> None:
    blocks = {"block-0-skipped", "block-2-skipped"}
    in_vllm = {fault.id for fault in ALL if fault.in_vllm}
    assert set(BY_ID) == IN_FILES.keys() | IN_TENSORS.keys() | {"cast-without-scale"} | blocks | in_vllm
    assert len(BY_ID) == len(ALL) == len(FAULTS) + 3


@pytest.mark.parametrize("name", IN_FILES)
def test_a_fault_of_configuration_changes_those_files_alone(
    name: str, planted: Callable[[str], Path], good_ones: dict[str, Path]
) -> None:
    tensors, files = difference(planted(name), good_ones[BY_ID[name].base])
    assert (tensors, files) == (set(), IN_FILES[name])


@pytest.mark.parametrize("name", IN_TENSORS)
def test_a_fault_of_tensors_changes_those_tensors_alone(
    name: str, planted: Callable[[str], Path], good_ones: dict[str, Path]
) -> None:
    base = good_ones[BY_ID[name].base]
    tensors, files = difference(planted(name), base)
    wanted = {tensor for tensor in ck.read(base).tensors if IN_TENSORS[name](tensor)}
    if name == "cast-to-scale-one":
        tensors = {n for n in tensors if n.endswith("_scale")}
    # Norms of one value stay what they are in any order.
    assert tensors <= wanted
    assert len(tensors) >= 0.8 * len(wanted) > 0
    assert files == set()


def test_numbers_are_what_the_fault_says(planted: Callable[[str], Path]) -> None:
    def value(folder: Path, name: str) -> float:
        return ck.values(ck.read(folder).tensors[name])[0]

    module = "model.layers.1.self_attn"
    assert value(planted("kv-scales-x8"), f"{module}.k_proj.k_scale") == 0.0625 * 8
    assert value(planted("kv-scales-by-8"), f"{module}.v_proj.v_scale") == 0.0625 / 8
    assert value(planted("one-weight-scale-x4"), f"{module}.o_proj.weight_scale") == 0.25
    assert value(planted("scales-unset"), "visual.blocks.0.attn.qkv.weight_scale") == SENTINEL
    assert math.isnan(value(planted("nan-scale"), "model.layers.1.mlp.down_proj.weight_scale"))


def test_the_exclusion_is_forgotten_for_the_tower_alone(planted: Callable[[str], Path]) -> None:
    config = json.loads((planted("exclusion-ignored") / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head"]


def test_positions_become_plain_however_they_are_spelled(good_ones: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "newer"
    shutil.copytree(good_ones["vlm-fp8"], source)
    config = json.loads((source / "config.json").read_text())
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    config["text_config"] = {"rope_parameters": rope}
    (source / "config.json").write_text(json.dumps(config))
    plant(BY_ID["plain-positions"], source, tmp_path / "out")
    text = (tmp_path / "out" / "config.json").read_text()
    assert "mrope" not in text
    assert json.loads(text)["text_config"]["rope_parameters"]["rope_theta"] == 1e6


def test_a_fault_that_finds_nothing_to_break_is_refused(good_ones: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(LookupError):
        plant(BY_ID["vision-scales-x1.25"], good_ones["lm-fp8"], tmp_path / "out")


def test_fp8_bytes_and_numbers_are_each_others_inverse() -> None:
    for byte in range(256):
        assert encode_e4m3(decode_e4m3(byte)) == (byte if byte & 0x7F != 0x7F else 0x7F)
    assert encode_e4m3(1e9) == 0x7E
    assert decode_e4m3(encode_e4m3(-0.3)) == -0.3125
    # Half-way between 1.0 (0x38) and 1.125 (0x39): the even one.
    assert encode_e4m3(1.0625) == 0x38
    assert rescale_e4m3(bytes([0x38, 0xB8, 0x00]), 2.0) == bytes([0x40, 0xC0, 0x00])


def test_a_scale_of_two_bytes_is_read_and_written(good_ones: dict[str, Path], tmp_path: Path) -> None:
    draft = Draft(good_ones["vlm-fp8"], tmp_path / "out")
    name = "visual.blocks.0.attn.qkv.weight_scale"
    draft.put(name, dtype="BF16", data=struct.pack("<f", 0.5)[2:])
    draft.set_scalar(name, draft.scalar(name) * 3)
    draft.save()
    assert ck.values(ck.read(tmp_path / "out").tensors[name]) == (1.5,)


def done(measured: dict[str, Any]) -> dict[str, Any]:
    found = {"inspected": {"measured": {}}, "generated": {"measured": measured}}
    return {"outcome": "done", "measured": found, "failure": None}


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Subject]:
    chosen = (BY_ID["kv-scales-x8"], BY_ID["exclusion-ignored"], BY_ID["window-order"])
    monkeypatch.setattr("qvlfp8.truth.session.faults_for", lambda _config: chosen)
    monkeypatch.setattr("qvlfp8.findings.diagnose_inspect", lambda _measured: [])
    return subjects(["vlm-fp8", BASELINE], {})


def test_a_run_is_named_by_all_that_can_change_what_it_says(judged: list[Subject]) -> None:
    # What is planted in a checkpoint that is not there is left out; the unquantized model comes first.
    assert [subject.id for subject in judged] == [BASELINE, "vlm-fp8", "kv-scales-x8", "window-order"]

    def digests(**changed: Any) -> set[str]:
        asked: dict[str, Any] = {
            "exam": {"seed": 1, "per_task": 2}, "options": {"door": "engine"}, "on": {"lock": "a"},
        }  # fmt: skip
        return {run.digest for run in runs(judged, **(asked | changed))}

    assert len(digests()) == 4
    assert digests() == digests()
    others: tuple[dict[str, Any], ...] = (
        {"exam": {"seed": 1, "per_task": 3}},
        {"options": {"door": "server"}},
        {"on": {}},
    )
    for changed in others:
        assert not digests() & digests(**changed)


def test_a_run_becomes_a_job_of_the_place_where_it_is_done(judged: list[Subject]) -> None:
    found = runs(judged, exam={"seed": 1, "per_task": 2}, options={"door": "engine"}, on={})
    job = found[-1].job("checkpoints/good", "out/bf16", "out/window-order")
    assert (job["id"], job["out"], job["label"]) == (
        found[-1].digest,
        "out/window-order",
        "truth/window-order",
    )
    assert job["params"] == {
        "fault": "window-order", "checkpoint": "checkpoints/good", "baseline": "out/bf16",
        "exam": {"seed": 1, "per_task": 2}, "options": {"door": "engine"},
    }  # fmt: skip
    assert found[0].job("checkpoints/bf16", None, "out/bf16")["params"]["fault"] is None


@pytest.fixture
def asked_of_generate(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the worker has ``generate`` run, instead of running it."""
    asked: list[dict[str, Any]] = []

    def run(params: dict[str, Any], _out: Path) -> dict[str, Any]:
        held = ck.read(Path(params["checkpoint"]))
        asked.append(
            {**params, "k_scale": ck.values(held.tensors["model.layers.0.self_attn.k_proj.k_scale"])}
        )
        return {"said": "nothing"}

    monkeypatch.setattr(generate, "run", run)
    monkeypatch.setattr(inspect, "run", lambda params, _out: {"seen": params["checkpoint"]})
    return asked


def asked_with(fault: str | None, checkpoint: Path) -> dict[str, Any]:
    return {
        "fault": fault, "checkpoint": str(checkpoint), "baseline": "b", "exam": {"seed": 1}, "options": {},
    }  # fmt: skip


def test_a_fault_is_planted_in_a_copy_that_both_stages_see_and_that_is_gone_afterwards(
    good_ones: dict[str, Path], tmp_path: Path, asked_of_generate: list[dict[str, Any]]
) -> None:
    before = ck.folder_digest(good_ones["vlm-fp8"])
    measured = worker.run(asked_with("kv-scales-x8", good_ones["vlm-fp8"]), tmp_path)
    assert measured["checkpoint_digest"] == before == ck.folder_digest(good_ones["vlm-fp8"])
    (asked,) = asked_of_generate
    assert asked["k_scale"] == (0.0625 * 8,)
    assert (asked["plant"], asked["baseline"]) == (None, "b")
    assert measured["inspected"] == {"measured": {"seen": asked["checkpoint"]}}
    assert measured["generated"] == {"measured": {"said": "nothing"}}
    assert list(tmp_path.iterdir()) == []


def test_without_a_fault_the_good_checkpoint_itself_is_asked(
    good_ones: dict[str, Path], tmp_path: Path, asked_of_generate: list[dict[str, Any]]
) -> None:
    worker.run(asked_with(None, good_ones["vlm-fp8"]), tmp_path)
    assert asked_of_generate[0]["checkpoint"] == str(good_ones["vlm-fp8"])
    assert "plant" not in asked_of_generate[0]


def test_a_fault_of_vllm_is_left_to_generate(
    good_ones: dict[str, Path], tmp_path: Path, asked_of_generate: list[dict[str, Any]]
) -> None:
    worker.run(asked_with("window-order", good_ones["vlm-fp8"]), tmp_path)
    assert asked_of_generate[0]["plant"] == "window-order"


@pytest.mark.usefixtures("asked_of_generate")
def test_a_refusal_of_a_stage_is_measured_one_of_the_worker_itself_is_not(
    good_ones: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_params: Any, _out: Path) -> dict[str, Any]:
        raise Refused("not-a-checkpoint", "no")

    monkeypatch.setattr(inspect, "run", refuse)
    assert worker.run(asked_with(None, good_ones["vlm-fp8"]), tmp_path)["inspected"] == {
        "refused": "not-a-checkpoint"
    }
    with pytest.raises(Refused, match="odd"):
        worker.run(asked_with("odd", good_ones["vlm-fp8"]), tmp_path)
    with pytest.raises(Refused):
        worker.run(asked_with(None, tmp_path), tmp_path)


def test_what_is_caught_missed_harmless_and_a_false_alarm(judged: list[Subject]) -> None:
    baseline = good() | {"fidelity": None}
    missed = good()
    missed["fidelity"] |= {"p99_kl": 0.01}
    results = {BASELINE: done(baseline), "vlm-fp8": done(good()), "kv-scales-x8": done(good())}
    verdicts = judge(judged, results | {"window-order": done(blinded(good(), "colour", "odd"))}, {})
    assert [v.mark for v in verdicts] == ["quiet", "quiet", "harmless", "caught"]
    assert summary(verdicts) == ("caught 1/1, false alarms 0/2", True)
    assert "image: blind" in table(verdicts)

    verdicts = judge(judged, results | {"window-order": done(missed)}, {})
    assert verdicts[-1].mark == "MISSED"
    assert summary(verdicts) == ("caught 0/1, false alarms 0/2", False)

    alarmed = results | {"vlm-fp8": done(blinded(good(), "colour", "odd")), "window-order": done(missed)}
    assert summary(judge(judged, alarmed, {}))[0] == "caught 0/1, false alarms 1/2"


def test_what_the_machine_did_is_neither_caught_nor_quiet(judged: list[Subject]) -> None:
    crashed = {"outcome": "signal", "measured": {}, "failure": {"kind": "SIGKILL", "message": "ended"}}
    results = {BASELINE: done(good() | {"fidelity": None}), "vlm-fp8": crashed}
    verdicts = judge(judged, results, {})
    assert [v.mark for v in verdicts] == ["quiet", "ERROR", "ERROR", "ERROR"]
    assert summary(verdicts) == ("caught 0/2, false alarms 1/2", False)


def test_without_the_unquantized_model_nothing_is_said_of_the_others(judged: list[Subject]) -> None:
    crashed = {"outcome": "timeout", "measured": {}, "failure": {"kind": "timeout", "message": "late"}}
    verdicts = judge(judged, {BASELINE: crashed, "vlm-fp8": done(good())}, {})
    assert [v.mark for v in verdicts] == ["ERROR", "ERROR", "ERROR", "ERROR"]
    assert verdicts[1].error == f"{BASELINE} was not measured"


def test_what_a_stage_refuses_is_caught_by_it(judged: list[Subject]) -> None:
    refused = done(good())
    refused["measured"] = {"inspected": {"refused": "not-a-checkpoint"}, "generated": {"refused": "odd"}}
    results = {BASELINE: done(good() | {"fidelity": None}), "kv-scales-x8": refused}
    verdict = judge(judged, results, {})[2]
    assert (verdict.mark, verdict.caught_by) == ("caught", ("inspect: not-a-checkpoint", "load: odd"))
    assert verdict.as_json()["caught_by"] == ["inspect: not-a-checkpoint", "load: odd"]


@pytest.mark.parametrize(
    ("worse", "mark"),
    [
        ({}, "harmless"),
        # One answer tips over, which moves the mean and hardly anything else.
        ({"mean_kl": 0.006, "top1_agreement": 0.9994}, "harmless"),
        ({"top1_agreement": 0.995}, "MISSED"),
        ({"p99_kl": 0.02}, "MISSED"),
    ],
)
def test_harmless_is_what_leaves_the_good_checkpoint_as_it_was(
    judged: list[Subject], worse: dict[str, float], mark: str
) -> None:
    broken = good()
    broken["fidelity"] |= worse
    results = {BASELINE: done(good() | {"fidelity": None}), "vlm-fp8": done(good())}
    assert judge(judged, results | {"kv-scales-x8": done(broken)}, {})[2].mark == mark
