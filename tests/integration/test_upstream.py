"""The changes of docs/upstream.md, made in memory to real ModelOpt and real vLLM: the fault is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from qvlfp8.project import Project
from tests.integration.loader import Hosts
from tests.integration.probing import MISSPELLED, ROOT, exports, probe, python_of
from tests.integration.test_corruptions import default_serve
from tests.integration.test_plugin import BLIND, RECIPES, STRAY, causes

CHECKS_ITSELF = Version("0.32.0")
"""The first vLLM of those here whose own check, once switched on, looks into quantized layers."""
HAS_SWITCH = Version("0.22.1")
"""The first vLLM of those here whose check can be switched on for quantized models."""
SWITCHED = ("vllm-0.22.1", "vllm-0.24.0", "vllm-0.26.0", "vllm-0.30.0", "vllm-0.32.0-cpu", "vllm-0.33.0")
READS_IGNORE = Version("0.12.0")
"""The first vLLM of those here that reads the exclusions of these exports: their key is `ignore`."""

Asked = Callable[[str], Mapping[str, Any]]


@pytest.fixture(scope="session")
def asked(shipped: Project, hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """What a vLLM says of every export as released, and with each change."""
    root = tmp_path_factory.mktemp("upstream")
    checkpoints = exports(shipped, RECIPES, root)
    assert len(checkpoints) >= 7, "run `nox -s matrix` first"
    results: dict[str, Mapping[str, Any]] = {}

    def ask(serve: str) -> Mapping[str, Any]:
        if serve not in results:
            host = hosts.of(serve)
            if host is None:
                assert serve in SWITCHED, "run `nox -s matrix` first"
                pytest.skip("not built: the default slice does without it")
            changes = ["none", "skip", "track", "warn"]
            if version_of(serve) >= HAS_SWITCH:
                changes.append("released_track")
            job = {"checkpoints": checkpoints, "changes": changes}
            results[serve] = host.probe("upstream_probe", job)
            assert "fault" not in results[serve]["facts"]
        return results[serve]

    return ask


def version_of(serve: str) -> Version:
    return Version(serve.removeprefix("vllm-").removesuffix("-cpu"))


serves = pytest.mark.parametrize("serve", default_serve())


def without_strays(measured: Mapping[str, Any]) -> set[str]:
    """What is found, but that the stray scales were left out."""
    dropped = [name for name in measured["dropped"] if "visual" not in name]
    return causes({**measured, "dropped": dropped})


@serves
def test_a_tower_that_passes_over_kv_scales_loads(asked: Asked, serve: str) -> None:
    runs = asked(serve)["runs"]
    strays = [name for name, measured in runs["none"].items() if STRAY in causes(measured)]
    assert strays
    for name, measured in runs["skip"].items():
        if name not in strays:
            assert measured == runs["none"][name]
            continue
        assert measured["exception"] is None
        assert not [error for error in measured["refused"] if "visual" in error["tensor"]]
        assert without_strays(measured) == causes(runs["none"][name]) - {STRAY}


def _blind(runs: Mapping[str, Any]) -> list[str]:
    found = [name for name, measured in runs["none"].items() if BLIND in causes(measured)]
    assert MISSPELLED in found
    return found


@serves
def test_a_check_for_what_was_never_loaded_ends_a_blind_load(asked: Asked, serve: str) -> None:
    runs = asked(serve)["runs"]
    blind = _blind(runs)
    for name, measured in runs["track"].items():
        if name in blind:
            assert measured["exception"]["type"] == "ValueError"
            assert "visual.blocks.0.attn.qkv.weight_scale" in measured["exception"]["message"]
        else:
            assert measured == runs["none"][name]


@pytest.mark.parametrize("serve", SWITCHED)
def test_the_check_that_can_be_switched_on(asked: Asked, serve: str) -> None:
    runs = asked(serve)["runs"]
    blind = _blind(runs)
    for name, measured in runs["released_track"].items():
        if name in blind and version_of(serve) >= CHECKS_ITSELF:
            assert "visual.blocks.0." in measured["exception"]["message"]
        else:
            assert measured == runs["none"][name]


@serves
def test_a_warning_names_the_exclusion_that_applies_to_nothing(asked: Asked, serve: str) -> None:
    result = asked(serve)
    blind = _blind(result["runs"])
    for name, lines in result["logged"]["warn"].items():
        assert result["runs"]["warn"][name] == result["runs"]["none"][name]
        tower = {line for line in lines if "visual*'" in line}
        if version_of(serve) >= READS_IGNORE:
            assert bool(tower) == (name in blind), lines
        else:
            # Whoever does not read the exclusions has none to warn of.
            assert lines == []


@pytest.mark.parametrize("modelopt", ["modelopt-0.37.0", "modelopt-0.41.0", "modelopt-0.47.0"])
def test_an_exporter_that_looks_for_the_projection_writes_no_stray_scale(
    shipped: Project, tmp_path: Path, modelopt: str
) -> None:
    python = python_of(shipped, modelopt)
    if python is None:
        pytest.skip("not built: the default slice does without it")
    (cell,) = shipped.cells(only=[f"vlm-fp8-naive/{modelopt}/seeing-untied/vllm-0.26.0"], everything=True)
    plan = shipped.plan([cell], shipped.locks([cell]))
    step = plan.step(cell, "quantize")
    (made,) = (need for need in step.needs if plan.steps[need].stage == "model")
    model = shipped.store.entry("model", made) / "model"
    job = {"params": {**step.params, "model": str(model.resolve())}, "out": str(tmp_path)}
    result = probe("modelopt_probe.py", python, job, tmp_path / "probe", [ROOT])
    released, changed = result["released"], result["changed"]
    assert released["vision"]
    assert changed["vision"] == []
    assert changed["language"] == released["language"] != []
    assert changed["others"] == released["others"]
