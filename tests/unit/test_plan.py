from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlfp8 import planning
from qvlfp8.cells import GENERATED, STAGES, Cell, Stage
from qvlfp8.plan import LockKey, Plan
from tests.unit.factory import open_project


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, ...]:
    project = open_project(tmp_path_factory.mktemp("p"), recipes=("lm-fp8", "vlm-fp8"))
    return project.matrix.cells


LAYOUT_STAGES: tuple[Stage, ...] = tuple(s for s in STAGES if s not in {"resolve", *GENERATED})
"""What is executed of a random model."""

EXAM = {"seed": 1, "per_task": 2}


def make_plan(cells: Iterable[Cell], locks: Mapping[LockKey, str]) -> Plan:
    return planning.make_plan(cells, locks, EXAM)


def locks_for(cells: tuple[Cell, ...]) -> dict[LockKey, str]:
    return {(e.id, "cpu"): e.id for c in cells for e in (c.quantize, c.serve)}


def changed(before: Plan, after: Plan) -> set[str]:
    """Subjects and stages whose digest differs."""
    old = {(s.stage, s.subject): s.digest for s in before.steps.values()}
    new = {(s.stage, s.subject): s.digest for s in after.steps.values()}
    return {f"{stage} {subject}" for stage, subject in old if old[stage, subject] != new[stage, subject]}


@given(data=st.data())
def test_steps_come_after_what_they_need_and_stand_once(data: st.DataObject, cells: tuple[Cell, ...]) -> None:
    chosen = tuple(data.draw(st.lists(st.sampled_from(cells), unique=True)))
    made = make_plan(chosen, locks_for(cells))
    seen: set[str] = set()
    for digest, step in made.steps.items():
        assert digest == step.digest
        assert set(step.needs) <= seen
        seen.add(digest)
    names = [(s.stage, s.subject) for s in made.steps.values()]
    assert len(names) == len(set(names))
    for cell in chosen:
        assert {made.step(cell, stage).digest for stage in LAYOUT_STAGES} <= seen


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
    hit = changed(make_plan(cells, locks), make_plan(cells, {**locks, (name, "cpu"): "other"}))
    made = make_plan(cells, locks)
    expected = set()
    for step in made.steps.values():
        tainted = step.environment == name or any(
            made.steps[need].environment == name or _follows(made, need, name) for need in step.needs
        )
        if tainted:
            expected.add(f"{step.stage} {step.subject}")
    assert hit == expected
    assert hit


def _follows(made: Plan, digest: str, name: str) -> bool:
    step = made.steps[digest]
    return step.environment == name or any(_follows(made, need, name) for need in step.needs)


def test_a_changed_recipe_changes_its_checkpoints_only(cells: tuple[Cell, ...]) -> None:
    calibration = cells[0].recipe.calibration.model_copy(update={"samples": 9})
    altered = cells[0].recipe.model_copy(update={"calibration": calibration})
    after = tuple(replace(c, recipe=altered) if c.recipe.id == altered.id else c for c in cells)
    hit = changed(make_plan(cells, locks_for(cells)), make_plan(after, locks_for(cells)))
    assert {text.split()[1].split("/")[0] for text in hit} == {altered.id}
    assert {text.split()[0] for text in hit} == set(LAYOUT_STAGES)


def test_words_about_a_recipe_change_nothing(cells: tuple[Cell, ...]) -> None:
    update = {"description": "other words", "link": "https://example.org/other"}
    after = tuple(replace(c, recipe=c.recipe.model_copy(update=update)) for c in cells)
    assert not changed(make_plan(cells, locks_for(cells)), make_plan(after, locks_for(cells)))


def test_a_changed_worker_changes_its_stage_and_what_follows(
    cells: tuple[Cell, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_plan(cells, locks_for(cells))
    monkeypatch.setattr(
        "qvlfp8.planning.source.of_worker", lambda name: "new" if name == "inspect" else "old"
    )
    first = make_plan(cells, locks_for(cells))
    monkeypatch.setattr(
        "qvlfp8.planning.source.of_worker", lambda name: "newer" if name == "inspect" else "old"
    )
    hit = changed(first, make_plan(cells, locks_for(cells)))
    assert {text.split()[0] for text in hit} == {"inspect"}
    assert changed(before, first)


def test_shared_steps_are_planned_once(cells: tuple[Cell, ...]) -> None:
    made = make_plan(cells, locks_for(cells))
    count = {
        stage: sum(s.stage == stage for s in made.steps.values())
        for stage in ("build", "model", *LAYOUT_STAGES)
    }
    assert count == {"build": 4, "model": 1, "quantize": 4, "inspect": 4, "preflight": 8}
    for one, other in itertools.combinations(cells, 2):
        same = made.step(one, "quantize") == made.step(other, "quantize")
        assert same == (one.checkpoint == other.checkpoint)


def test_of_cell_lists_everything_a_cell_needs_in_order(cells: tuple[Cell, ...], tmp_path: Path) -> None:
    made = make_plan(cells, locks_for(cells))
    stages = [step.stage for step in made.of_cell(cells[0])]
    assert stages == ["build", "model", "quantize", "inspect", "build", "preflight"]
