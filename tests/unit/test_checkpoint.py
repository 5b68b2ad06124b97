import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvlfp8 import checkpoint
from qvlfp8.checkpoint import NotACheckpoint, Tensor, write_safetensors
from qvlfp8.tensorfile import BITS
from tests.unit import checkpoints

PER_EXAMPLE = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

names = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
byte_types = st.sampled_from(sorted(dtype for dtype, bits in BITS.items() if bits % 8 == 0))


@st.composite
def files(draw: st.DrawFn) -> dict[str, checkpoints.Entry]:
    entries = {}
    for name in draw(st.sets(names, max_size=5)):
        dtype, shape = draw(byte_types), tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        size = math.prod(shape) * BITS[dtype] // 8
        entries[name] = (dtype, shape, draw(st.binary(min_size=size, max_size=size)))
    return entries


def write(path: Path, entries: dict[str, checkpoints.Entry]) -> None:
    write_safetensors(path, [(name, *entry) for name, entry in entries.items()])


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def scalar(path: Path, dtype: str, data: bytes, shape: tuple[int, ...] = ()) -> Tensor:
    write_safetensors(path, [("s", dtype, shape, data)])
    return checkpoint.read_header(path)["s"]


@PER_EXAMPLE
@given(entries=files())
def test_what_is_written_is_read_back(tmp_path: Path, entries: dict[str, checkpoints.Entry]) -> None:
    write(tmp_path / "f", entries)

    found = checkpoint.read_header(tmp_path / "f")

    assert {name: (t.dtype, t.shape, checkpoint.read_bytes(t)) for name, t in found.items()} == entries
    assert all((t.start * 8) % BITS[t.dtype] == 0 for t in found.values()), "aligned"


@PER_EXAMPLE
@given(entries=files(), data=st.data())
def test_a_damaged_file_is_refused_or_read_and_nothing_else(
    tmp_path: Path, entries: dict[str, checkpoints.Entry], data: st.DataObject
) -> None:
    path = tmp_path / "f"
    write(path, entries)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])

    try:
        found = checkpoint.read_header(path)
    except NotACheckpoint:
        return
    assert all(0 < t.start <= t.end <= path.stat().st_size for t in found.values())


json_values = st.recursive(
    st.sampled_from([None, True, -1, 0, 2, 2**64, 0.5, float("nan"), "", "U8"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("a"), inner),
    max_leaves=4,
)


@PER_EXAMPLE
@given(
    header=json_values
    | st.dictionaries(
        names,
        st.fixed_dictionaries(
            {"dtype": byte_types | json_values, "shape": json_values, "data_offsets": json_values}
        ),
        min_size=1,
        max_size=2,
    )
)
def test_any_json_as_header_is_refused_or_read(tmp_path: Path, header: object) -> None:
    path = raw_file(tmp_path / "f", header)
    try:
        found = checkpoint.read_header(path)
    except NotACheckpoint:
        return
    assert all(tensor.nbytes == 0 for tensor in found.values()), "the file has no data"


def entry(start: int, end: int, shape: list[Any] | None = None, dtype: str = "U8") -> object:
    return {"dtype": dtype, "shape": shape or [end - start], "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"a": entry(0, 4), "b": entry(2, 4)}, "overlaps"),
        ({"a": entry(0, 1), "b": entry(2, 4)}, "hole"),
        ({"a": entry(0, 3)}, "the file at"),
        ({"a": entry(0, 8)}, "the file at"),
        ({"a": entry(0, 4, [3])}, r"U8 of shape \[3\] in 4 bytes"),
        ({"a": entry(4, 0, [-4])}, "not dtype, shape and data_offsets"),
        ({"a": entry(0, 4, [True, 4])}, "not dtype, shape and data_offsets"),
        ({"a": entry(0, 4, dtype="F8")}, "unknown type 'F8'"),
        ({"a": entry(0, 4), "__metadata__": {"n": 1}}, "__metadata__"),
        ([], "not an object"),
    ],
)
def test_each_rule_of_the_format_is_held(tmp_path: Path, header: object, problem: str) -> None:
    with pytest.raises(NotACheckpoint, match=problem):
        checkpoint.read_header(raw_file(tmp_path / "f", header, b"1234"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x02",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 2) + b"\xff\xff",
        struct.pack("<Q", 40_000) + b"[" * 40_000,
        struct.pack("<Q", 14) + b'{"a":1, "a":1}',
    ],
)
def test_a_header_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(NotACheckpoint):
        checkpoint.read_header(tmp_path / "f")


@pytest.mark.parametrize(
    ("dtype", "data", "value"),
    [
        ("F64", struct.pack("<d", 1e-300), 1e-300),
        ("F32", struct.pack("<f", 0.375), 0.375),
        ("F16", struct.pack("<e", -2.5), -2.5),
        ("BF16", b"\x80\x3f", 1.0),
        ("F8_E5M2", b"\x3e", 1.5),
        ("F8_E4M3", b"\x7e", 448.0),  # the largest
        ("F8_E4M3", b"\x81", -(2.0**-9)),  # the smallest, negative
        ("F8_E4M3", b"\x38", 1.0),
    ],
)
def test_values_of_every_floating_type(tmp_path: Path, dtype: str, data: bytes, value: float) -> None:
    assert checkpoint.values(scalar(tmp_path / "f", dtype, data)) == (value,)


