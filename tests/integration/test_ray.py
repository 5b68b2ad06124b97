"""Engine ray on a real cluster of several nodes, all of this machine: the same verdicts, and nothing lost.

What is run is the survival session's project: real environments, processes and stores, small workers.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from qvlfp8.cluster.connect import connect
from qvlfp8.errors import ClusterError
from tests.integration.ray_cluster import (
    DIE,
    GONE,
    Bench,
    ended,
    kill,
    other_than,
    records,
    wait_for,
    working_in,
)
from tests.survive.journal import Told

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A head without CPUs, which only keeps the cluster together, and one node that works."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    bench = Bench(tmp_path_factory.mktemp("ray"), cluster)
    small = 200_000_000
    bench.add_node("head", num_cpus=0, object_store_memory=small)
    bench.add_node("one", num_cpus=2, memory=8_000_000_000, object_store_memory=small)
    yield bench
    cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Path:
    """The store of a run on this machine alone."""
    store = bench.root / "undisturbed"
    done = bench.alone(store)
    assert done.code == 1, done.said  # the drill's stages fail, and nothing in its matrix.yaml expects it
    assert all(entry.final for entry in records(store).values())
    return store


def test_the_verdicts_are_those_of_this_machine_alone(bench: Bench, undisturbed: Path) -> None:
    store = bench.root / "same"
    bench.begun()
    done = bench.run(store)
    assert done.code == 1, done.said
    assert other_than(undisturbed, store) == []
    begun = Counter(told.step for told in bench.begun())
    assert set(begun.values()) == {1}, "a fail is not tried again"
    told = [entry.record.environment for entry in records(store).values()]
    assert all("node" in environment and "ray" in environment for environment in told)
    again = bench.run(store)
    assert (again.code, bench.begun()) == (1, []), again.said
    assert "steps to do" not in again.said


def test_what_is_in_the_shared_store_is_done_though_its_node_or_driver_is_gone(
    bench: Bench, undisturbed: Path
) -> None:
    sign = bench.root / "one" / DIE
    sign.parent.mkdir(exist_ok=True)
    sign.touch()
    bench.begun()
    shared = f"file://{bench.root / 'shared'}"
    assert bench.run(bench.root / "first", "--shared", shared).code == 1
    assert set(Counter(told.step for told in bench.begun()).values()) == {1}
    assert not sign.exists(), "a worker died of it, after its upload"
    done = bench.run(bench.root / "second", "--shared", shared)
    assert (done.code, bench.begun()) == (1, []), done.said
    assert other_than(undisturbed, bench.root / "second") == []


def test_what_no_node_has_is_not_run_and_says_why(bench: Bench) -> None:
    matrix = bench.drill.matrix
    before = matrix.read_text()
    rows = "resources:\n  - {stages: preflight, subjects: '*/vllm-0.26.0', memory_gb: 5000}\n"
    matrix.write_text(before + rows)
    store = bench.root / "lacking"
    try:
        done = bench.run(store)
        assert "not run: asks for a node with 1 CPU, 5000 GB of memory; the cluster has" in done.said
        views = json.loads((store / "matrix.json").read_text())["cells"]
    finally:
        matrix.write_text(before)
    stages = [view["stages"]["preflight"]["status"] for view in views if "preflight" in view["stages"]]
    assert Counter(stages)["not run"] == 4
    assert not any(entry.record.subject.endswith("/vllm-0.26.0") for entry in records(store).values())


def test_a_node_of_another_qvlfp8_is_refused(bench: Bench) -> None:
    other = bench.root / "other" / "qvlfp8"
    shutil.copytree(bench.drill.matrix.parent / "qvlfp8", other, ignore=shutil.ignore_patterns("told"))
    with (other / "__init__.py").open("a") as stream:
        stream.write("# another\n")
    variables = {**bench.variables("three"), "PYTHONPATH": str(other.parent)}
    node = bench.cluster.add_node(num_cpus=1, object_store_memory=200_000_000, env_vars=variables)
    try:
        done = bench.run(bench.root / "refused")
    finally:
        bench.cluster.remove_node(node)
    assert done.code == 20, done.said
    assert "has source of qvlfp8" in done.said
    assert "mend: install the same on every node" in done.said


def test_a_store_that_a_node_does_not_reach_is_refused(bench: Bench) -> None:
    done = bench.run(bench.root / "unreached", "--shared", "s3://not-there/x")
    assert done.code == 21, done.said
    assert "Traceback" not in done.said


def test_a_node_lost_in_the_middle_costs_only_time(bench: Bench, undisturbed: Path) -> None:
    node = bench.add_node("two", num_cpus=2, object_store_memory=200_000_000)
    store = bench.root / "lost-node"
    driver = bench.driver(store)
    try:
        wait_for(lambda: working_in(bench.root / "two"), "nothing began on the second node")
    finally:
        bench.cluster.remove_node(node, allow_graceful=False)
    done = ended(driver)
    assert done.code == 1, done.said
    assert other_than(undisturbed, store) == []


def test_a_killed_worker_is_tried_again_and_its_attempt_is_on_record(bench: Bench, undisturbed: Path) -> None:
    store = bench.root / "killed"
    bench.begun()
    driver = bench.driver(store)
    victims: list[Told] = []

    def killed() -> bool:
        victims.extend(told for told in bench.begun() if told.stage == "quantize")
        return bool(victims)

    wait_for(killed, "no quantize began")
    kill(victims[0].pid)
    done = ended(driver)
    assert done.code == 1, done.said
    assert other_than(undisturbed, store) == []
    record = records(store)["quantize", victims[0].step].record
    assert record.attempts is not None
    assert [attempt.fault.kind for attempt in record.attempts] == ["signal"]


def test_a_killed_driver_is_followed_by_one_that_goes_on(bench: Bench, undisturbed: Path) -> None:
    store = bench.root / "killed-driver"
    bench.begun()
    driver = bench.driver(store)
    wait_for(lambda: len(list((store / "shared").glob("steps/quantize/*/entry.json"))) >= 2, "no quantize")
    kill(driver.pid)
    driver.communicate(timeout=60)
    finished = {path.parent.name for path in (store / "shared").glob("steps/*/*/entry.json")}
    wait_for(lambda: not working_in(bench.root / "one"), "workers of a dead driver go on")
    bench.begun()
    done = bench.run(store)
    assert done.code == 1, done.said
    assert other_than(undisturbed, store) == []
    assert not finished & {told.step for told in bench.begun()}, "what was finished was done again"


def test_ctrl_c_ends_what_runs_on_every_node(bench: Bench) -> None:
    store = bench.root / "interrupted"
    bench.begun()
    driver = bench.driver(store)
    wait_for(bench.begun, "nothing began")
    driver.send_signal(signal.SIGINT)
    done = ended(driver)
    assert done.code == 130, done.said
    assert "interrupted; what was finished is kept" in done.said
    assert "Traceback" not in done.said
    wait_for(lambda: not working_in(bench.root / "one"), "workers of an interrupted driver go on", 15)


def test_a_damaged_entry_is_never_taken_and_is_made_anew(bench: Bench, undisturbed: Path) -> None:
    store = bench.root / "damaged"
    shared = store / "shared"
    assert bench.run(store).code == 1
    victim = next(shared.glob("steps/quantize/*/*/checkpoint/*.safetensors"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    shutil.rmtree(bench.root / "one" / "steps")
    shutil.rmtree(store / "steps" / "preflight")
    shutil.rmtree(shared / "steps" / "preflight")
    first = bench.run(store, "--retries", "0")
    assert "not what was written there" in first.said
    second = bench.run(store)
    assert second.code == 1, second.said
    assert other_than(undisturbed, store) == []


@pytest.mark.parametrize("address", ["nonsense", ":6379", "127.0.0.1:1"])
def test_where_no_cluster_can_be_that_is_said_at_once(address: str) -> None:
    """Ray itself tries for minutes where nothing listens."""
    begun = time.monotonic()
    with pytest.raises(ClusterError, match=address):
        connect(address, announce=pytest.fail)
    assert time.monotonic() - begun < 10


def test_a_full_object_store_stops_nothing(bench: Bench, undisturbed: Path) -> None:
    script = (
        "import sys, time, ray\n"
        "ray.init(address=sys.argv[1], log_to_driver=False)\n"
        "size = int(ray.cluster_resources()['object_store_memory'])\n"
        "held = [ray.put(bytes(size // 20)) for _ in range(24)]\n"
        "print(len(held), 'held', flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, bench.cluster.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=bench.root, text=True) as hoarder:
        try:
            assert hoarder.stdout is not None
            assert hoarder.stdout.readline() == "24 held\n"
            store = bench.root / "full"
            done = bench.run(store)
        finally:
            hoarder.kill()
    assert done.code == 1, done.said
    assert other_than(undisturbed, store) == []


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--inside", "docker"], 14, "no Docker daemon"),
        (["--node-store", "/proc/none"], 13, "/proc/none"),
    ],
)
def test_a_node_that_cannot_carry_out_steps_is_told_before_any_begins(
    bench: Bench, tmp_path: Path, options: list[str], code: int, told: str
) -> None:
    done = bench.run(tmp_path / "store", *options)
    assert done.code == code, done.said
    assert "cannot carry out steps: " in done.said
    assert told in done.said
    assert "mend: " in done.said
    assert "attempt" not in done.said
    assert records(tmp_path / "store") == {}


def test_an_error_that_stays_is_an_error_with_its_attempts(bench: Bench) -> None:
    """A Docker daemon that goes away: of the machine, not of the checkpoint."""
    store, gone = bench.root / "no-daemon", bench.root / "one" / GONE
    gone.touch()
    try:
        done = bench.run(store, "--retries", "1")
    finally:
        gone.unlink()
    assert done.code == 14, done.said
    found = [entry.record for entry in records(store).values()]
    assert {(record.stage, record.status) for record in found} == {("model", "error")}
    assert all(len(record.attempts or ()) == 1 for record in found)
    assert {record.fault.kind for record in found if record.fault} == {"daemon-gone"}
    assert done.said.count("! model seeing  0.0 s") == 1, "told once, when it is not tried again"
    assert "blocked: model of seeing has not passed" in done.said
    assert not list((store / "shared").glob("steps/*/*/entry.json"))
