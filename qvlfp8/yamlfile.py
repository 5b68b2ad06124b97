"""YAML files -> validated frozen models, with errors that name file, line, field and mend.

PyYAML's composer gives every node's line; pydantic gives every error's path; this module joins the two.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from qvlfp8.errors import FileFormatError

Location = tuple[int | str, ...]
"""Where in a document: mapping keys and list indexes from the root."""

Model = TypeVar("Model", bound=BaseModel)

# The C parser is ten times faster; PyYAML builds without libyaml have only the other one.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


_BOM = "\ufeff"


class Strict(BaseModel):
    """Base of everything that is read from a file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=False,
        # A tenth of a second of every start: most commands read few of the files.
        defer_build=True,
    )


class Document:
    """A parsed YAML file: its ``text``, its plain ``data``, and where in it each location is."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.text = text
        self._lines: dict[Location, int] = {}
        self._spans: dict[Location, tuple[int, int]] = {}
        self._keys: dict[Location, int] = {}
        # Editors on Windows write a byte order mark: parsers disagree on whether it counts as a character.
        plain = text.removeprefix(_BOM)
        self._before = len(text) - len(plain)
        loader = _Loader(plain)
        try:
            node = loader.get_single_node()
            if node is None:
                raise self.error((), "the file is empty", mend="fill it in, or delete it")
            self._walk(node, ())
            self.data: object = loader.construct_document(node)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark else 1
            raise FileFormatError(
                f"{path}:{line}: not valid YAML: {getattr(error, 'problem', None) or error}",
                mend="check indentation, quotes and brackets around that line",
            ) from None
        finally:
            loader.dispose()

    @classmethod
    def read(cls, path: Path) -> Document:
        """Parse a file.

        Raises:
            FileFormatError: it is missing, unreadable, not UTF-8 or not YAML, or repeats a key.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise FileFormatError(
                f"{path}: no such file", mend="run in the project's folder, or name the file"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise FileFormatError(f"{path}: cannot be read: {error}") from None
        return cls(path, text)

    def _walk(self, node: yaml.Node, location: Location) -> int:
        """Note where a node and what is in it stand; returns where its own text ends."""
        start, end = self._place(node.start_mark), self._place(node.end_mark)
        self._lines.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                here = (*location, str(key.value))
                self._lines[here] = key.start_mark.line + 1
                self._keys[here] = self._place(key.end_mark)
                if key.value in seen:
                    raise self.error(here, "the key stands twice", mend="keep one of the two")
                seen.add(key.value)
                last = self._walk(value, here)
                end = end if node.flow_style else last
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                last = self._walk(value, (*location, index))
                end = end if node.flow_style else last
        # What ends with a line, such as a folded text, ends where its last word does.
        end = start + len(self.text[start:end].rstrip())
        self._spans[location] = (start, end)
        return end

    def _place(self, mark: yaml.Mark) -> int:
        return mark.index + self._before

    def span(self, location: Location) -> tuple[int, int]:
        """Where in ``text`` a value starts and ends, in characters.

        Raises:
            KeyError: the file has no such location.
        """
        return self._spans[location]

    def behind_key(self, location: Location) -> int:
        """Where in ``text`` the colon behind a key has just ended.

        Raises:
            KeyError: the file has no such key.
        """
        return self.text.index(":", self._keys[location]) + 1

    def line(self, location: Iterable[int | str]) -> int:
        """The line (1-based) of a location, or of its nearest parent that the file has."""
        parts = tuple(location)
        while parts not in self._lines and parts:
            parts = parts[:-1]
        return self._lines.get(parts, 1)

    def error(
        self, location: Iterable[int | str], problem: str, *, mend: str | None = None
    ) -> FileFormatError:
        """An error at a location of this file, ready to raise."""
        parts = tuple(location)
        field = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).lstrip(".")
        where = f"{self.path}:{self.line(parts)}"
        return FileFormatError(f"{where}: {field}: {problem}" if field else f"{where}: {problem}", mend=mend)

    def parse(self, model: type[Model]) -> Model:
        """Validate the whole document.

        Raises:
            FileFormatError: naming the line, field and mend of the first thing that is wrong.
        """
        try:
            return model.model_validate(self.data)
        except ValidationError as invalid:
            # A misspelt key is also a missing one: the misspelling is what helps.
            errors = invalid.errors(include_url=False)
            first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
            more = invalid.error_count() - 1
            location = tuple(p for p in first["loc"] if not _is_union_tag(p))
            problem = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                problem = "unknown key"
            if more:
                problem += f" (and {more} more)"
            raise self.error(location, problem, mend=_mend(first["type"], location, model)) from None


def _is_union_tag(part: int | str) -> bool:
    """Pydantic adds the tried member of a union to an error's path; no key of ours looks like it."""
    return isinstance(part, str) and (part == "str" or part.startswith("tuple["))


def _mend(kind: str, location: Location, model: type[BaseModel]) -> str | None:
    if kind == "string_type":
        return "put the value in quotes"
    if kind == "tuple_type":
        return "write a list: [a, b]"
    if kind == "missing":
        return f"add the key {location[-1]!r}"
    if kind == "extra_forbidden":
        known = sorted(_known_keys(model))
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        return f"did you mean {close[0]!r}?" if close else "remove it; the schema lists the known keys"
    return None


def _known_keys(model: type[BaseModel]) -> set[str]:
    schema = model.model_json_schema()
    objects = [schema, *schema.get("$defs", {}).values()]
    return {key for item in objects for key in item.get("properties", {})}
