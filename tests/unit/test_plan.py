from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlfp8.matrix import STAGES, Cell
from qvlfp8.plan import Plan, make_plan
from tests.unit.factory import open_project


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, ...]:
    project = open_project(tmp_path_factory.mktemp("p"), recipes=("lm-fp8", "vlm-fp8"))
    return project.matrix.cells


def locks_for(cells: tuple[Cell, ...], salt: str = "") -> dict[str, str]:
    ids = {e.id for c in cells for e in (c.quantize, c.serve)}
    return {name: f"{name}{salt}" for name in ids}


def changed(before: Plan, after: Plan) -> set[str]:
    """Subjects and stages whose digest differs."""
    old = {(s.stage, s.subject): s.digest for s in before.steps.values()}
    new = {(s.stage, s.subject): s.digest for s in after.steps.values()}
    return {f"{stage} {subject}" for stage, subject in old if old[stage, subject] != new[stage, subject]}


@given(data=st.data())
def test_steps_come_after_what_they_need_and_stand_once(data: st.DataObject, cells: tuple[Cell, ...]) -> None:
    chosen = tuple(data.draw(st.lists(st.sampled_from(cells), unique=True)))
    plan = make_plan(chosen, locks_for(cells))
    seen: set[str] = set()
    for digest, step in plan.steps.items():
        assert digest == step.digest
        assert set(step.needs) <= seen
        seen.add(digest)
    names = [(s.stage, s.subject) for s in plan.steps.values()]
    assert len(names) == len(set(names))
    for cell in chosen:
        assert {plan.step(cell, stage).digest for stage in STAGES} <= seen


@given(data=st.data())
def test_a_plan_is_a_function_of_its_cells_in_any_order(data: st.DataObject, cells: tuple[Cell, ...]) -> None:
    shuffled = tuple(data.draw(st.permutations(cells)))
    assert (
        make_plan(shuffled, locks_for(cells)).steps.keys() == make_plan(cells, locks_for(cells)).steps.keys()
    )


@given(name=st.sampled_from(["modelopt-0.41.0", "modelopt-0.47.0", "vllm-0.10.2", "vllm-0.13.0"]))
def test_a_changed_lock_changes_exactly_what_runs_in_it_or_follows(
    name: str, cells: tuple[Cell, ...]
) -> None:
    locks = locks_for(cells)
    hit = changed(make_plan(cells, locks), make_plan(cells, {**locks, name: "other"}))
    plan = make_plan(cells, locks)
    expected = set()
    for step in plan.steps.values():
        tainted = step.environment == name or any(
            plan.steps[need].environment == name or _follows(plan, need, name) for need in step.needs
        )
        if tainted:
            expected.add(f"{step.stage} {step.subject}")
    assert hit == expected
    assert hit


def _follows(plan: Plan, digest: str, name: str) -> bool:
    step = plan.steps[digest]
    return step.environment == name or any(_follows(plan, need, name) for need in step.needs)


def test_a_changed_recipe_changes_its_checkpoints_only(cells: tuple[Cell, ...]) -> None:
    calibration = cells[0].recipe.calibration.model_copy(update={"samples": 9})
    altered = cells[0].recipe.model_copy(update={"calibration": calibration})
    after = tuple(c.model_copy(update={"recipe": altered}) if c.recipe.id == altered.id else c for c in cells)
    hit = changed(make_plan(cells, locks_for(cells)), make_plan(after, locks_for(cells)))
    assert {text.split()[1].split("/")[0] for text in hit} == {altered.id}
    assert {text.split()[0] for text in hit} == set(STAGES)


def test_words_about_a_recipe_change_nothing(cells: tuple[Cell, ...]) -> None:
    update = {"description": "other words", "link": "https://example.org/other"}
    after = tuple(c.model_copy(update={"recipe": c.recipe.model_copy(update=update)}) for c in cells)
    assert not changed(make_plan(cells, locks_for(cells)), make_plan(after, locks_for(cells)))


def test_a_changed_worker_changes_its_stage_and_what_follows(
    cells: tuple[Cell, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_plan(cells, locks_for(cells))
    monkeypatch.setattr("qvlfp8.plan.source.of_worker", lambda name: "new" if name == "inspect" else "old")
    first = make_plan(cells, locks_for(cells))
    monkeypatch.setattr("qvlfp8.plan.source.of_worker", lambda name: "newer" if name == "inspect" else "old")
    hit = changed(first, make_plan(cells, locks_for(cells)))
    assert {text.split()[0] for text in hit} == {"inspect"}
    assert changed(before, first)


def test_shared_steps_are_planned_once(cells: tuple[Cell, ...]) -> None:
    plan = make_plan(cells, locks_for(cells))
    count = {
        stage: sum(s.stage == stage for s in plan.steps.values()) for stage in ("build", "model", *STAGES)
    }
    assert count == {"build": 4, "model": 1, "quantize": 4, "inspect": 4, "preflight": 8}
    for one, other in itertools.combinations(cells, 2):
        same = plan.step(one, "quantize") == plan.step(other, "quantize")
        assert same == (one.checkpoint == other.checkpoint)


def test_of_cell_lists_everything_a_cell_needs_in_order(cells: tuple[Cell, ...], tmp_path: Path) -> None:
    plan = make_plan(cells, locks_for(cells))
    stages = [step.stage for step in plan.of_cell(cells[0])]
    assert stages == ["build", "model", "quantize", "inspect", "build", "preflight"]
