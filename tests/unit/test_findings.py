"""What a preflight's observations mean; the data files are results of real runs of vLLM's loader."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, get_args

import pytest

from qvlfp8 import conformance
from qvlfp8.finding_kinds import KINDS
from qvlfp8.findings import Finding, diagnose_inspect, diagnose_preflight

DATA = Path(__file__).parent / "data" / "preflight"


def observed(name: str) -> dict[str, Any]:
    measured: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())["measured"]
    return measured


def ids(findings: list[Finding], severity: str) -> set[str]:
    return {finding.id for finding in findings if finding.severity == severity}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blind", {"vision-exclusion-ignored"}),
        ("language-exclusion-ignored", {"language-model-exclusion-ignored"}),
        ("stray-vision-kv-scale", {"stray-vision-kv-scale"}),
        ("shard-missing", {"parameter-partly-written"}),
        ("kv-scale-missing", {"kv-scale-incomplete"}),
        ("renamed-weight", {"weight-never-loaded", "tensor-dropped"}),
        ("kv-scales-unsupported", {"language-kv-scale-unsupported"}),
        ("not-recognised", {"quantization-not-recognised"}),
        ("rows-cut", {"shape-mismatch"}),
    ],
)
def test_each_fault_is_named_and_only_it(name: str, expected: set[str]) -> None:
    findings = diagnose_preflight(observed(name))
    assert ids(findings, "fail") == expected
    assert ids(findings, "error") == set()


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("language-fp8-sees", {"dtype-changed"}),
        ("vision-fp8", {"dtype-changed", "fused-scale-in-first-shard"}),
        ("tied-head-stored", {"dtype-changed", "tensor-unneeded"}),
    ],
)
def test_a_checkpoint_that_works_has_notes_at_most(name: str, notes: set[str]) -> None:
    findings = diagnose_preflight(observed(name))
    assert {finding.id for finding in findings} == notes
    assert ids(findings, "note") == notes


def test_a_fault_of_the_environment_is_never_the_checkpoints() -> None:
    measured = observed("stray-vision-kv-scale")
    measured["exception"]["origin"] = "environment"
    assert [finding.id for finding in diagnose_preflight(measured)] == ["environment-fault"]
    assert KINDS["environment-fault"].severity == "error"


def test_packages_on_trial_that_refuse_every_checkpoint_are_a_finding() -> None:
    measured = observed("stray-vision-kv-scale")
    measured["exception"] |= {"origin": "packages", "type": "RightControlFaulted"}
    assert ids(diagnose_preflight(measured), "fail") == {"packages-incompatible"}


def test_an_origin_that_is_unknown_is_not_held_against_the_checkpoint() -> None:
    measured = observed("stray-vision-kv-scale")
    measured["exception"]["origin"] = "something new"
    assert ids(diagnose_preflight(measured), "fail") == set()


def test_without_an_exclusion_the_cast_is_a_contradiction_in_the_checkpoint() -> None:
    measured = observed("blind")
    measured["exclusions"] = ["lm_head"]
    found = ids(diagnose_preflight(measured), "fail")
    assert found == {"cast-to-fp8", "scale-never-loaded"}


@pytest.mark.parametrize(
    "pattern", ["visual", "visual*", "*visual*", "model.visual*", "model.layers.visual*", "visual.*"]
)
def test_every_spelling_of_the_exclusion_is_understood(pattern: str) -> None:
    measured = observed("blind")
    measured["exclusions"] = [pattern]
    assert ids(diagnose_preflight(measured), "fail") == {"vision-exclusion-ignored"}


def test_an_exclusion_of_one_block_does_not_excuse_another() -> None:
    measured = observed("blind")
    measured["exclusions"] = ["visual.blocks.0*"]
    assert "cast-to-fp8" in ids(diagnose_preflight(measured), "fail")


def test_a_scale_of_the_language_model_is_not_explained_by_the_blind_tower() -> None:
    measured = observed("blind")
    lost = "language_model.model.layers.1.mlp.down_proj.weight_scale"
    measured["never_loaded"].append(lost)
    findings = diagnose_preflight(measured)
    (scale,) = (finding for finding in findings if finding.id == "scale-never-loaded")
    assert scale.evidence == (lost,)


def test_evidence_is_cut_and_counted_and_what_is_cut_still_counts() -> None:
    measured = observed("vision-fp8")
    harmless = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(60)]
    measured["dropped"] = [*harmless, "model.layers.2.self_attn.o_proj.bias"]
    found = diagnose_preflight(measured)
    assert ids(found, "fail") == {"tensor-dropped"}
    (unneeded,) = (f for f in found if f.id == "tensor-unneeded")
    assert len(unneeded.evidence) == 51
    assert unneeded.evidence[-1] == "and 10 more that are not listed"


def test_evidence_names_tensor_and_place() -> None:
    (finding,) = diagnose_preflight(observed("stray-vision-kv-scale"))
    assert finding.evidence[0] == "while loading visual.blocks.0.attn.k_proj.k_scale"
    assert "blocks.0.attn.k_proj" in finding.evidence[1]


def test_an_unquantized_checkpoint_is_not_blamed_for_its_missing_quantization() -> None:
    measured = observed("not-recognised")
    measured["fp8_tensors"] = 0
    assert ids(diagnose_preflight(measured), "fail") == {"unexpected-tensor"}


def test_a_refusal_of_an_unknown_kind_is_still_a_failure() -> None:
    measured = observed("stray-vision-kv-scale")
    measured["exception"].update(type="ValueError", message="something new")
    assert ids(diagnose_preflight(measured), "fail") == {"loader-error"}


def test_faults_come_before_notes() -> None:
    severities = [f.severity for f in diagnose_preflight(observed("shard-missing"))]
    assert severities == ["fail", *["note"] * (len(severities) - 1)]
    assert len(severities) > 1


def test_fp8_kv_cache_without_scales_is_a_note() -> None:
    measured = observed("language-fp8-sees")
    measured["kv_scales"] = {"in_checkpoint": 0, "written": 0, "unpaired": []}
    assert "kv-scale-defaulted" not in ids(diagnose_preflight(measured), "note")
    measured["kv_cache_dtype"] = "fp8_e4m3"
    assert "kv-scale-defaulted" in ids(diagnose_preflight(measured), "note")


def test_diagnosis_leaves_its_input_alone() -> None:
    measured = observed("blind")
    before = copy.deepcopy(measured)
    diagnose_preflight(measured)
    assert measured == before


def test_every_problem_that_inspect_can_name_has_a_meaning_and_a_mend() -> None:
    assert set(get_args(conformance.Finding)) <= set(KINDS)


def test_inspections_problems_are_grouped_and_counted() -> None:
    problem = {"finding": "scale-missing", "subject": "a.weight_scale", "detail": "gone"}
    (finding,) = diagnose_inspect({"problems": [problem], "counts": {"scale-missing": 3}})
    assert (finding.id, finding.severity) == ("scale-missing", "fail")
    assert finding.evidence == ("a.weight_scale: gone", "and 2 more that are not listed")
    assert diagnose_inspect({"problems": [], "counts": {}}) == []


def test_an_untied_head_that_vllm_ties_is_a_failure() -> None:
    measured = observed("tied-head-stored")
    assert measured["dropped"] == ["lm_head.weight"]
    for untied in (False, None):
        measured["tie_word_embeddings"] = untied
        assert ids(diagnose_preflight(measured), "fail") == {"tie-misread"}


def test_a_model_that_vllm_would_not_let_write_is_a_failure_however_well_it_loads() -> None:
    measured = observed("language-fp8-sees")
    assert ids(diagnose_preflight(measured | {"runner": "generate"}), "fail") == set()
    assert ids(diagnose_preflight(measured | {"runner": "pooling"}), "fail") == {"not-generative"}


def test_a_tied_head_that_vllm_builds_apart_is_a_failure() -> None:
    measured = observed("language-fp8-sees")
    measured["never_loaded"].append("language_model.lm_head.weight")
    assert ids(diagnose_preflight(measured), "fail") == {"weight-never-loaded"}
    measured["tie_word_embeddings"] = True
    assert ids(diagnose_preflight(measured), "fail") == {"tie-misread"}


def test_a_refusal_that_names_no_tensor_is_not_taken_for_one_of_the_config() -> None:
    measured = observed("stray-vision-kv-scale")
    measured["exception"].update(tensor=None, type="ValueError", message="something new")
    assert ids(diagnose_preflight(measured), "fail") == {"loader-error"}


def test_refused_kv_scales_do_not_hide_what_else_is_wrong() -> None:
    stray = observed("stray-vision-kv-scale")["exception"]
    measured = observed("blind")
    measured["refused"] = [stray, {**stray, "tensor": "visual.blocks.0.attn.v_proj.v_scale"}]
    found = diagnose_preflight(measured)
    assert ids(found, "fail") == {"stray-vision-kv-scale", "vision-exclusion-ignored"}
    assert sum("while loading" in line for f in found for line in f.evidence) == 2
