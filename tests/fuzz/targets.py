"""What is fuzzed: bytes become a checkpoint folder, which is read and planned as ``qvlfp8 repair`` does.

A target answers hostile bytes with one of the known refusals, or reads them. Anything else that comes out of
it is a crash: another exception, a file opened outside the folder, something unpickled or run.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from qvlfp8 import checkpoint, repair
from qvlfp8.checkpoint import CONFIG, HF_QUANT_CONFIG, INDEX, WEIGHTS
from qvlfp8.errors import QvlError
from qvlfp8.mending import carry_out
from qvlfp8.quantization import UnknownQuantization
from qvlfp8.structure import UnknownModel
from qvlfp8.untrusted import NotACheckpoint
from tests.unit.hostile import CASES, SECRET, link, outside, victim
from tests.unit.watching import watched

REFUSALS = (NotACheckpoint, UnknownModel, UnknownQuantization, QvlError)
"""What may come out of reading and mending a folder."""

_TOKENIZER = "tokenizer.json"
_FILES = (
    CONFIG,
    HF_QUANT_CONFIG,
    INDEX,
    WEIGHTS,
    _TOKENIZER,
    "preprocessor_config.json",
    "chat_template.jinja",
)
_SEPARATOR = b"\0--\0"


class Crash(AssertionError):
    """Something that no checkpoint may bring about."""


class Bench:
    """A folder in which one input after the other is laid out; made once, as making it takes the time."""

    def __init__(self) -> None:
        """Make the folder, a sound checkpoint, and a file beside it that nobody may open."""
        self._scratch = Path(tempfile.mkdtemp(prefix="qvlfp8-fuzz-"))
        self.folder = victim(self._scratch / "in")
        self._out = self._scratch / "out"
        self._sound = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.secret = outside(self.folder)

    def close(self) -> None:
        """Remove it all."""
        shutil.rmtree(self._scratch)

    def sound(self, name: str) -> bytes:
        """A file of the sound checkpoint; empty if it has none such."""
        return self._sound.get(name, b"")

    def try_files(self, files: Mapping[str, bytes], *, mend: bool = False) -> bool:
        """Read the sound checkpoint with these files in place of its own; says whether it was accepted.

        Raises:
            Crash: something came out that may not.
        """
        changed = [name for name, content in files.items() if self._put(name, content)]
        try:
            return self.look(mend=mend)
        finally:
            for name in changed:
                path = self.folder / name
                path.unlink(missing_ok=True)
                if name in self._sound:
                    path.write_bytes(self._sound[name])

    def look(self, *, mend: bool) -> bool:
        """Read the folder as it is, plan its repair and, if wanted, carry that out.

        Raises:
            Crash: something came out that may not.
        """
        before = self._listing()
        accepted = True
        with watched(self.folder, self._out) as seen:
            try:
                planned = repair.plan(checkpoint.read(self.folder))
                if mend:
                    carry_out(planned, self._out)
            except REFUSALS as refusal:
                accepted = False
                _check_words(str(refusal))
            except Exception as error:
                raise Crash(f"{type(error).__name__}: {error}") from error
        shutil.rmtree(self._out, ignore_errors=True)
        if seen:
            raise Crash(f"outside the folder, or run: {seen[:3]}")
        if self._listing() != before:
            raise Crash("a file was changed")
        return accepted

    def _put(self, name: str, content: bytes) -> bool:
        path = self.folder / name
        if content == self._sound.get(name):
            return False
        if content.startswith(b"->"):
            path.unlink(missing_ok=True)
            target = content[2:200].replace(b"\0", b"").decode("utf-8", "surrogateescape")
            path.symlink_to(target or "nowhere")
        else:
            path.write_bytes(content)
        return True

    def _listing(self) -> list[tuple[str, int, int]]:
        found = [*self._scratch.iterdir(), *self.folder.iterdir()]
        return sorted((str(p), p.lstat().st_size, p.lstat().st_mtime_ns) for p in found if p != self._out)


def _check_words(words: str) -> None:
    if len(words) > 1_500 or not all(c.isprintable() or c == "\n" for c in words):
        raise Crash(f"not fit for a terminal: {words[:200]!r}")
    if SECRET in words:
        raise Crash("a file outside the folder is quoted")


def _header(bench: Bench, data: bytes) -> bool:
    """The header's JSON, its length right, and the data of the sound file."""
    sound = bench.sound(WEIGHTS)
    body = sound[8 + int.from_bytes(sound[:8], "little") :]
    return bench.try_files({WEIGHTS: struct.pack("<Q", len(data)) + data + body})


