"""Checkpoints as an attacker would make them: each with the exit code and the words that answer it.

Used by the unit tests, by ``bench/hostile.py``, which measures them, and as a corpus for the fuzzers.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvlfp8.checkpoint import CONFIG, HF_QUANT_CONFIG, INDEX, WEIGHTS
from tests.unit.checkpoints import (
    LM_EXCLUSIONS,
    SCALE,
    Entry,
    fp8_tensors,
    inline_quantization,
    small_config,
    write,
)

ESCAPE = "\x1b]0;owned\x07\x1b[2J"
"""What would rename and clear a terminal if it were printed as it is."""

STRAY = "visual.blocks.0.attn.k_proj.k_scale"
TOKENIZER = "tokenizer.json"
SECRET = "A line of a file that is none of the checkpoint's."  # noqa: S105

NOT_A_CHECKPOINT, UNKNOWN_MODEL, NO_SPACE, NOT_MENDED = 3, 4, 13, 18


@dataclass(frozen=True)
class Case:
    """One hostile folder: how it is made out of a sound one, and what must be said of it.

    ``heavy``: as large as may be, made to cost time or memory; only the benchmark takes it.
    """

    name: str
    make: Callable[[Path], object]
    code: int
    says: str
    heavy: bool = False


def victim(folder: Path) -> Path:
    """An export that repair would mend: it has a stray scale."""
    config = small_config() | {"quantization_config": inline_quantization(LM_EXCLUSIONS)}
    return write(folder, tensors(), config)


def tensors() -> dict[str, Entry]:
    return fp8_tensors(small_config()) | {STRAY: SCALE}


def outside(folder: Path) -> Path:
    """A file beside the folder, of which nothing may ever be read."""
    secret = folder.parent / "secret"
    secret.write_text(SECRET)
    return secret


def edit(name: str, **fields: Any) -> Callable[[Path], object]:
    """Set fields of a JSON file."""

    def make(folder: Path) -> None:
        found = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(found | fields))

    return make


def put(name: str, content: bytes | str | Callable[[], bytes | str]) -> Callable[[Path], object]:
    """Write a file as it is given."""

    def make(folder: Path) -> None:
        data = content() if callable(content) else content
        (folder / name).write_bytes(
            data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        )

    return make


def spliced(name: str, field: str, text: str | Callable[[], str]) -> Callable[[Path], object]:
    """Put a field with this JSON text first into an object."""

    def make(folder: Path) -> None:
        old = (folder / name).read_text() if (folder / name).exists() else "{}"
        value = text() if callable(text) else text
        rest = "" if old.strip() == "{}" else ","
        (folder / name).write_text(f'{{"{field}":{value}{rest}{old.strip()[1:]}')

    return make


def header(content: Mapping[str, Any] | str | bytes, data: bytes = b"") -> Callable[[Path], object]:
    """A weight file with this header."""

    def make(folder: Path) -> None:
        raw = content if isinstance(content, bytes) else _text(content).encode("utf-8", "surrogatepass")
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + data)

    return make


def _text(content: Mapping[str, Any] | str) -> str:
    return content if isinstance(content, str) else json.dumps(content)


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def named(name: str) -> Callable[[Path], object]:
    """One more tensor, of this name."""

    def make(folder: Path) -> None:
        write(folder, tensors() | {name: SCALE}, json.loads((folder / CONFIG).read_text()))

    return make


def scale(value: str) -> Callable[[Path], object]:
    """A scale of this value."""

    def make(folder: Path) -> None:
        odd = {"model.layers.0.mlp.up_proj.input_scale": ("F32", (), struct.pack("<f", float(value)))}
        write(folder, tensors() | odd, json.loads((folder / CONFIG).read_text()))

    return make


def link(name: str, target: str | None = None) -> Callable[[Path], object]:
    """A link in place of a file: to ``target``, or to the file beside the folder."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target or outside(folder))

    return make


