import json
from pathlib import Path

import pytest

from qvlfp8 import checkpoint, structure
from qvlfp8.reference import tokenizer, write_random

SEEDS = {True: 1, False: 2}
"""A tied model and an untied one."""

DIGESTS = {
    # Any machine, any Python from 3.11 on: a change here is a change of the reference model.
    True: "f099fd98a751e170304728797f06a73662ccd0bcbc42110dd81488d9b7d9b1a1",
    False: "0aebfdfdd5164908bf6f5b0e57d93360e99a9f75b48101448b2160b17ce995ed",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    root = tmp_path_factory.mktemp("models")
    folders = {tied: root / f"tied-{tied}" for tied in SEEDS}
    for tied, folder in folders.items():
        assert write_random(folder, seed=SEEDS[tied], tied=tied) == DIGESTS[tied]
    return folders


def test_the_digest_is_the_folders(models: dict[bool, Path]) -> None:
    assert checkpoint.folder_digest(models[True]) == DIGESTS[True]


@pytest.mark.parametrize("tied", [True, False])
def test_tensors_are_those_of_the_model(models: dict[bool, Path], tied: bool) -> None:
    held = checkpoint.read(models[tied])
    model = structure.from_config(held.config)

    expected = {name: s for name, s in model.shapes.items() if name not in model.optional}
    assert {name: tensor.shape for name, tensor in held.tensors.items()} == expected
    assert {tensor.dtype for tensor in held.tensors.values()} == {"BF16"}
    assert ("lm_head.weight" in held.tensors) is not tied


def test_values_are_in_their_range(models: dict[bool, Path]) -> None:
    held = checkpoint.read(models[True])
    assert set(checkpoint.values(held.tensors["model.norm.weight"])) == {1.0}
    bias = checkpoint.values(held.tensors["visual.blocks.0.attn.qkv.bias"])
    assert max(map(abs, bias)) <= 0.125
    assert abs(sum(bias) / len(bias)) < 0.02
    weight = checkpoint.values(held.tensors["visual.blocks.1.attn.proj.weight"])
    assert sum(v * v for v in weight) / len(weight) == pytest.approx(1 / 160, rel=0.02)


def test_each_seed_is_another_model(models: dict[bool, Path]) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    one, two = (checkpoint.read(models[tied]).tensors[name] for tied in SEEDS)
    assert checkpoint.values(one) != checkpoint.values(two)


def test_nothing_is_overwritten_or_left_behind(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(FileExistsError, match="remove it"):
        write_random(tmp_path / "m", seed=1, tied=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_every_byte_and_special_token_has_an_id_of_its_own() -> None:
    symbols = tokenizer.byte_symbols()
    assert len(set(symbols)) == 256
    assert [symbol for symbol in symbols if not symbol.isprintable() or symbol.isspace()] == []
    ids = [*tokenizer.BYTE_IDS.values(), *tokenizer.TOKEN_IDS.values()]
    assert sorted(ids) == list(range(270))
    assert max(ids) < tokenizer.VOCABULARY_SIZE
    assert tokenizer.BYTE_IDS["Ġ"] == tokenizer.BYTE_IDS["Ā"] + 32, "as in GPT-2: a space is Ġ"


def test_files_agree_on_the_special_tokens(models: dict[bool, Path]) -> None:
    def load(name: str) -> dict[str, object]:
        content: dict[str, object] = json.loads((models[True] / name).read_text(encoding="utf-8"))
        return content

    config, generation = load("config.json"), load("generation_config.json")
    assert config["image_token_id"] == tokenizer.TOKEN_IDS["<|image_pad|>"] == 268
    assert config["eos_token_id"] in generation["eos_token_id"]  # type: ignore[operator]
    template = (models[True] / "chat_template.jinja").read_text(encoding="utf-8")
    assert load("chat_template.json")["chat_template"] == template
    assert load("tokenizer_config.json")["chat_template"] == template
