from dataclasses import asdict
from pathlib import Path

import pytest

from qvlfp8 import checkpoint, digest, structure
from qvlfp8.reference import write_trained
from qvlfp8.reference.shipped import WEIGHTS, training_record
from qvlfp8.worker.train import Plan


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    root = tmp_path_factory.mktemp("trained")
    made = {tied: root / f"tied-{tied}" for tied in (True, False)}
    for tied, folder in made.items():
        assert write_trained(folder, tied=tied) == checkpoint.folder_digest(folder)
    return made


def test_the_record_is_of_the_shipped_weights() -> None:
    record = training_record()
    assert record["model_sha256"] == digest.of_file(WEIGHTS)
    assert WEIGHTS.stat().st_size <= 12_000_000


def test_the_plan_by_default_is_that_of_the_shipped_weights() -> None:
    plan = asdict(Plan())
    assert plan | {"full_attention": list(plan["full_attention"])} == training_record()["plan"]


def test_the_record_claims_a_model_that_sees_and_speaks() -> None:
    record = training_record()
    assert record["exam"]["per_task"] >= 256
    assert min(record["accuracy"].values()) >= 0.97


def test_every_block_and_both_kinds_of_attention_are_needed() -> None:
    record = training_record()
    needed = [f"block {block} skipped" for block in range(record["plan"]["depth"])] + ["all windowed"]
    for fault in needed:
        broken = record["ablations"][fault]
        assert max(record["accuracy"][task] - broken[task] for task in record["chance"]) >= 0.15


def test_a_blind_model_guesses_and_still_speaks() -> None:
    record = training_record()
    for fault in ("blank", "tower shuffled"):
        for task, right in record["ablations"][fault].items():
            if task in record["chance"]:
                assert right <= record["chance"][task] + 0.1
            else:
                assert right == record["accuracy"][task]
    swapped = record["ablations"]["swapped"]
    assert all(swapped[task] <= chance for task, chance in record["chance"].items())


@pytest.mark.parametrize("tied", [True, False])
def test_tensors_are_those_of_the_model(folders: dict[bool, Path], tied: bool) -> None:
    held = checkpoint.read(folders[tied])
    model = structure.from_config(held.config)
    assert model.tied is tied
    expected = {name: shape for name, shape in model.shapes.items() if name not in model.optional}
    assert {name: tensor.shape for name, tensor in held.tensors.items()} == expected
    assert {tensor.dtype for tensor in held.tensors.values()} == {"BF16"}


def test_the_untied_head_and_norm_are_exactly_negated(folders: dict[bool, Path]) -> None:
    tied, untied = (checkpoint.read(folders[kind]).tensors for kind in (True, False))

    def negated(tensor: checkpoint.Tensor) -> bytes:
        data = checkpoint.read_bytes(tensor)
        return bytes(byte ^ (0x80 if place % 2 else 0) for place, byte in enumerate(data))

    embedding = "model.embed_tokens.weight"
    assert checkpoint.read_bytes(untied["lm_head.weight"]) == negated(tied[embedding])
    assert checkpoint.read_bytes(untied["model.norm.weight"]) == negated(tied["model.norm.weight"])
    one, other = (checkpoint.values(held["model.norm.weight"]) for held in (tied, untied))
    assert [-value for value in one] == list(other)
    for name in tied.keys() - {"model.norm.weight"}:
        assert checkpoint.read_bytes(tied[name]) == checkpoint.read_bytes(untied[name])


def test_nothing_is_overwritten(folders: dict[bool, Path]) -> None:
    with pytest.raises(FileExistsError, match="remove it"):
        write_trained(folders[True], tied=True)
