from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from qvlfp8.json_lines import Listed, Named, json_lines, json_stream

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    plain=st.dictionaries(st.text(), values, max_size=3),
    listed=st.lists(values),
    named=st.dictionaries(st.text(), values),
)
def test_what_is_written_in_pieces_is_read_as_it_was(
    plain: dict[str, object], listed: list[object], named: dict[str, object]
) -> None:
    told = {**plain, "listed": listed, "named": named}
    pieces = json_stream({**plain, "listed": Listed(iter(listed)), "named": Named(iter(named.items()))})
    assert json.loads("".join(pieces)) == told


def test_each_entry_has_a_line() -> None:
    text = json_lines({"version": 1}, "rows", [{"a": 1}, "ü"])
    assert text == '{\n "version": 1,\n "rows": [\n  {"a": 1},\n  "ü"\n ]\n}\n'
