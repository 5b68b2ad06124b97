"""The contract's parts: names and shapes without numbers, exclusions, like layers, and the recorded data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlfp8 import checkpoint, structure
from qvlfp8.commands.contract import differences
from qvlfp8.contract import forms, recording
from qvlfp8.contract.answers import NotRecorded
from qvlfp8.contract.condense import raised
from qvlfp8.contract.control import BASES, config, inline, preprocessor
from qvlfp8.contract.data import Contract, Matching, load, load_all, save
from qvlfp8.contract.exclusions import Unexplained, fit, quantized
from qvlfp8.contract.faithful import unlike
from qvlfp8.contract.names import MODULES, collapse, locate, spell
from qvlfp8.contract.predict import predict, replay
from qvlfp8.contract.probes import probes
from qvlfp8.contract.samples import Sample, samples
from qvlfp8.contract.shapes import RIGHT, different, relation
from qvlfp8.contract.subject import subject
from qvlfp8.contract.verdict import merged, verdicts
from qvlfp8.engine import Batch, Job
from qvlfp8.errors import FileFormatError, WorkerError
from qvlfp8.locks import find_lock
from qvlfp8.project import Project
from qvlfp8.worker.contract import OBSERVED, changed, write_checkpoint
from tests.contract_found import DATA, FOUND
from tests.unit.factory import open_project
from tests.unit.test_cli import fails, qvlfp8
from tests.unit.test_run import FakeEngine

MATRIX = Path(__file__).parents[2] / "matrix.yaml"
MODEL = structure.from_config(config())


# --- names and shapes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spelling", "key"),
    [
        ("model.layers.1.mlp.up_proj.weight", "published", "model.layers.{}.mlp.up_proj/weight"),
        (
            "model.language_model.layers.1.mlp.up_proj.weight",
            "transformers",
            "model.layers.{}.mlp.up_proj/weight",
        ),
        ("language_model.model.norm.weight", "vllm", "model.norm/weight"),
        ("model.visual.merger.mlp.0.bias", "transformers", "visual.merger.mlp.0/bias"),
        ("language_model.lm_head.weight", "vllm", "lm_head/weight"),
        ("visual.blocks.0.attn.k_proj.k_scale", "published", "visual.blocks.{}.attn.k_proj/k_scale"),
        ("visual.blocks.2.attn.qkv.weight", "published", "visual.blocks.+.attn.qkv/weight"),
        ("visual.blocks.0.attn.strange.weight", "published", "visual.blocks.{}.attn/?/weight"),
        ("model.layers.0.mlp.strange_scale", "published", "model.layers.{}.mlp/other_scale"),
        ("model.layers.0.mlp", "published", "model.layers.{}.mlp/"),
        ("strange", "published", "/other"),
        ("model.layers.00.mlp.up_proj.weight", "published", "model.layers/?part/weight"),
    ],
)
def test_a_name_has_a_place(name: str, spelling: str, key: str) -> None:
    place = locate(name, MODEL)
    assert (place.spelling, place.key) == (spelling, key)


@given(st.sampled_from(sorted(MODEL.shapes)), st.sampled_from(["published", "transformers", "vllm"]))
def test_every_spelling_of_a_name_has_one_place(name: str, spelling: str) -> None:
    there, here = locate(spell(name, spelling), MODEL), locate(name, MODEL)
    assert replace(there, spelling=here.spelling) == here
    assert here.module in MODULES
    assert collapse(name).count("{}") == (here.index is not None)


SHAPES = st.lists(st.integers(0, 9), max_size=5).map(tuple)


@given(SHAPES, SHAPES)
def test_a_relation_is_right_only_of_equal_shapes(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert (relation(shape, expected) == RIGHT) == (shape == expected)


@given(st.sampled_from([(), (256,), (512, 256), (160, 3, 2, 14, 14)]), SHAPES)
def test_each_relation_that_a_shape_can_have_was_shown(
    expected: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    shown = {relation(other, expected) for other in different(expected)} | {RIGHT}
    # Of the rank 4 and more than the expected, and of shapes that vanish, there is one sort each.
    if len(shape) <= 3 and (len(shape) == len(expected) or math.prod(shape) != math.prod(expected)):
        assert relation(shape, expected) in shown


# --- exclusions ---------------------------------------------------------------------------------

RULES = Matching(mapped=True, star=True, whole=True, fused=True, substring=False, equal=False, wildcard=True)
PREFIXES = [["model.visual.", "visual."], ["model.", "language_model.model."]]
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
QKV = "language_model.model.layers.0.self_attn.qkv_proj"
TOWER = "visual.blocks.0.attn.proj"


def left(*patterns: str, rules: Matching = RULES) -> set[str] | None:
    found = quantized(patterns, [QKV, TOWER], rules, prefixes=PREFIXES, packed=PACKED)
    return None if found is None else set(found)


def test_exclusions_are_matched_by_rules() -> None:
    assert left() == {QKV, TOWER}
    assert left("visual*") == {QKV}
    assert left("model.visual*") == {QKV}
    assert left("model.visual*", rules=replace(RULES, star=False)) == {QKV, TOWER}, "renaming asks for a dot"
    assert left("model.visual.*", rules=replace(RULES, mapped=False)) == {QKV, TOWER}
    assert left("isua", rules=replace(RULES, substring=True)) == {QKV}
    assert left(QKV) == {TOWER}
    parts = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    assert left(*parts) == {TOWER}
    assert left(*parts[:2]) is None, "its parts disagree"
    assert left(QKV, *parts[:2]) == {TOWER}
    assert left(QKV, *parts[:2], rules=replace(RULES, whole=False)) is None


def test_rules_are_found_from_answers() -> None:
    lists = [
        (),
        ("visual*",),
        ("model.visual.*",),
        (QKV,),
        ("isua",),
        (TOWER,),
        ("model.layers.0.self_attn.q_proj",),
    ]
    modules = [QKV, TOWER]
    hidden = Matching(
        mapped=True, star=False, whole=False, fused=True, substring=True, equal=False, wildcard=False
    )
    answers = [
        (found, quantized(found, modules, hidden, prefixes=PREFIXES, packed=PACKED)) for found in lists
    ]
    rules = fit(answers, modules=modules, prefixes=PREFIXES, packed=PACKED)
    assert [left(*found, rules=rules) for found in lists] == [left(*found, rules=hidden) for found in lists]
    with pytest.raises(Unexplained, match="no rules explain"):
        fit([(("visual*",), frozenset())], modules=modules, prefixes=PREFIXES, packed=PACKED)


# --- forms --------------------------------------------------------------------------------------


def test_a_rendered_form_is_read_as_itself() -> None:
    for form in forms.all_configs():
        assert forms.read_config(form.render()) == form
    for declared in forms.all_quantizations():
        files = declared.render()
        assert forms.read_quantization(files["config.json"], files.get("hf_quant_config.json")) == declared


def test_what_is_no_known_form_is_told_apart() -> None:
    known = {form.key for form in forms.all_configs()}
    assert forms.read_config(config() | {"rope_scaling": {"type": "yarn"}}).key not in known
    assert forms.read_config(config() | {"tie_word_embeddings": "yes"}).key not in known
    assert forms.read_config(config() | {"text_config": {"model_type": "qwen2"}}).key not in known


ODD: dict[str, dict[str, Any]] = {
    "hidden_act": {"hidden_act": "gelu"},
    "torch_dtype": {"torch_dtype": "int8"},
    "use_sliding_window": {"use_sliding_window": True},
    "rms_norm_eps": {"rms_norm_eps": "1e-6"},
    "image_token_id": {"image_token_id": True},
    "video_token_id": {"video_token_id": None},
    "compression_config": {"compression_config": {}},
    "architectures": {"architectures": []},
    "text_config": {"text_config": 3},
    "layer_types": {"layer_types": ["sliding_attention"]},
    "num_key_value_heads": {"num_key_value_heads": 3},
    "vision_config.num_heads": {"vision_config": config()["vision_config"] | {"num_heads": 3}},
    "mrope_section": {"rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 13]}},
}


@pytest.mark.parametrize("field", ODD)
def test_a_field_that_no_probe_has_so_is_not_judged(field: str) -> None:
    assert forms.odd_field(config()) is None
    assert forms.odd_field(config() | ODD[field]) == field


@pytest.mark.parametrize(
    "sample",
    [s for s in samples() if s.name.startswith("modelopt-") and s.family == "qwen2_5_vl"],
    ids=lambda s: s.name,
)
def test_what_modelopt_writes_is_not_odd(sample: Sample) -> None:
    assert forms.odd_field(sample.files()["config.json"]) is None


def test_an_odd_field_leaves_every_verdict_unknown(tmp_path: Path) -> None:
    files = {**BASES["bf16"].files, "config.json": config() | ODD["hidden_act"]}
    write_checkpoint(tmp_path / "a", files, BASES["bf16"].tensors)
    (span,) = merged(verdicts(subject(checkpoint.read(tmp_path / "a")), load_all()))
    assert (span.verdict.worth, "hidden_act" in (span.verdict.reason or "")) == ("unknown", True)


@pytest.mark.parametrize(
    "odd",
    [
        {"ignore": None}, {"ignore": [1]}, {"quant_method": "awq"}, {"producer": {"name": "another"}},
        {"kv_cache_quant_algo": "NVFP4"}, {"quantization": 3},
    ],
)  # fmt: skip
def test_a_declaration_that_no_probe_has_so_is_told_apart(odd: dict[str, Any]) -> None:
    known = {form.key for form in forms.all_quantizations()}
    plain = forms.plain(("lm_head",))
    assert forms.read_quantization(config() | {"quantization_config": plain}, None).key in known
    assert forms.read_quantization(config() | {"quantization_config": plain | odd}, None).key not in known


# --- like layers --------------------------------------------------------------------------------


def made(folder: Path, *, layers: int = 4, exclude: tuple[str, ...] = (), drop: tuple[str, ...] = ()) -> Path:
    whole = config(layers=layers)
    tensors = {
        name: ("BF16", shape)
        for name, shape in structure.from_config(whole).shapes.items()
        if name not in drop
    }
    files = {
        "config.json": whole | {"quantization_config": inline(exclude)},
        "preprocessor_config.json": preprocessor(),
    }
    write_checkpoint(folder, files, tensors)
    return folder


def test_like_layers_are_one(tmp_path: Path) -> None:
    asked = subject(checkpoint.read(made(tmp_path / "a")))
    assert (asked.layers, asked.blocks) == ((0,), (0,))
    # In names' order: what stands for layers 0 to 3 is read when the first of them is.
    assert [entry.order for entry in asked.entries] == sorted(entry.order for entry in asked.entries)
    (up,) = (entry for entry in asked.entries if entry.name == "model.layers.0.mlp.up_proj.weight")
    names = sorted(checkpoint.read(tmp_path / "a").tensors)
    assert names[up.order] == up.name
    assert names[up.last] == "model.layers.3.mlp.up_proj.weight"


def test_a_layer_that_differs_stands_for_itself(tmp_path: Path) -> None:
    asked = subject(checkpoint.read(made(tmp_path / "a", drop=("model.layers.2.mlp.up_proj.weight",))))
    assert asked.layers == (0, 2)
    asked = subject(checkpoint.read(made(tmp_path / "b", exclude=("model.layers.3.mlp.up_proj",))))
    assert asked.layers == (0, 3)


def test_a_pattern_that_may_mean_several_layers_makes_them_all_differ(tmp_path: Path) -> None:
    for number, pattern in enumerate(
        ("layers.1", "model.layers.[12].mlp*", "model.layers.1*", "*.1.mlp*", ".1.mlp")
    ):
        asked = subject(checkpoint.read(made(tmp_path / str(number), exclude=(pattern,))))
        assert asked.layers == (0, 1, 2, 3), pattern


# --- the recorded contracts ---------------------------------------------------------------------


def test_every_serve_environment_has_its_contract() -> None:
    project = Project.open(MATRIX)
    serve = {e.id: find_lock(project.matrix, e).digest for e in project.matrix.file.serve if e.recordable}
    assert {contract.environment: contract.lock for contract in load_all()} == serve, (
        "run `qvlfp8 contract record`"
    )


def test_a_contract_holds_answers_to_every_probe_of_forms() -> None:
    configs = {probe.key[2] for probe in probes() if probe.key[0] == "config"}
    declared = {probe.key[1] for probe in probes() if probe.key[0] == "quantization"}
    for contract in load_all():
        assert set(contract.configs) == configs
        assert set(contract.quantizations) == declared


@pytest.mark.parametrize("contract", load_all(), ids=lambda contract: contract.environment)
@pytest.mark.parametrize("name", ["fp8", "excluded", "bf16", "fp8-tied", "bf16-tied"])
def test_the_bases_have_no_finding_that_fails(tmp_path: Path, contract: Contract, name: str) -> None:
    write_checkpoint(tmp_path / "a", BASES[name].files, BASES[name].tensors)
    found = predict(subject(checkpoint.read(tmp_path / "a")), contract)
    assert [finding.id for finding in found if finding.severity != "note"] == []


@pytest.mark.parametrize("name", sorted(FOUND))
def test_what_vllm_once_did_otherwise(tmp_path: Path, name: str) -> None:
    said = json.loads(DATA.read_text())[name]
    write_checkpoint(tmp_path / "a", FOUND[name].files, FOUND[name].tensors)
    asked = subject(checkpoint.read(tmp_path / "a"))
    contracts = {contract.environment: contract for contract in load_all()}
    assert {e: sorted({f.id for f in predict(asked, contracts[e])}) for e in said} == said
    assert set(said) == set(contracts)


def test_a_contract_that_says_otherwise_than_vllm_did_is_told_of(tmp_path: Path) -> None:
    contract = load_all()[-1]
    asked = [probe for probe in probes() if probe.key[:2] in {("drop", "fp8"), ("retyped", "fp8")}][::9]
    seen = []
    for number, probe in enumerate(asked):
        write_checkpoint(tmp_path / str(number), *changed(BASES[probe.base].as_json, probe.as_json))
        seen.append(replay(subject(checkpoint.read(tmp_path / str(number))), contract))
    assert list(unlike(asked, seen, contract)) == []
    seen[1] = seen[1] | {"dropped": ["visual.strange"]}
    (line,) = unlike(asked, seen, contract)
    assert line.startswith(" ".join(asked[1].key) + ": vLLM had ")


def test_a_contract_is_read_as_it_was_saved(tmp_path: Path) -> None:
    contract = load_all()[0]
    assert load(save(contract, tmp_path)) == contract


def test_where_two_contracts_differ_is_said() -> None:
    contract = load_all()[0]
    assert list(differences(contract, replace(contract, lock="another"))) == []
    form = next(iter(contract.configs))
    other = replace(contract, configs={**contract.configs, form: "raises OSError||checkpoint"})
    (line,) = differences(contract, other)
    assert line.startswith(f"configs > {form}: recorded ")


def test_what_was_not_recorded_is_said(tmp_path: Path) -> None:
    whole = config() | {"rope_scaling": {"type": "yarn"}}
    write_checkpoint(
        tmp_path / "a",
        {"config.json": whole, "preprocessor_config.json": preprocessor()},
        BASES["bf16"].tensors,
    )
    asked = subject(checkpoint.read(tmp_path / "a"))
    with pytest.raises(NotRecorded, match="'flat tie=false rope=other'"):
        predict(asked, load_all()[0])
    (span,) = merged(verdicts(asked, load_all()))
    assert span.verdict.worth == "unknown"
    assert span.verdict.reason is not None


def test_a_type_that_torch_has_not_is_said(tmp_path: Path) -> None:
    tensors = BASES["bf16"].tensors | {"model.norm.weight": ("F4", (256,))}
    write_checkpoint(tmp_path / "a", BASES["bf16"].files, tensors)
    with pytest.raises(NotRecorded, match="of the type F4"):
        predict(subject(checkpoint.read(tmp_path / "a")), load_all()[0])


def test_how_vllm_raised_is_kept_without_names() -> None:
    error = {
        "type": "ValueError",
        "message": "There is no module or parameter named 'x'",
        "origin": "checkpoint",
    }
    assert raised({"exception": error}) == "raises ValueError|no module or parameter named|checkpoint"
    assert raised({"exception": None, "refused": []}) is None
    assert raised({"refused_kind": "unknown-dtype"}) == "raises unknown-dtype||refused"


# --- recording ----------------------------------------------------------------------------------


def recorded(tmp_path: Path, result: dict[str, Any] | None, count: int | None = None) -> Contract:
    project = open_project(tmp_path)
    environment = project.matrix.file.serve[0]

    def script(job: Job, _batch: Batch) -> dict[str, Any] | None:
        if result is not None:
            lines = [json.dumps({**UNLOADED, "exception": ERROR})] * (count or len(probes()))
            (job.out / OBSERVED).write_text("\n".join(lines))
        return result

    work = tmp_path / "work"
    work.mkdir()
    lock = find_lock(project.matrix, environment)
    return recording.record(environment, lock, FakeEngine(script), work, lambda _done, _total: None)


UNLOADED = {"stage_reached": "load", "refused": [], "fp8_tensors": 0, "exclusions": [], "runner": "generate"}
ERROR = {"type": "ValueError", "message": "no", "where": "a line", "origin": "checkpoint", "tensor": None}


def test_an_environment_that_cannot_judge_records_nothing(tmp_path: Path) -> None:
    fault = {"type": "ControlFailed", "message": "a wrong control was not faulted"}
    result = {"outcome": "done", "measured": {}, "failure": None, "environment": {"fault": fault}}
    with pytest.raises(WorkerError, match="a wrong control was not faulted"):
        recorded(tmp_path, result)


def test_a_worker_that_dies_records_nothing(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="the worker ended"):
        recorded(tmp_path, None)


def test_a_vllm_that_refuses_the_right_bases_has_no_contract(tmp_path: Path) -> None:
    result = {
        "outcome": "done", "failure": None, "environment": {"transformers": "4"},
        "measured": {"model_class": {"prefixes": PREFIXES, "packed": PACKED}},
    }  # fmt: skip
    with pytest.raises(WorkerError, match="the base 'fp8' is not loaded"):
        recorded(tmp_path, result)


def test_a_contract_that_is_not_what_vllm_did_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"model_class": {"prefixes": PREFIXES, "packed": PACKED}}
    result = {"outcome": "done", "failure": None, "environment": {"transformers": "4"}, "measured": measured}
    monkeypatch.setattr(recording, "probes", lambda: probes()[:20])
    monkeypatch.setattr(recording, "condense", lambda *_args, **_names: load_all()[-1])
    with pytest.raises(WorkerError, match="does not say what vLLM did with"):
        recorded(tmp_path, result, 20)


@pytest.mark.parametrize("content", ["[", "{}", "[1]"])
def test_what_is_no_contract_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "vllm-9.json").write_text(content)
    with pytest.raises(FileFormatError, match="is no contract"):
        load(tmp_path / "vllm-9.json")


def test_an_environment_that_is_none_is_said() -> None:
    fails(qvlfp8("contract", "record", "vllm-9"), 2, "no serve environment 'vllm-9'", "vllm-0.10.0")
