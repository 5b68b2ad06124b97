"""How deep JSON nests, measured before it is scanned."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlfp8.json_depth import DEEPEST, depth

_BOUNDED = """
import json, sys
from qvlfp8 import json_depth
json_depth.bound()
try:
    json.loads(sys.stdin.read(), object_pairs_hook=dict)
    print("scanned")
except (RecursionError, ValueError) as error:
    print(type(error).__name__, error)
"""


def nested(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(nested, inner), default=0)


@given(
    st.recursive(
        st.text(alphabet='ab"\\[]{}\n', max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k"[{\\'), inner, max_size=3),
        max_leaves=20,
    )
)
def test_brackets_inside_strings_do_not_count(value: object) -> None:
    assert depth(json.dumps(value)) == nested(value)


@pytest.mark.parametrize(
    ("text", "levels"), [("[[[", 3), ("]]]", 0), ('"[[', 0), ('"\\"[', 0), ('"\\\\"[', 1), ('{"a":[{}]}', 3)]
)
def test_what_is_no_json_has_a_depth_too(text: str, levels: int) -> None:
    assert depth(text) == levels


def test_a_long_string_without_end_costs_nothing() -> None:
    assert depth('\\"' * 500_000) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * DEEPEST + "]" * DEEPEST, "scanned"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "RecursionError nested too deeply"),
        ('{"a":' + "[" * 100_000, "RecursionError nested too deeply"),
        ("[" + ",".join(["{}"] * 5_000) + "]", "scanned"),
        ("[" * 5 + "x", "JSONDecodeError Expecting value: line 1 column 6 (char 5)"),
    ],
)
def test_readers_are_bounded(text: str, said: str) -> None:
    """In a process of its own: what is bounded stays so."""
    done = subprocess.run(
        [sys.executable, "-c", _BOUNDED], input=text, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == said