def folder_for(name: str) -> Callable[[Path], object]:
    """A folder in place of a file."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return make


def both(first: Callable[[Path], object], then: Callable[[Path], object]) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        first(folder)
        then(folder)

    return make


def pipe(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def lazily(make: Callable[[], Callable[[Path], object]]) -> Callable[[Path], object]:
    """Make what is large only when it is wanted."""

    def make_now(folder: Path) -> None:
        make()(folder)

    return make_now


def index(weight_map: Mapping[str, Any]) -> Callable[[Path], object]:
    return edit(INDEX, weight_map=weight_map)


def sparse(name: str, begin: bytes, size: int) -> Callable[[Path], object]:
    """A file that begins so, and has a hole up to its size."""

    def make(folder: Path) -> None:
        with (folder / name).open("wb") as stream:
            stream.write(begin)
            stream.truncate(size)

    return make


def many_tensors(count: int, *, files: int = 1, suffix: str = "_scale") -> Callable[[Path], object]:
    """So many scalars, in so many files, well formed."""

    def make(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        for file in range(files):
            share = count // files
            items = ",".join(
                f'"model.layers.{file}.mlp.experts.{number}.gate_proj.weight{suffix}":{{"dtype":"F32","shape":[],'
                f'"data_offsets":[{number * 4},{number * 4 + 4}]}}'
                for number in range(share)
            )
            raw = f"{{{items}}}".encode()
            begin = struct.pack("<Q", len(raw)) + raw
            sparse(f"model-{file}.safetensors", begin, len(begin) + 4 * share)(folder)

    return make


def nested_with_odd_rope(folder: Path) -> None:
    """A ``text_config`` whose rotary embedding is of a type that no set can hold."""
    config = json.loads((folder / CONFIG).read_text())
    odd = {"rope_parameters": {"mrope_section": [1], "rope_type": [ESCAPE]}}
    (folder / CONFIG).write_text(json.dumps(config | {"text_config": config | odd}))


def only_a_pickle(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(PICKLE)

    return make


def all_at_their_bounds(folder: Path) -> None:
    """Each file just within its bound: the most that reading a folder can cost."""
    many_tensors(26_000)(folder)
    numbers = {"num_hidden_layers": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = json.loads((folder / CONFIG).read_text()) | numbers
    config["vision_config"]["depth"] = 256
    patterns = [f"model.layers.{number}.m*" for number in range(4_000)]
    patterns += [f"*{number}*{'?' * 100}*" for number in range(60)]
    config["quantization_config"] = inline_quantization(tuple(patterns))
    (folder / CONFIG).write_text(json.dumps(config))
    weight_map = {
        f"model.layers.0.mlp.experts.{number}.gate_proj.weight_scale": "model-0.safetensors"
        for number in range(26_000)
    }
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / TOKENIZER).write_text(full_of("[0]", 590_000, padded_to=11_000_000))


def full_of(item: str, count: int, *, padded_to: int = 0) -> str:
    """An object with a list of one thing; one character makes Python keep four bytes for each."""
    text = f'{{"\U0001f600":[{",".join([item] * count)}]}}'
    return text + " " * (padded_to - len(text))


PICKLE = b"\x80\x04cposix\nsystem\nX\x1f\x00\x00\x00touch /tmp/qvlfp8-was-unpickled\x85R."
"""A pickle that would run a command; never loaded by anything."""

_DIGITS = "9" * 5_000
_DEEP = "[" * 100_000
_LEVELS = "[" * 200 + "]" * 200
_WHOLE = entry("U8", [4], 0, 4)

CASES: tuple[Case, ...] = (
    # The header of a weight file.
    Case("header-length-truncated", put(WEIGHTS, b"\x10\0\0"), 3, "header length"),
    Case("header-length-beyond-file", put(WEIGHTS, struct.pack("<Q", 10_000) + b"{}"), 3, "header length"),
    Case("header-length-2^64", put(WEIGHTS, b"\xff" * 16), 3, "header length"),
    Case("header-empty-file", put(WEIGHTS, b""), 3, "header length"),
    Case("header-deep", header(f'{{"a":{_DEEP}'), 3, "nested too deeply"),
    Case("header-duplicate", header(f'{{"a":{json.dumps(_WHOLE)},"a":1}}', b"1234"), 3, "'a' occurs twice"),
    Case("header-overlap", header({"a": _WHOLE, "b": entry("U8", [4], 2, 6)}, b"123456"), 3, "overlaps"),
    Case("header-out-of-range", header({"a": entry("U8", [2**40], 0, 2**40)}, b"1234"), 3, "the file at"),
    Case("header-negative", header({"a": entry("U8", [4], -4, 0)}, b"1234"), 3, "header entry of 'a'"),
    Case(
        "header-digits",
        header(f'{{"a":{{"dtype":"U8","shape":[{_DIGITS}],"data_offsets":[0,4]}}}}'),
        3,
        "4300",
    ),
    Case("header-2^63", header({"a": entry("U8", [2**63], 0, 2**63)}), 3, "header entry of 'a'"),
    Case(
        "header-nan", header('{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,4]}}'), 3, "NaN is no number"
    ),
    Case("header-not-utf8", header(b'{"\xff\xfe":1}'), 3, "is not valid JSON"),
    Case(
        "header-surrogate",
        header('{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
        3,
        "surrogates",
    ),
    Case("header-escapes", header({ESCAPE: 1}), 3, r"\x1b]0;owned\x07"),
    Case("header-long-name", header({"a" * 1_000_000: 1}), 3, " … "),
    Case(
        "header-dimensions",
        header({"a": entry("U8", [2**62] * 60_000, 0, 4)}, b"1234"),
        3,
        "header entry of 'a'",
    ),
    Case("pickle-zip", put(WEIGHTS, b"PK\x03\x04" + bytes(100)), 3, "is a pickle"),
    Case("pickle-plain", put(WEIGHTS, PICKLE), 3, "is a pickle"),
    Case("pickle-only", only_a_pickle("pytorch_model.bin"), 3, "'pytorch_model.bin' is a pickle"),
    Case("sparse-header", sparse(WEIGHTS, struct.pack("<Q", 1 << 39), 1 << 40), 3, "549755813888 bytes"),
    Case("tensor-name-escapes", named(f"x\n{ESCAPE}"), 18, r"x\n\x1b]0;owned"),
    Case("scale-nan", scale("nan"), 18, "it is nan"),
    Case("scale-infinite", scale("inf"), 18, "it is inf"),
    # The index.
    Case("index-absolute", index({"a": "/etc/passwd"}), 3, "weight_map names '/etc/passwd'"),
    Case("index-parent", index({"a": "../secret"}), 3, "weight_map names '../secret'"),
    Case("index-escapes", index({"a": ESCAPE}), 3, r"\x1b]0;owned"),
    Case("index-nested", index({"a": json.loads(_LEVELS)}), 3, "nested more than 64"),
    Case(
        "index-link-out",
        both(link("a.safetensors"), index({"a": "a.safetensors"})),
        3,
        "link out",
    ),
    Case("index-is-a-pipe", pipe(INDEX), 3, "a named pipe"),
    Case("index-dangling", link(INDEX, "nowhere"), 3, "No such file"),
    Case("index-names-a-folder", both(folder_for("a"), index({"a": "a"})), 3, "is a folder"),
    Case("index-long-name", index({"a": "b" * 100_000}), 3, "File name too long"),
    Case("index-nan", spliced(INDEX, "weight_map", "NaN"), 3, "NaN is no number"),
    # Links and special files.
    Case("weights-link-out", link(WEIGHTS), 3, "link out of the folder"),
    Case("weights-link-to-device", link(WEIGHTS, "/dev/zero"), 3, "link out of the folder"),
    Case("weights-link-to-proc", link(WEIGHTS, "/proc/self/environ"), 3, "link out of the folder"),
    Case("weights-link-loop", link(WEIGHTS, WEIGHTS), 3, "symbolic links"),
    Case("weights-are-a-pipe", pipe(WEIGHTS), 3, "a named pipe"),
    Case("weights-are-a-folder", folder_for(WEIGHTS), 3, "is a folder"),
    Case(
        "weights-unprintable", lambda f: (f / WEIGHTS).rename(f / "\udcff\x1b[2J.safetensors"), 3, "printed"
    ),
    Case("config-link-out", link(CONFIG), 3, "link out of the folder"),
    Case("config-is-a-pipe", pipe(CONFIG), 3, "a named pipe"),
    Case("config-link-to-pipe", both(pipe("p"), link(CONFIG, "p")), 3, "a named pipe"),
    Case("config-is-a-folder", folder_for(CONFIG), 3, "is a folder"),
    Case("hf-quant-link-out", link(HF_QUANT_CONFIG), 3, "link out of the folder"),
    Case("tokenizer-link-out", link(TOKENIZER), 18, "link out of the folder"),
    Case("template-link-out", link("chat_template.jinja"), 18, "link out of the folder"),
    Case("companion-link-out", link("notes.txt"), 18, "link out of the folder"),
    # Configuration.
    Case("config-deep", put(CONFIG, _DEEP), 3, "nested too deeply"),
    Case("config-levels", spliced(CONFIG, "x", _LEVELS), 3, "nested more than 64"),
    Case("config-duplicate", spliced(CONFIG, "model_type", "1"), 3, "'model_type' occurs twice"),
    Case("config-nan", spliced(CONFIG, "x", "NaN"), 3, "NaN is no number"),
    Case("config-infinity", spliced(CONFIG, "x", "-Infinity"), 3, "-Infinity is no number"),
    Case("config-1e999", spliced(CONFIG, "x", "1e999"), 3, "a number is too large"),
    Case("config-digits", spliced(CONFIG, "x", _DIGITS), 3, "4300"),
    Case("config-not-utf8", put(CONFIG, b'{"model_type":"\xff"}'), 3, "is not valid JSON"),
    Case("config-surrogate", spliced(CONFIG, "x", '"\\ud800"'), 3, "surrogates"),
    Case("config-nul", put(CONFIG, b"\0" * 64), 3, "is not valid JSON"),
    Case("config-escapes", edit(CONFIG, model_type=ESCAPE), 4, r"\x1b]0;owned"),
    Case("config-long", edit(CONFIG, model_type="x" * 1_000_000), 4, " … "),
    Case("config-huge", sparse(CONFIG, b"{", 1 << 34), 3, "17179869184 bytes"),
    Case("config-layers", edit(CONFIG, num_hidden_layers=2**31 - 1), 4, "num_hidden_layers"),
    Case("config-blocks", edit(CONFIG, vision_config={"depth": 2**30}), 4, "depth"),
    Case("config-big-layers", edit(CONFIG, num_hidden_layers=int("9" * 4_000)), 4, "num_hidden_layers"),
    Case("config-text-list", edit(CONFIG, text_config=[]), 4, "not an object"),
    Case("config-quantization-list", edit(CONFIG, quantization_config=[1]), 3, "quantization_config"),
    Case(
        "config-algo", edit(CONFIG, quantization_config={"quant_algo": [ESCAPE]}), 4, "only ModelOpt's 'FP8'"
    ),
    Case(
        "exclusions-many",
        edit(CONFIG, quantization_config=inline_quantization(("a",) * 5_000)),
        4,
        "5000 modules",
    ),
    Case(
        "exclusions-wild",
        edit(CONFIG, quantization_config=inline_quantization(("*a*",) * 65)),
        4,
        "65 with a wild",
    ),
    Case(
        "exclusions-long",
        edit(CONFIG, quantization_config=inline_quantization(("*a" * 9_000,))),
        4,
        "characters",
    ),
    Case(
        "exclusions-numbers",
        edit(CONFIG, quantization_config={"quant_algo": "FP8", "ignore": [1]}),
        4,
        "names",
    ),
    Case("hf-quant-number", edit(HF_QUANT_CONFIG, quantization=1), 4, "'quantization' is not an object"),
    Case("hf-quant-deep", put(HF_QUANT_CONFIG, _DEEP), 3, "nested too deeply"),
    Case("rope-list", nested_with_odd_rope, 18, "rope_type"),
    Case("tokenizer-deep", put(TOKENIZER, _DEEP), 18, "nested too deeply"),
    Case("tokenizer-huge", sparse(TOKENIZER, b"{", 1 << 40), 18, "1099511627776 bytes"),
    Case("preprocessor-escapes", edit("preprocessor_config.json", patch_size=ESCAPE), 18, r"\x1b]0;"),
    # A size that no disk has, and what would cost more than the bounds.
    Case("sparse-companion", sparse("notes.txt", b"", 1 << 43), 13, "no space"),
    Case("tensors-million", many_tensors(1_000_000), 3, "are read", heavy=True),
    Case("tensors-million-in-500-files", many_tensors(1_000_000, files=500), 3, "are read", heavy=True),
    Case("files-many", many_tensors(1_500, files=1_500), 3, "1500 weight files", heavy=True),
    Case("files-1000", many_tensors(26_000, files=1_000), 18, "unexpected-tensor", heavy=True),
    Case("tensors-at-bound", many_tensors(27_000), 18, "unexpected-tensor", heavy=True),
    Case("tensors-at-bound-no-scales", many_tensors(27_000, suffix=""), 18, "unexpected-tensor", heavy=True),
    Case("all-at-their-bounds", all_at_their_bounds, 18, "unexpected-tensor", heavy=True),
    Case(
        "index-million",
        lazily(lambda: index({str(n): WEIGHTS for n in range(1_000_000)})),
        3,
        "read",
        heavy=True,
    ),
    Case("config-of-objects", put(CONFIG, lambda: full_of("{}", 600_000)), 3, "JSON values", heavy=True),
    Case(
        "header-of-objects",
        lazily(lambda: header(f'{{"a":[{"{}," * 5_000_000}0]}}')),
        3,
        "JSON values",
        heavy=True,
    ),
    Case(
        "header-metadata",
        lazily(lambda: header({"__metadata__": {"a": "a" * 15_000_000}})),
        18,
        "missing",
        heavy=True,
    ),
    Case(
        "tokenizer-of-objects",
        put(TOKENIZER, lambda: full_of("{}", 5_000_000)),
        18,
        "JSON values",
        heavy=True,
    ),
    Case(
        "tokenizer-at-bound",
        put(TOKENIZER, lambda: full_of("{}", 599_990, padded_to=15_999_000)),
        0,
        "",
        heavy=True,
    ),
    Case("tokenizer-of-floats", put(TOKENIZER, lambda: full_of("1.5e0", 1_199_000)), 0, "", heavy=True),
)
