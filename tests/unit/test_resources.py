"""What steps take, and what is said where no node has it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from qvlfp8.environments import Device
from qvlfp8.plan import Step, Work
from qvlfp8.resources import Demand, ResourceRow, demand_of, lacking, together
from qvlfp8.results import RecordedStage

H100: Mapping[str, float] = {"CPU": 8.0, "memory": 64e9, "GPU": 1.0, "accelerator_type:H100": 1.0}
PLAIN: Mapping[str, float] = {"CPU": 2.0, "memory": 8e9}


def step(
    stage: RecordedStage = "generate", subject: str = "lm-fp8/m/s/vllm-0.26.0", device: Device = "cuda"
) -> Step:
    work = Work(stage=stage, environment="vllm-0.26.0", params={}, inputs={}, device=device)
    return Step(work=work, subject=subject, digest="0" * 64)


def test_a_step_takes_a_cpu_and_one_on_a_gpu_a_gpu() -> None:
    assert demand_of(step(device="cpu"), ()) == Demand()
    assert demand_of(step(), ()) == Demand(gpus=1)


def test_rows_count_field_by_field_and_the_last_wins() -> None:
    rows = (
        ResourceRow(stages="generate", memory_gb=40, cpus=4),
        ResourceRow(subjects="*/vllm-0.26.0", accelerator="H100", cpus=8),
        ResourceRow(stages=("quantize", "inspect"), cpus=16),
    )
    assert demand_of(step(), rows) == Demand(cpus=8, memory_gb=40, gpus=1, accelerator="H100")
    assert demand_of(step("quantize", "lm-fp8/m/s", "cpu"), rows).cpus == 16


def test_a_step_without_a_gpu_asks_for_none_whatever_a_row_says() -> None:
    row = ResourceRow(subjects="*", gpus=2, accelerator="H100", cpus=3)
    assert demand_of(step("preflight", device="cpu"), (row,)) == Demand(cpus=3)


def test_a_batch_takes_what_its_largest_step_takes() -> None:
    both = together([Demand(cpus=2, memory_gb=9), Demand(cpus=1, gpus=1, accelerator="L4")])
    assert both == Demand(cpus=2, memory_gb=9, gpus=1, accelerator="L4")
    assert both.ray == {"num_cpus": 2, "memory": 9_000_000_000, "num_gpus": 1, "accelerator_type": "L4"}


@pytest.mark.parametrize(
    ("demand", "fits"),
    [
        (Demand(), True),
        (Demand(gpus=1, accelerator="H100"), True),
        (Demand(gpus=1, accelerator="H200"), False),
        (Demand(gpus=2), False),
        (Demand(cpus=9), False),
        (Demand(memory_gb=64.1), False),
    ],
)
def test_one_node_has_to_have_all_of_it(demand: Demand, fits: bool) -> None:
    assert (lacking(demand, [PLAIN, H100]) == "") is fits


def test_two_nodes_together_are_not_one() -> None:
    assert lacking(Demand(gpus=2), [H100, H100])


def test_what_is_lacking_is_said_with_what_there_is() -> None:
    said = lacking(Demand(cpus=2, memory_gb=16, gpus=1, accelerator="H200"), [PLAIN, H100, H100])
    assert said == (
        "asks for a node with 1 GPU of type H200, 2 CPUs, 16 GB of memory; the cluster has "
        "1 node with 2 CPUs, 8 GB and 0 GPUs; 2 nodes with 8 CPUs, 64 GB and 1 GPU (H100)"
    )
    assert lacking(Demand(), []).endswith("the cluster has no node")
