"""Forms: what counts of a checkpoint without its numbers, and what the records say of those that have it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvlfp8.checkpoint import Checkpoint, Tensor
from qvlfp8.contract import form_data
from qvlfp8.contract.form import Form, Irregular, form_of
from qvlfp8.contract.form_recording import answer, controlled
from qvlfp8.contract.form_verdict import form_verdicts
from qvlfp8.contract.samples import Sample, Sizes, samples
from qvlfp8.contract.shapes import different
from qvlfp8.contract.stored import Header
from qvlfp8.describe import Described, look
from qvlfp8.errors import UnknownModelError
from qvlfp8.explain import faults_of
from qvlfp8.explain_form import explain_form
from qvlfp8.worker.contract import write_checkpoint
from tests.unit.test_cli import fails, qvlfp8
from tests.unit.test_describe import PRODUCERS
from tests.unit.test_explain import explained

SAMPLES = {sample.name: sample for sample in samples()}
OTHER = Sizes(layers=3, blocks=4, hidden=384, inner=640, vision=240, vision_inner=480, mergers=2)

NAMED = pytest.mark.parametrize("name", SAMPLES)


def described(files: Mapping[str, Any], tensors: Mapping[str, Header]) -> Described:
    """A checkpoint that is nowhere on a disk."""
    file = Path("nowhere") / "model.safetensors"
    inline, separate = files["config.json"].get("quantization_config"), files.get("hf_quant_config.json")
    held = Checkpoint(
        root=file.parent,
        tensors={
            name: Tensor(name=name, dtype=dtype, shape=shape, file=file, start=0, end=0)
            for name, (dtype, shape) in sorted(tensors.items())
        },
        config=files["config.json"],
        quantization=inline or separate,
        quantization_source="config.json" if inline else "hf_quant_config.json",
        hf_quant_config=separate,
        weight_files=(file.name,),
    )
    return look(held, [name for name, content in files.items() if content is not None])


def rendered(sample: Sample, sizes: Sizes | None = None) -> Described:
    return described(sample.files(sizes), sample.tensors(sizes))


@NAMED
def test_a_sample_has_the_form_that_it_stands_for_at_every_size(name: str) -> None:
    form = form_of(rendered(SAMPLES[name]))
    assert form_data.forms()[form] == name
    assert form_of(rendered(SAMPLES[name], OTHER)) == form


def test_every_sample_was_shown_to_every_version() -> None:
    records = form_data.load_all()
    assert {of.environment for of in records} >= {"vllm-0.10.2", "vllm-0.26.0"}
    assert all(of.answers.keys() == SAMPLES.keys() for of in records)
    assert len(form_data.forms()) == len(SAMPLES)


@NAMED
def test_nothing_is_said_against_what_producers_write_but_what_is_known(name: str) -> None:
    """ModelOpt 0.37.0 spells the exclusion of Qwen2.5-VL's and Qwen2-VL's tower so that it names nothing."""
    held = rendered(SAMPLES[name])
    expected = {"config-contradicts-tensors"} if _misspelled(held) else set()
    assert {fault.finding for fault in faults_of(held, values=False)} == expected


def _misspelled(held: Described) -> bool:
    return "model.layers.visual*" in held.declaration.exclusions


def test_what_a_checkpoint_of_another_kind_lacks_is_said() -> None:
    sample = SAMPLES["modelopt-0.47.0 qwen3_vl nvfp4 lm no-kv untied"]
    tensors = sample.tensors()
    (gone, *_) = [name for name in tensors if name.endswith("weight_scale_2")]
    del tensors[gone]
    found = explain_form(described(sample.files(), tensors), form_data.load_all())
    assert [fault.finding for fault in found.faults] == ["scale-missing"]
    assert not found.works


RAGGED = "llm-compressor 0.14.0.1 FP8_BLOCK"
"""Its widths are no multiples of a block's 128."""


@pytest.mark.parametrize("name", sorted(PRODUCERS.keys() - {RAGGED}))
def test_what_producers_write_is_regular_and_recorded(name: str) -> None:
    records = form_data.load_all()
    found = form_verdicts(produced(name), records)
    assert len(found) == len(records) > 10
    assert not [verdict for verdict in found if "not like any" in (verdict.reason or "")]


