"""Generated hostile folders: only known refusals come out, and nothing outside the folder is touched.

``--hypothesis-profile=thorough`` (as `nox -s fuzz` has it) tries thousands of each.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlfp8.checkpoint import CONFIG, HF_QUANT_CONFIG, INDEX, WEIGHTS
from tests.fuzz.targets import Bench, Crash, seeds
from tests.unit.hostile import CASES, ESCAPE, pipe

MANY = settings(max_examples=max(100, settings().max_examples))

_TOKENIZER = "tokenizer.json"
_JSON_FILES = (CONFIG, HF_QUANT_CONFIG, INDEX, _TOKENIZER, "preprocessor_config.json")

_ODD_TEXT = st.sampled_from(
    [ESCAPE, "", "\0", "\n", "..", "../secret", "/etc/passwd", "a" * 600, "*", "visual*"]
)
_ATOMS = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 8, 2**31, 2**63, 2**64, 10**400, 0.5, float("nan"), float("inf")])
    | st.sampled_from(["FP8", "modelopt", "float", "qwen2_5_vl", "mrope", "F32", WEIGHTS])
    | _ODD_TEXT
    | st.text(st.characters(codec=None), max_size=5)
)
_JSON = st.recursive(
    _ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            _ODD_TEXT | st.sampled_from(["quantization", "ignore", "weight_map", "type"]), inner
        )
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def _paths(value: Any) -> list[tuple[Any, ...]]:
    """Where something can be changed in a JSON value."""
    found: list[tuple[Any, ...]] = [()]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += [(key, *path) for path in _paths(inner)]
    return found


def _changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _changed(value[path[0]], path[1:], new)
    return copy


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> bytes:
    """The JSON of a value in which one to four places are something else, or gone, or twice there."""
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(_paths(value)))
        value = _changed(value, path, draw(_JSON))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    if draw(st.booleans()) and text.startswith("{") and len(text) > 2:
        text = f"{text[:-1]},{text[1:]}"
    return text.encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some flipped, cut off, or put in."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(0, min(len(found) - 1, 4_000))))
        match draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip" if found:
                found[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del found[at : at + draw(st.integers(1, 50))]
            case _:
                found[at:at] = draw(st.binary(max_size=12))
    return bytes(found[: draw(st.integers(0, len(found)))] if draw(st.booleans()) else found)


def _header(weights: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(weights[:8], "little")
    return json.loads(weights[8 : 8 + length]), weights[8 + length :]


_INDEX = {
    "metadata": {"total_size": 1},
    "weight_map": {"lm_head.weight": WEIGHTS, "model.norm.weight": WEIGHTS},
}
_HF_QUANT = {
    "producer": {"name": "modelopt"},
    "quantization": {"quant_algo": "FP8", "exclude_modules": ["visual"]},
}


@MANY
@given(data=st.data())
def test_a_mutated_header(bench: Bench, data: st.DataObject) -> None:
    header, body = _header(bench.sound(WEIGHTS))
    some = dict(data.draw(st.lists(st.sampled_from(list(header.items())), max_size=6)))
    raw = data.draw(mutated(some if data.draw(st.booleans()) else header))
    bench.try_files({WEIGHTS: struct.pack("<Q", len(raw)) + raw + body})


@MANY
@given(data=st.data())
def test_mutated_configurations_are_refused_or_mended(bench: Bench, data: st.DataObject) -> None:
    sound = {CONFIG: json.loads(bench.sound(CONFIG)), HF_QUANT_CONFIG: _HF_QUANT, INDEX: _INDEX}
    names = data.draw(st.sets(st.sampled_from(_JSON_FILES), min_size=1, max_size=2))
    files = {name: data.draw(mutated(sound.get(name, {"merge_size": 2, "patch_size": 2}))) for name in names}
    bench.try_files(files, mend=True)


@MANY
@given(data=st.data())
def test_a_mutated_text_config(bench: Bench, data: st.DataObject) -> None:
    config = json.loads(bench.sound(CONFIG))
    config["text_config"] = dict(config) | {"rope_parameters": {"mrope_section": [1], "rope_type": "default"}}
    bench.try_files({CONFIG: data.draw(mutated(config))}, mend=True)


@MANY
@given(data=st.data())
def test_damaged_bytes_of_any_file(bench: Bench, data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from([*_JSON_FILES, WEIGHTS]), min_size=1, max_size=3))
    files = {name: data.draw(damaged(bench.sound(name) or json.dumps(_HF_QUANT).encode())) for name in names}
    bench.try_files(files, mend=True)


@MANY
@given(
    names=st.sets(st.sampled_from([*_JSON_FILES, WEIGHTS, "notes.txt"]), min_size=1, max_size=3),
    target=st.sampled_from(
        ["../secret", "/dev/zero", "/etc/passwd", "..", ".", "/", CONFIG, WEIGHTS, "nowhere"]
    )
    | st.text(st.characters(min_codepoint=1, max_codepoint=127), min_size=1, max_size=9),
)
def test_links_anywhere(bench: Bench, names: set[str], target: str) -> None:
    bench.try_files(dict.fromkeys(names, b"->" + target.encode()), mend=True)


def test_every_case_stands_under_the_watch(bench: Bench) -> None:
    for case in (case for case in CASES if not case.heavy):
        own = Bench()
        try:
            case.make(own.folder)
            assert not own.look(mend=True), case.name
        finally:
            own.close()


def test_the_bench_itself_sees_a_crash(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not see it cannot report."""
    assert bench.try_files({}, mend=True), "the sound folder is accepted"

    def fail() -> None:
        raise KeyError("missing")

    new = bench.folder / "new"
    for deed, says in ((bench.secret.read_bytes, "outside"), (fail, "KeyError"), (new.touch, "changed")):
        monkeypatch.setattr("qvlfp8.repair.plan", lambda _held, deed=deed: deed())
        with pytest.raises(Crash, match=says):
            bench.look(mend=False)
        new.unlink(missing_ok=True)


def test_there_are_seeds_for_the_fuzzer() -> None:
    assert len(seeds("folder")) > 20
    assert all(0 < len(seed) <= 100_000 for seed in seeds("header"))


def test_a_pipe_under_any_name_does_not_hang(bench: Bench) -> None:
    for name in (*_JSON_FILES, WEIGHTS, "chat_template.jinja"):
        own = Bench()
        try:
            pipe(name)(own.folder)
            own.look(mend=True)
        finally:
            own.close()
