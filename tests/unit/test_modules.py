import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlfp8 import quantization, structure
from qvlfp8.collapse import collapse
from qvlfp8.modules import MAX_EXPRESSIONS, MAX_WILDCARDS, UnreadableExpression, expressions, wildcards
from tests.unit.checkpoints import small_config

NAMES = sorted(structure.from_config(small_config()).linears)
PIECES = st.sampled_from(
    ["visual", "model", "language_model", "lm_head", "*", "?", "[a-m]", ".", "0", "attn"]
)


@given(st.lists(st.lists(PIECES, max_size=5).map("".join), max_size=4), st.sampled_from(NAMES))
def test_wildcards_are_what_the_workers_take_them_for(patterns: list[str], name: str) -> None:
    assert wildcards(patterns)(name) == quantization.excludes(patterns, name)


@pytest.mark.parametrize(
    ("entry", "name", "named"),
    [
        ("lm_head", "lm_head", True),
        ("model.visual.merger.mlp.0", "visual.merger.mlp.0", True),
        ("visual", "visual.merger.mlp.0", False),
        ("re:.*lm_head", "lm_head", True),
        ("re:visual.*", "visual.blocks.0.attn.qkv", True),
        ("re:model.visual.*", "visual.blocks.0.attn.qkv", True),
        (r"re:.*\.layers\.(0|1)\.mlp\..*", "model.layers.0.mlp.up_proj", True),
        (r"re:.*\.layers\.\d+\.self_attn\.[qkv]_proj$", "model.layers.0.self_attn.o_proj", False),
        ("re:.*layers.*mlp.*", "model.layers.0.mlp.up_proj", True),
        (r"re:lm_head\.*", "lm_head", True),
        ("re:attn", "model.layers.0.self_attn.o_proj", False),
        ("Linear", "model.layers.0.self_attn.o_proj", True),
        ("Embedding", "model.layers.0.self_attn.o_proj", False),
    ],
)
def test_names_classes_and_expressions(entry: str, name: str, named: bool) -> None:
    assert expressions([entry])(name) is named


@pytest.mark.parametrize(
    "text",
    ["(a+)+$", "(a|a)*b", r"(a)\1", "(?=a)", ".*.*.*x", "a{1,100}", "a?a?a?b", "[a-z]+x", "(", "x" * 300],
)
def test_expressions_that_might_never_end_are_not_tried(text: str) -> None:
    with pytest.raises(UnreadableExpression):
        expressions([f"re:{text}"])


def test_there_may_not_be_any_number_of_expressions() -> None:
    with pytest.raises(UnreadableExpression):
        expressions([f"re:{n}" for n in range(MAX_EXPRESSIONS + 1)])
    with pytest.raises(UnreadableExpression):
        wildcards([f"{n}*" for n in range(MAX_WILDCARDS + 1)])
    assert wildcards([f"model.layers.{n}" for n in range(MAX_WILDCARDS + 1)])("model.layers.0.mlp.up_proj")


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["model.layers.3.mlp"], ["model.layers.3.mlp"]),
        (
            [f"model.layers.{n}.mlp" for n in (0, 1, 2, 5, 10, 11)] + ["lm_head"],
            ["model.layers.{0-2,5,10-11}.mlp", "lm_head"],
        ),
        (
            ["visual.blocks.1.a", "visual.blocks.0.b", "visual.blocks.0.a"],
            ["visual.blocks.{0-1}.a", "visual.blocks.0.b"],
        ),
        (["visual.merger.mlp.0", "visual.merger.mlp.2"], ["visual.merger.mlp.0", "visual.merger.mlp.2"]),
        (["model.layers.1", "model.layers.0"], ["model.layers.{0-1}"]),
        ([], []),
    ],
)
def test_layer_numbers_collapse(names: list[str], written: list[str]) -> None:
    assert collapse(names) == written