def produced(name: str) -> Described:
    held = PRODUCERS[name]
    files = {"config.json": held["config"], "hf_quant_config.json": held["hf_quant_config"]}
    files |= {key: {} for key in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")}
    return described(files, {n: (dtype, tuple(s)) for n, (dtype, s) in held["tensors"].items()})


def test_half_a_block_was_shown_to_nobody() -> None:
    with pytest.raises(Irregular, match="is 64 by 128"):
        form_of(produced(RAGGED))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_one_odd_tensor_and_nothing_is_known(data: st.DataObject) -> None:
    sample = data.draw(st.sampled_from(list(SAMPLES.values())))
    tensors = sample.tensors()
    name = data.draw(st.sampled_from(sorted(tensors)))
    dtype, shape = tensors.pop(name)
    match data.draw(st.sampled_from(["drop", "rename", "retype", "reshape", "add"])):
        case "rename":
            tensors[name + data.draw(st.sampled_from(["s", ".weight", "_scale"]))] = dtype, shape
        case "retype":
            others = {"BF16", "F16", "F32", "F8_E4M3", "U8", "I8"} - {dtype}
            tensors[name] = data.draw(st.sampled_from(sorted(others))), shape
        case "reshape":
            tensors[name] = dtype, data.draw(st.sampled_from([s for s in different(shape) if s != shape]))
        case "add":
            tensors[name] = dtype, shape
            stem = name.rpartition(".")[0]
            more = data.draw(st.sampled_from(["k_scale", "weight_scale", "input_scale", "other", "bias"]))
            tensors.setdefault(f"{stem}.{more}", ("F32", ()))
    if tensors == sample.tensors():
        return
    try:
        form = form_of(described(sample.files(), tensors))
    except (UnknownModelError, Irregular):
        return
    # Of a whole head too many or too few, there may be a sample.
    known = form_data.forms().get(form)
    assert known is None or SAMPLES[known].tensors() == tensors


LM = "modelopt-0.41.0 qwen2_vl fp8 lm no-kv untied"
COMPRESSED = "llm-compressor-0.14.0.1 qwen2_vl FP8_DYNAMIC lm no-kv untied"


def reasons(found: Described) -> set[str]:
    verdicts = form_verdicts(found, form_data.load_all())
    assert {verdict.worth for verdict in verdicts} == {"unknown"}
    return {verdict.reason or "" for verdict in verdicts}


def test_an_exclusion_of_some_layers_is_irregular() -> None:
    sample = SAMPLES[COMPRESSED]
    files = sample.files()
    files["config.json"]["quantization_config"]["ignore"].remove("visual.blocks.1.attn.qkv")
    (reason,) = reasons(described(files, sample.tensors()))
    assert "'visual.blocks.{}.attn.qkv' stands for 1 of 2 blocks" in reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": []}},
            "excludes",
        ),
        ({"architectures": None}, "config.json is written"),
        ({"compression_config": {}}, "has a field 'compression_config'"),
        ({"rope_scaling": {"type": "yarn"}}, "config.json is written"),
    ],
)
def test_another_declaration_or_config_is_unknown(change: dict[str, Any], said: str) -> None:
    sample = SAMPLES[LM]
    files = sample.files()
    files["config.json"] |= change
    (reason,) = reasons(described(files, sample.tensors()))
    assert said in reason or "declared" in reason


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_field_of_the_declaration_is_unknown(data: st.DataObject) -> None:
    sample = SAMPLES[data.draw(st.sampled_from([LM, COMPRESSED]))]
    files = sample.files()
    before = form_of(described(files, sample.tensors()))
    section = files["config.json"]["quantization_config"]
    group = section["config_groups"]["group_0"]
    place = data.draw(st.sampled_from([section, group, group["weights"]]))
    key = data.draw(st.sampled_from(sorted(set(place) - {"ignore", "version", "observer"})))
    if data.draw(st.booleans()):
        del place[key]
    else:
        place[f"{key}_"] = place[key]
    try:
        after = form_of(described(files, sample.tensors()))
    except UnknownModelError:
        return
    assert after.declared != before.declared


def test_without_a_tokenizer_nothing_is_known() -> None:
    sample = SAMPLES[LM]
    files = sample.files() | {"tokenizer.json": None}
    (reason,) = reasons(described(files, sample.tensors()))
    assert reason.endswith("tokenizer.json is missing")


def test_explain_says_where_a_form_works_and_what_to_do_elsewhere(tmp_path: Path) -> None:
    sample = SAMPLES[LM]
    write_checkpoint(tmp_path / "a", sample.files(OTHER), sample.tensors(OTHER))
    found = explained(tmp_path / "a", code=1)
    worth = {version["vllm"]: version["verdict"] for version in found["versions"]}
    assert worth["0.12.0"] == "blind"
    assert worth["0.26.0"] == "works"
    (blind,) = [version for version in found["versions"] if version["vllm"] == "0.12.0"]
    assert [finding["id"] for finding in blind["findings"]] == ["vision-exclusion-ignored"]
    assert found["mend"]["command"] is None
    assert "serve it with vLLM 0.13.0" in found["mend"]["served"]
    assert "serve it with vLLM" in qvlfp8("explain", str(tmp_path / "a")).stdout
    assert explained(tmp_path / "a", "--vllm", ">=0.26,<0.27", code=0)["works"]


