"""The vLLM plugin, proved by the loaders themselves: real ModelOpt exports, without it and with it.

Every serve environment that is built is asked once, in one process, about every export of three recipes:
`vlm-fp8-naive` (KV cache scales for the vision tower), `lm-fp8` (blind where its exclusion is not applied)
and `vlm-fp8` (right); and about checkpoints of zeros with the same two faults for Qwen2-VL and Qwen3-VL.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from qvlfp8.engine import Batch, Job, launch
from qvlfp8.findings import diagnose_preflight
from qvlfp8.project import Project
from qvlfp8.scoring import Bounds, score
from tests.integration.families import Case, Family, write
from tests.integration.loader import Hosts
from tests.integration.probing import GOOD, MISSPELLED, NAIVE, PLUGIN, ROOT, exports, probe, python_of

RECIPES = ("vlm-fp8-naive", "lm-fp8", "vlm-fp8")
SETTINGS = ("absent", "warn", "refuse", "off")
STRAY, BLIND = "stray-vision-kv-scale", "vision-exclusion-ignored"
UNUSABLE = {"vllm-0.10.2-unpinned"}
"""As matrix.yaml expects: beside these packages vLLM refuses every checkpoint."""

WITHOUT_QWEN3_VL = {"vllm-0.10.0", "vllm-0.10.2", "vllm-0.28.0"}
"""Qwen3-VL came with 0.11; the CPU platform of 0.28.0, in a GPU's place here, ends in an IndexError."""

Measured = Mapping[str, Any]
Asked = Callable[[str], Mapping[str, Any]]


@pytest.fixture(scope="session")
def asked(shipped: Project, hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """What a serve environment's loader says of every export, without the plugin and under each setting."""
    root = tmp_path_factory.mktemp("plugin")
    checkpoints = exports(shipped, RECIPES, root)
    assert len(checkpoints) >= 7, "run `nox -s matrix` first"
    tokenizer = Path(checkpoints[GOOD])
    for family in get_args(Family):
        for case in get_args(Case):
            folder = root / f"{family}-{case}"
            write(folder, family, case, tokenizer)
            checkpoints[f"{family} {case}"] = str(folder)
    results: dict[str, Mapping[str, Any]] = {}

    def ask(serve: str) -> Mapping[str, Any]:
        if serve not in results:
            host = hosts.of(serve)
            if host is None:
                pytest.skip("not built: the default slice does without it")
            job = {"checkpoints": checkpoints, "settings": SETTINGS}
            results[serve] = host.probe("plugin_probe", job, [PLUGIN])
        return results[serve]

    return ask


def _serve() -> list[str]:
    return [environment.id for environment in Project.open(ROOT / "matrix.yaml").matrix.file.serve]


serves = pytest.mark.parametrize("serve", _serve())


def causes(measured: Measured) -> set[str]:
    """The findings that are not mere notes."""
    return {found.id for found in diagnose_preflight(measured) if found.severity != "note"}


def usable(result: Mapping[str, Any], serve: str) -> Mapping[str, Any]:
    """The runs; an environment that can judge nothing has none, and only those of which it is known."""
    assert ("fault" in result["facts"]) == (serve in UNUSABLE), result["facts"]
    if "fault" in result["facts"]:
        pytest.skip(f"these packages do not go together: {result['facts']['fault']['message'][:100]}")
    return result


def cases(result: Mapping[str, Any], finding: str | None) -> list[str]:
    """The exports with this finding without the plugin; with None, those with neither of the plugin's two."""
    found = {name: causes(measured) for name, measured in result["runs"]["absent"].items()}
    if finding is None:
        return [name for name, ids in found.items() if not ids & {STRAY, BLIND}]
    return [name for name, ids in found.items() if finding in ids]


def _of_family(case: Case, serve: str) -> list[str]:
    """The checkpoints of zeros that this vLLM builds a model for."""
    known = ["qwen2_vl"] if serve in WITHOUT_QWEN3_VL else get_args(Family)
    return [f"{family} {case}" for family in known]


@serves
def test_stray_scales_no_longer_end_the_load(asked: Asked, serve: str) -> None:
    result = usable(asked(serve), serve)
    names = cases(result, STRAY)
    assert {NAIVE, *_of_family("naive", serve)} <= set(names)
    for name in names:
        absent = result["runs"]["absent"][name]
        refused = [error["tensor"] for error in absent["refused"]]
        assert any("visual.blocks" in tensor for tensor in refused), name
        for setting in SETTINGS[1:]:
            measured = result["runs"][setting][name]
            assert not [error for error in measured["refused"] if "visual" in error["tensor"]], name
            assert measured["exception"] is None, name
            # Nothing else was lost, and what was left out is what no parameter was there for.
            strays = [tensor for tensor in measured["dropped"] if "visual" in tensor]
            assert strays, name
            assert all(tensor.endswith(("k_proj.k_scale", "v_proj.v_scale")) for tensor in strays), name
            loaded = {**measured, "dropped": [t for t in measured["dropped"] if t not in strays]}
            assert causes(loaded) == causes(absent) - {STRAY}, name
            lines = result["logged"][setting][name]
            # Preflight loads again without what else was refused; what ended early left out less.
            assert len(lines) <= 1 + len(measured["refused"])
            assert all(line.startswith("qvlfp8: left out ") for line in lines)
            assert lines[-1].startswith(f"qvlfp8: left out {len(strays)} KV cache scales of the vision tower")


@serves
def test_a_blind_tower_is_told_and_refused(asked: Asked, serve: str) -> None:
    result = usable(asked(serve), serve)
    names = cases(result, BLIND)
    assert {MISSPELLED, *_of_family("blind", serve)} <= set(names)
    for name in names:
        absent = result["runs"]["absent"][name]
        unset = [n for n in absent["never_loaded"] if n.startswith("visual.") and n.endswith("_scale")]
        assert unset
        assert result["runs"]["warn"][name] == absent
        lines = set(result["logged"]["warn"][name])
        assert len(lines) == 1, lines
        (line,) = lines
        assert f"in FP8, and {len(unset)} of its scales never came" in line
        assert unset[0] in line
        assert BLIND in line
        mend = (
            "`qvlfp8 repair IN OUT` mends" if name.startswith("lm-fp8 ") else 'spell the exclusion "visual"'
        )
        assert mend in line

        assert result["runs"]["off"][name] == absent
        assert result["logged"]["off"][name] == []

        refusal = result["runs"]["refuse"][name]["exception"]
        assert (refusal["type"], refusal["origin"]) == ("BlindTower", "checkpoint")
        assert BLIND in refusal["message"]
        assert result["logged"]["refuse"][name] == []


@serves
def test_all_else_is_judged_the_same_and_nothing_is_logged(asked: Asked, serve: str) -> None:
    result = usable(asked(serve), serve)
    names = cases(result, None)
    assert {GOOD, *_of_family("good", serve)} <= set(names)
    for name in names:
        for setting in SETTINGS[1:]:
            assert result["runs"][setting][name] == result["runs"]["absent"][name]
            assert result["logged"][setting][name] == []


@serves
def test_registering_again_wraps_once(asked: Asked, serve: str) -> None:
    result = usable(asked(serve), serve)
    assert (result["wrapped_before"], result["wrapped_after"]) == (0, 1)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin's wheel, built and installed alone into a folder."""
    root = tmp_path_factory.mktemp("wheel")
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "build", "--quiet", "--wheel", "--out-dir", root, PLUGIN], check=True)
    (wheel,) = root.glob("*.whl")
    target = root / "installed"
    subprocess.run([*uv, "pip", "install", "--quiet", "--no-deps", "--target", target, wheel], check=True)
    return target