def _weights(bench: Bench, data: bytes) -> bool:
    return bench.try_files({WEIGHTS: data})


def _index(bench: Bench, data: bytes) -> bool:
    return bench.try_files({INDEX: data})


def _config(bench: Bench, data: bytes) -> bool:
    return bench.try_files({CONFIG: data})


def _quantization(bench: Bench, data: bytes) -> bool:
    """In config.json, where vLLM looks first, and as hf_quant_config.json."""
    config = json.loads(bench.sound(CONFIG))
    del config["quantization_config"]
    begin = json.dumps(config)[:-1].encode()
    inline = bench.try_files({CONFIG: begin + b',"quantization_config":' + data + b"}"})
    alone = bench.try_files({CONFIG: begin + b"}", HF_QUANT_CONFIG: data})
    both = bench.try_files({HF_QUANT_CONFIG: data})
    return inline or alone or both


def _folder(bench: Bench, data: bytes) -> bool:
    """Any of the files, each after a separator and its number; ``->`` makes a link. It is mended, too."""
    files = {}
    for part in data.split(_SEPARATOR)[:8]:
        if part:
            files[_FILES[part[0] % len(_FILES)]] = part[1:]
    return bench.try_files(files, mend=True)


TARGETS: Mapping[str, Callable[[Bench, bytes], bool]] = MappingProxyType(
    {
        "header": _header,
        "weights": _weights,
        "index": _index,
        "config": _config,
        "quantization": _quantization,
        "folder": _folder,
    }
)
"""Each takes a bench and an input, and says whether the input was accepted."""


def seeds(target: str) -> list[bytes]:
    """Inputs to begin with: the sound files, and those of the hostile cases."""
    found: list[bytes] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folders = [victim(root / "sound")]
        for number, case in enumerate(case for case in CASES if not case.heavy):
            (root / str(number)).mkdir()
            folder = victim(root / str(number) / "in")
            case.make(folder)
            folders.append(folder)
        (root / "links").mkdir()
        link(_TOKENIZER, "config.json")(victim(root / "links" / "in"))
        for folder in folders:
            found += _seeds_of(target, {name: _content(folder / name) for name in _FILES})
    return sorted({seed for seed in found if seed and len(seed) <= 100_000})


def _content(file: Path) -> bytes:
    if file.is_symlink():
        return b"->" + str(file.readlink()).encode()
    if not file.is_file() or file.stat().st_size > 100_000:
        return b""
    return file.read_bytes()


def _seeds_of(target: str, files: Mapping[str, bytes]) -> list[bytes]:
    match target:
        case "header":
            weights = files[WEIGHTS]
            return [weights[8 : 8 + int.from_bytes(weights[:8], "little")]]
        case "weights":
            return [files[WEIGHTS]]
        case "index":
            return [files[INDEX], json.dumps({"weight_map": {"lm_head.weight": WEIGHTS}}).encode()]
        case "config":
            return [files[CONFIG]]
        case "quantization":
            return [files[HF_QUANT_CONFIG], *_inline(files[CONFIG])]
        case _:
            parts = [bytes([number]) + files[name] for number, name in enumerate(_FILES) if files[name]]
            return [_SEPARATOR.join(parts)]


def _inline(config: bytes) -> list[bytes]:
    try:
        return [json.dumps(json.loads(config)["quantization_config"]).encode()]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
