"""Steps in tasks: in batches on one machine, alone on a cluster, but for preflights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from qvlfp8.cluster.retry import Retries, attempt_of, is_retried
from qvlfp8.host import this_host
from qvlfp8.plan import Plan
from qvlfp8.results import Fault, Record, Recorded
from qvlfp8.tasks import make_tasks, order_of
from tests.unit.factory import open_project


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    project = open_project(tmp_path, recipes=("lm-fp8", "vlm-fp8"))
    cells = project.matrix.cells
    return project.plan(cells, project.locks(cells))


@pytest.mark.parametrize("spread", [False, True])
def test_each_step_is_in_one_task_after_what_it_needs(plan: Plan, spread: bool) -> None:
    tasks = make_tasks(plan, tuple(plan.steps.values()), spread=spread)
    assert sorted(step.digest for task in tasks for step in task.steps) == sorted(plan.steps)
    done: set[str] = set()
    order, named = order_of(tasks), {task.name: task for task in tasks}
    while order.is_active():
        ready = order.get_ready()
        for name in ready:
            own = {step.digest for step in named[name].steps}
            assert all(need in done | own for step in named[name].steps for need in step.needs)
        for name in ready:
            done |= {step.digest for step in named[name].steps}
            order.done(name)
    assert done == set(plan.steps)


def test_on_a_cluster_only_preflights_of_one_vllm_stay_together(plan: Plan) -> None:
    tasks = make_tasks(plan, tuple(plan.steps.values()), spread=True)
    sizes = Counter((task.steps[0].stage, len(task.steps)) for task in tasks)
    assert {size for stage, size in sizes if stage != "preflight"} == {1}
    for task in tasks:
        assert len({step.environment for step in task.steps}) == 1
    preflights = [task for task in tasks if task.steps[0].stage == "preflight"]
    assert len(preflights) == len({task.steps[0].environment for task in preflights})
    assert all(len(task.steps) > 1 for task in preflights)


def record(status: Recorded) -> Record:
    fault = Fault(kind="node-lost", message="gone") if status == "error" else None
    return Record(
        stage="preflight", subject="s", digest="0" * 64, status=status, inputs={}, host=this_host(),
        started="2026-01-01T00:00:00+00:00", seconds=2.0, fault=fault, repeat="-", qvlfp8="0",
        environment={"node": "n (1)"},
    )  # fmt: skip


def test_only_an_error_is_tried_again_and_not_for_ever() -> None:
    assert [is_retried(record(status)) for status in ("pass", "fail", "error")] == [False, False, True]
    assert [Retries().delay_s(tried) for tried in (1, 2, 3)] == [5.0, 20.0, None]
    assert Retries(count=0).delay_s(1) is None


def test_an_attempt_says_when_where_and_why() -> None:
    attempt = attempt_of(record("error"))
    assert (attempt.fault.kind, attempt.where, attempt.seconds) == ("node-lost", "n (1)", 2.0)
    with pytest.raises(ValueError, match="ended as fail"):
        attempt_of(record("fail"))
