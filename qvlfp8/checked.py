"""The document of the checker's page: what ``qvlfp8 explain`` says of files, and what to add to them.

The page runs this module in the browser, so all that it imports is the standard library and ``packaging``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qvlfp8 import explained, untrusted
from qvlfp8.checkpoint import CONFIG, INDEX, NotACheckpoint
from qvlfp8.errors import QvlError
from qvlfp8.explain import Explanation
from qvlfp8.report.explanation import sections
from qvlfp8.tensorfile import MAX_HEADER_BYTES, MAX_HEADER_VALUES
from qvlfp8.untrusted import Allowance, harmless, printable

__all__ = ["check", "missing"]

WANTING = "No answer yet: a file has to be added."

_NAMED = 5
"""Most file names in a sentence."""


def check(source: str, vllm: str | None = None) -> dict[str, Any]:
    """Explain a folder as the command does, and give its answer whatever it is.

    Args:
        source: the folder, named as the user does.
        vllm: a version specifier, or None for all that are recorded.

    Returns:
        ``code``: the command's exit code. ``explained``: what ``--json`` prints, or None. ``summary``: the
        answer in a sentence. ``sections``: what the command prints. ``error``: ``problem`` and ``mend``, or
        None. ``notes``: what to add, for an answer or for a fuller one. ``wanting``: whether there is no
        answer for want of a file alone, so that the notes say all that the error says.
    """
    found, error = _explained(source, vllm)
    if found is None:
        code = error.exit_code if error is not None else explained.NOT
    else:
        error = explained.refusal(found, source)
        code = error.exit_code if error is not None else explained.WORKS if found.works else explained.NOT
    wanting = found is None and error is not None and _is_of_an_absent_file(error, source)
    return {
        "source": source,
        "code": code,
        "explained": None if found is None else explained.as_json(found),
        "wanting": wanting,
        "summary": WANTING if wanting else harmless(_summary(found, error, source)),
        "sections": [] if found is None else [_shown(asdict(section)) for section in sections(found)],
        "error": None
        if error is None
        else {"problem": harmless(error.problem), "mend": harmless(error.mend or "")},
        "notes": [harmless(note) for note in missing(Path(source), found)],
    }


def _is_of_an_absent_file(error: QvlError, source: str) -> bool:
    if error.problem == f"{source}: there is no *.safetensors file":
        return True
    within, _, rest = error.problem.partition(f"{source}/")
    name, cannot, _ = rest.partition(": cannot be read (")
    return not within and bool(cannot) and not Path(source, name).exists()


def _explained(source: str, vllm: str | None) -> tuple[Explanation | None, QvlError | None]:
    try:
        described = explained.of_folder(Path(source))
        return explained.ask(described, source=source, vllm=vllm, values=True), None
    except QvlError as error:
        return None, error


def _summary(found: Explanation | None, error: QvlError | None, source: str) -> str:
    if found is None:
        return f"No answer: {error.problem if error is not None else source}"
    if error is not None:
        return error.problem
    working = sum(verdict.worth == "works" for verdict in found.verdicts)
    faults = ", and something is wrong with it in itself" if found.faults else ""
    return f"{source} works in {working} of {len(found.verdicts)} vLLM versions{faults}"


def _shown(section: dict[str, Any]) -> dict[str, Any]:
    lines = [{**line, "text": harmless(line["text"])} for line in section["lines"]]
    return {**section, "lines": lines}


def missing(folder: Path, found: Explanation | None) -> Iterator[str]:
    """Say which files are not there, and what each would tell; nothing of a folder that has them all."""
    names = {path.name for path in folder.iterdir()}
    if CONFIG not in names:
        yield f"Add {CONFIG}: nothing is known of a model without it."
    if INDEX in names:
        yield from _missing_shards(folder, names)
    elif not any(name.endswith(".safetensors") for name in names):
        yield (
            f"Add the .safetensors file, or {INDEX} and every file that it names: only headers and scales are"
            " read of them. Configurations say what was meant, and nothing of what was stored."
        )
    if found is not None and (companions := found.described.description.missing_files):
        yield (
            f"Not among these files: {_some(companions)}. The answer takes them for missing; if the folder"
            " has them, give the whole folder."
        )


def _missing_shards(folder: Path, names: Collection[str]) -> Iterator[str]:
    bound = Allowance(nbytes=MAX_HEADER_BYTES, values=MAX_HEADER_VALUES // 4)
    try:
        held = untrusted.read_object(folder / INDEX, bound, "copy the file again", folder).get("weight_map")
    except NotACheckpoint:
        return
    shards = {name for name in held.values() if isinstance(name, str)} if isinstance(held, dict) else set()
    if absent := sorted(shards.difference(names)):
        yield (
            f"Add {_some(absent)}, of the {len(shards)} files that {INDEX} names: only headers and scales are"
            f" read. The index has the names of {len(held or ())} tensors, and neither types nor shapes."
        )


def _some(names: Collection[str]) -> str:
    said = ", ".join(printable(name, most=80) for name in list(names)[:_NAMED])
    return said if len(names) <= _NAMED else f"{said} and {len(names) - _NAMED} more"