def test_values_of_vectors_and_nan(tmp_path: Path) -> None:
    assert checkpoint.values(scalar(tmp_path / "f", "BF16", b"\x80\x3f\x00\xc0", (2,))) == (1, -2)
    assert math.isnan(checkpoint.values(scalar(tmp_path / "f", "F8_E4M3", b"\xff"))[0])


def test_values_refuses_what_is_no_scale(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="I32"):
        checkpoint.values(scalar(tmp_path / "f", "I32", bytes(4)))
    with pytest.raises(ValueError, match="small"):
        checkpoint.values(scalar(tmp_path / "f", "F16", bytes(140_000), (70_000,)))


@pytest.mark.parametrize(
    "tensors",
    [
        [("a", "U8", (1,), b"1"), ("a", "U8", (1,), b"1")],
        [("__metadata__", "U8", (1,), b"1")],
        [("a", "U9", (1,), b"1")],
        [("a", "F32", (2,), b"1234")],
    ],
)
def test_nothing_wrong_is_written(
    tmp_path: Path, tensors: list[tuple[str, str, tuple[int, ...], bytes]]
) -> None:
    with pytest.raises(ValueError, match=r"tensor name|bytes are not"):
        write_safetensors(tmp_path / "f", tensors)
    assert not list(tmp_path.iterdir())


def test_a_file_cut_after_its_header_was_read(tmp_path: Path) -> None:
    tensor = scalar(tmp_path / "f", "F32", bytes(4))
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:-1])
    with pytest.raises(NotACheckpoint, match="ends inside"):
        checkpoint.read_bytes(tensor)


def folder(root: Path, config: object = None, **files_: list[str]) -> Path:
    (root / "config.json").write_text(json.dumps(config or {"model_type": "x"}))
    for file, tensors in files_.items():
        items = [(name, "U8", (1,), b"1") for name in tensors]
        write_safetensors(root / f"{file}.safetensors", items)
    return root


def index(root: Path, weight_map: object) -> None:
    (root / checkpoint.INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_shards_of_an_index_and_only_those(tmp_path: Path) -> None:
    folder(tmp_path, one=["a"], two=["b"], other=["c"])
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})

    found = checkpoint.read(tmp_path)

    assert list(found.tensors) == ["a", "b"]
    assert found.weight_files == ("one.safetensors", "two.safetensors")
    assert found.nbytes == 2


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder(tmp_path, one=["a"], two=["a"])
    with pytest.raises(NotACheckpoint, match=r"two\.safetensors: 'a' is also in one\.safetensors"):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "one.safetensors", "b": "one.safetensors"},
        {"b": "one.safetensors"},
        {"a": "absent.safetensors"},
        {"a": "../one.safetensors"},
        {"a": "/etc/passwd"},
        {"a": "sub/one.safetensors"},
        {"a": "..\\one.safetensors"},
        {"a": ".."},
        {"a": "\ud800"},
        {"a": "\0"},
        {"a": 1},
        {},
        [],
    ],
)
def test_an_index_that_contradicts_or_leaves_the_folder(tmp_path: Path, weight_map: object) -> None:
    folder(tmp_path, one=["a"])
    index(tmp_path, weight_map)
    with pytest.raises(NotACheckpoint):
        checkpoint.read(tmp_path)


def test_which_quantization_configuration_counts(tmp_path: Path) -> None:
    folder(tmp_path, one=["a"])
    assert checkpoint.read(tmp_path).quantization is None

    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    separate = checkpoint.read(tmp_path)
    assert separate.quantization == {"quantization": {"quant_algo": "FP8"}}
    assert separate.quantization_source == "hf_quant_config.json"

    folder(tmp_path, {"quantization_config": {"quant_algo": "NVFP4"}})
    inline = checkpoint.read(tmp_path)
    assert inline.quantization == {"quant_algo": "NVFP4"}
    assert inline.quantization_source == "config.json"
    assert inline.hf_quant_config == separate.quantization


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"quantization_config": 1}'),
        ("hf_quant_config.json", "nothing"),
        ("one.safetensors", ""),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, file: str, content: str) -> None:
    folder(tmp_path, one=["a"])
    (tmp_path / file).write_text(content)
    with pytest.raises(NotACheckpoint) as refusal:
        checkpoint.read(tmp_path)
    assert refusal.value.file == tmp_path / file
    assert refusal.value.mend in str(refusal.value)


def test_a_folder_without_configuration_or_weights(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match="no such folder"):
        checkpoint.read(tmp_path / "absent")
    with pytest.raises(NotACheckpoint, match=r"config\.json"):
        checkpoint.read(tmp_path)
    with pytest.raises(NotACheckpoint, match=r"no \*\.safetensors"):
        checkpoint.read(folder(tmp_path))


def test_the_digest_sees_names_and_bytes_and_not_times(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("1")
    first = checkpoint.folder_digest(tmp_path)
    (tmp_path / "sub" / "a").write_text("1")
    assert checkpoint.folder_digest(tmp_path) == first
    (tmp_path / "sub" / "a").write_text("2")
    second = checkpoint.folder_digest(tmp_path)
    (tmp_path / "sub" / "a").rename(tmp_path / "sub" / "b")
    assert len({first, second, checkpoint.folder_digest(tmp_path)}) == 3


def test_a_link_into_nothing_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("absent")
    with pytest.raises(NotACheckpoint, match="remove the link"):
        checkpoint.folder_digest(tmp_path)