def test_an_unknown_form_is_described_and_4(tmp_path: Path) -> None:
    sample = SAMPLES[LM]
    tensors = sample.tensors()
    del tensors["model.norm.weight"]
    write_checkpoint(tmp_path / "a", sample.files(), tensors)
    result = qvlfp8("explain", str(tmp_path / "a"))
    fails(result, 4, "model.norm.weight is not there")
    assert "Qwen2-VL" in result.stdout
    found = json.loads(qvlfp8("explain", str(tmp_path / "a"), "--json").stdout)
    assert {version["verdict"] for version in found["versions"]} == {"unknown"}


def test_a_form_that_was_not_shown_to_a_version_is_unknown_there() -> None:
    found = rendered(SAMPLES[LM])
    (of,) = [of for of in form_data.load_all() if of.environment == "vllm-0.26.0"]
    (verdict,) = form_verdicts(found, [replace(of, answers={})])
    assert (verdict.worth, verdict.reason) == ("unknown", f"its form ({LM}) was not shown to this version")


def test_records_are_what_was_saved(tmp_path: Path) -> None:
    for of in form_data.load_all():
        assert form_data.load(form_data.save(of, tmp_path)) == of


def test_forms_differ_by_field() -> None:
    form = next(iter(form_data.forms()))
    assert list(form.unlike(replace(form, names="other"))) == ["names"]
    assert isinstance(form, Form)


def test_of_a_family_of_which_nothing_works_nothing_is_known() -> None:
    failed = form_data.Answer(worth="fails", findings=(("config-rejected", "IndexError: …"),))
    shown = [sample for sample in samples() if sample.family != "qwen2_vl" or sample.name == LM]
    answers = {sample.name: failed for sample in shown} | {LM: form_data.Answer(worth="works")}
    found = controlled(shown, answers)
    worth = {sample.family: found[sample.name].worth for sample in shown}
    assert worth == {"qwen2_vl": "works", "qwen2_5_vl": "fails", "qwen3_vl": "unknown"}


RIGHT: dict[str, Any] = {
    "exception": None, "refused": [], "stage_reached": "done", "quantization": "modelopt", "fp8_tensors": 1,
    "exclusions": [], "tie_word_embeddings": False, "kv_cache_dtype": "auto", "runner": "generate",
    "kv_scales": {"in_checkpoint": 0, "written": 0, "unpaired": []},
} | {
    name: []
    for name in (
        "never_loaded", "partly_written", "fused_scales", "defaulted", "multiply_written", "casts",
        "reshapes", "truncated", "dropped",
    )
}  # fmt: skip
"""What preflight measures of a checkpoint that is right."""


def refusal(message: str, where: str = "vllm/model.py:1 load") -> dict[str, Any]:
    error = {"type": "ValueError", "message": message, "where": where, "tensor": None, "origin": "checkpoint"}
    return {**RIGHT, "stage_reached": "build", "exception": error}


def test_what_only_a_gpu_can_answer_is_unknown() -> None:
    sample = SAMPLES[COMPRESSED]
    assert answer(sample, RIGHT).worth == "works"
    assert answer(sample, refusal("the config is odd")).worth == "fails"
    assert answer(sample, refusal("Failed to find a kernel")).worth == "unknown"
    scheme = "vllm/schemes/compressed_tensors_w8a16_fp8.py:9 create_weights"
    assert answer(sample, refusal("Unsupported strategy", scheme)).worth == "unknown"
    assert answer(sample, {"refused_kind": "unknown-model"}).worth == "unknown"


def test_half_a_fused_scale_is_harmless_in_fp8_alone() -> None:
    scale = {"name": "visual.blocks.0.attn.qkv.weight_global_scale", "touched": 1, "total": 3}
    measured = {**RIGHT, "fused_scales": [scale]}
    assert answer(SAMPLES[COMPRESSED], measured).worth == "works"
    (nvfp4,) = [s for s in samples() if s.name == "llm-compressor-0.14.0.1 qwen2_vl NVFP4 vlm no-kv untied"]
    found = answer(nvfp4, measured)
    assert [kind for kind, _ in found.findings] == ["parameter-partly-written"]