@pytest.mark.parametrize(
    ("serve", "variables"),
    [("vllm-0.10.2", {}), ("vllm-0.26.0", {"VLLM_PLUGINS": "qvlfp8"}), ("vllm-0.33.0", {})],
)
def test_vllm_finds_the_installed_plugin(
    shipped: Project, installed: Path, tmp_path: Path, serve: str, variables: dict[str, str]
) -> None:
    python = python_of(shipped, serve)
    if python is None:
        pytest.skip("not built: the default slice does without it")
    checkpoints = {NAIVE: exports(shipped, RECIPES, tmp_path)[NAIVE]}
    job = {"checkpoints": checkpoints, "settings": ["warn"]}
    result = probe("plugin_probe.py", python, job, tmp_path, [ROOT, installed], **variables)
    assert Path(result["found"].pop("file")).is_relative_to(installed)
    assert result["found"] == {"hooks": 1, "model_imported": False, "distribution": "0.1.0"}
    assert (result["wrapped_before"], result["wrapped_after"]) == (1, 1)
    measured = result["runs"]["warn"][NAIVE]
    assert (measured["exception"], measured["refused"]) == (None, [])
    (line,) = result["logged"]["warn"][NAIVE]
    assert "left out" in line


def test_a_run_with_the_plugin_sees_and_a_blind_one_is_refused(
    shipped: Project, installed: Path, tmp_path: Path
) -> None:
    """vLLM's CPU build, started as ever, finds the plugin by itself; answers are held against BF16's."""
    python = python_of(shipped, "vllm-0.32.0-cpu")
    assert python is not None, "run `nox -s matrix` first"
    checkpoints = exports(shipped, RECIPES, tmp_path)
    (cell,) = shipped.cells(only=["vlm-fp8/modelopt-0.47.0/seeing-untied/vllm-0.32.0-cpu"])
    plan = shipped.plan([cell], shipped.locks([cell]))
    step = plan.step(cell, "image")
    (baseline,) = (need for need in step.needs if plan.steps[need].stage == "generate")
    against = shipped.store.entry("generate", baseline)
    jobs = []
    for name in (NAIVE, MISSPELLED):
        out = tmp_path / name.replace(" ", "-")
        out.mkdir()
        params = {"checkpoint": checkpoints[name], "baseline": str(against), **step.params}
        jobs.append(Job(id=name, params=params, out=out))
    batch = Batch(worker="generate", jobs=jobs, time_limit_s=300, threads=1)
    subprocess.run(
        launch.command(str(python), launch.write_spec(batch, tmp_path / "log")),
        env={
            **launch.kept_variables(),
            **launch.variables(batch, offline=True),
            "PYTHONPATH": str(installed),
            "QVLFP8_VLLM_BLIND": "refuse",
            "VLLM_CACHE_ROOT": str(tmp_path / "cache"),
        },
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=900,
    )  # fmt: skip
    ran, refused = (json.loads((job.out / "result.json").read_text())["measured"] for job in jobs)
    bf16 = json.loads((against / "result.json").read_text())["measured"]
    stages = score(ran, bf16, Bounds())
    assert {stage: scored.status for stage, scored in stages.items() if stage != "speed"} == dict.fromkeys(
        ("load", "text", "image", "fidelity"), "pass"
    )
    assert "left out 10 KV cache scales" in (jobs[0].out / "log.txt").read_text()
    error = refused["load"]["exception"]
    assert (error["type"], error["origin"]) == ("BlindTower", "checkpoint")
