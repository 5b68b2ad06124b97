"""A data set of the user's to calibrate on: what ``--dataset`` and its companions ask for, checked.

Names and files are resolved here, before anything is built or run; what is in the files is for the
worker to read (:mod:`qvlfp8.worker.calibration_tables`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qvlfp8.errors import UsageError
from qvlfp8.hub import downloaded_dataset
from qvlfp8.recipe import Recipe
from qvlfp8.worker.calibration_tables import Asked, Kind, Reader, Role

DEFAULT_BATCH = 1
DEFAULT_LENGTH = 2048
"""Tokens: a COCO photograph has some 400 in the published models, and its caption a dozen."""

FORMS = "coco:FOLDER, hub:ORG/NAME[/CONFIG][@REVISION], data:PATH or folder:FOLDER"

READERS: Mapping[str, Reader] = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".arrow": "arrow",
}
"""Endings of the files that ``data:`` reads, and the reader of ``datasets`` for each."""

_ROLES: tuple[Role, ...] = ("image", "text", "answer")
_PART = r"[A-Za-z0-9][\w.-]*"
_HUB = re.compile(rf"^(?P<id>{_PART}/{_PART})(/(?P<config>{_PART}))?(@(?P<revision>[\w./-]+))?$")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line's options as they were typed; None for what was not."""

    dataset: str | None = None
    columns: str | None = None
    split: str | None = None
    samples: int | None = None
    seed: int | None = None
    batch_size: int | None = None
    max_length: int | None = None


NONE = Options()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What is asked of the worker, and the folders and files of this machine that it reads."""

    asked: Asked
    reads: tuple[Path, ...]

    @property
    def hub_id(self) -> str | None:
        """Its name on the hub, if it comes from there."""
        return self.asked["name"] if self.asked["kind"] == "hub" else None

    def inputs(self, found: Mapping[str, object]) -> dict[str, object]:
        """What a record says was asked for, and ``found``: digest and revision of what the worker read."""
        said = {k: v for k, v in self.asked.items() if k not in {"files", "reader", "pictures"}}
        return {**said, "revision": found["revision"], "digest": found["digest"]}

    def options(self) -> str:
        """The options that ask for the same again."""
        asked = self.asked
        words = ["--dataset", asked["source"], "--split", asked["split"]]
        if asked["kind"] != "coco":
            words += ["--columns", ",".join(f"{role}={name}" for role, name in asked["columns"].items())]
        words += ["--samples", str(asked["samples"]), "--seed", str(asked["seed"])]
        words += ["--batch-size", str(asked["batch_size"]), "--max-length", str(asked["max_length"])]
        return shlex.join(words)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the data are: ``pictures`` is the folder in which every picture must lie that a row names."""

    name: str
    files: tuple[Path, ...] = ()
    reader: Reader | None = None
    pictures: Path | None = None
    config: str | None = None
    revision: str | None = None
    reads: tuple[Path, ...] = ()


def parse(options: Options, recipe: Recipe) -> Dataset | None:
    """Resolve the options; None if no data set is named.

    Raises:
        UsageError: an option is malformed, names nothing, or does not fit the recipe.
    """
    if options.dataset is None:
        _refuse_companions(options)
        return None
    calibration = recipe.calibration
    if calibration.modality not in {"text", "image+text"}:
        raise UsageError(
            f"--dataset: recipe {recipe.id} calibrates on nothing",
            mend="leave --dataset out, or take a recipe that calibrates",
        )
    shows = calibration.modality == "image+text"
    kind, rest = _kind(options.dataset)
    split = options.split or "train"
    place = _place(kind, rest, split, shows=shows)
    columns = _columns(kind, options.columns, shows=shows)
    asked = Asked(
        kind=kind,
        source=f"{kind}:{place.name}" if kind != "hub" else f"hub:{rest}",
        name=place.name,
        config=place.config,
        revision=place.revision,
        split=split,
        files=[str(file) for file in place.files],
        reader=place.reader,
        pictures=str(place.pictures) if place.pictures else None,
        columns=columns,
        samples=_number("--samples", options.samples, calibration.samples),
        seed=_number("--seed", options.seed, calibration.seed, least=0),
        batch_size=_number("--batch-size", options.batch_size, DEFAULT_BATCH),
        max_length=_number("--max-length", options.max_length, DEFAULT_LENGTH),
    )
    return Dataset(asked=asked, reads=place.reads)


def _number(option: str, given: int | None, default: int, *, least: int = 1) -> int:
    value = default if given is None else given
    if value < least:
        raise UsageError(f"{option} {value}: too small", mend=f"give {least} or more")
    return value


def _refuse_companions(options: Options) -> None:
    for name in ("columns", "split", "samples", "seed", "batch_size", "max_length"):
        if getattr(options, name) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} is for a data set of yours, and --dataset names none",
                mend=f"add --dataset ({FORMS}), or leave it out",
            )


def _kind(dataset: str) -> tuple[Kind, str]:
    kind, colon, rest = dataset.partition(":")
    if not colon or not rest:
        raise UsageError(f"--dataset {dataset}: not a source", mend=f"write {FORMS}")
    match kind:
        case "coco" | "hub" | "data" | "folder":
            return kind, rest
    raise UsageError(f"--dataset {dataset}: no source {kind!r}", mend=f"write {FORMS}")


def _columns(kind: Kind, text: str | None, *, shows: bool) -> dict[Role, str]:
    """Role -> column, of the roles that are used."""
    defaults: dict[Kind, dict[Role, str]] = {
        "coco": {"image": "file_name", "answer": "caption"},
        "folder": {"image": "file_name", "text": "prompt"},
        "hub": {"image": "image", "text": "text"},
        "data": {"image": "image", "text": "text"},
    }
    if kind == "coco" and text is not None:
        raise UsageError("--columns: coco's columns are known", mend="leave it out")
    columns = defaults[kind] if text is None else _mapping(text)
    if "text" not in columns and "answer" not in columns:
        raise UsageError(f"--columns {text}: no column of text", mend="add text=COLUMN, or answer=COLUMN")
    if shows and "image" not in columns:
        raise UsageError(
            f"--columns {text}: no column of pictures, and the recipe calibrates on pictures and text",
            mend="add image=COLUMN, or take a recipe that calibrates on text",
        )
    return {role: columns[role] for role in _ROLES if role in columns and (shows or role != "image")}


def _mapping(text: str) -> dict[Role, str]:
    columns: dict[Role, str] = {}
    for pair in text.split(","):
        name, equals, column = (part.strip() for part in pair.partition("="))
        role = next((role for role in _ROLES if role == name), None)
        if role is None or not equals or not column:
            raise UsageError(
                f"--columns {text}: {pair.strip()!r} is no mapping",
                mend="write image=COLUMN,text=COLUMN,answer=COLUMN, of which text or answer is needed",
            )
        if role in columns:
            raise UsageError(f"--columns {text}: {role} is mapped twice", mend="name one column")
        columns[role] = column
    return columns


def _place(kind: Kind, rest: str, split: str, *, shows: bool) -> _Place:
    match kind:
        case "coco":
            return _coco(_existing(kind, rest, folder=True), split, shows=shows)
        case "folder":
            return _folder(_existing(kind, rest, folder=True), shows=shows)
        case "data":
            return _data(_existing(kind, rest), split, shows=shows)
        case "hub":
            return _hub(rest)


def _existing(kind: Kind, rest: str, *, folder: bool = False) -> Path:
    path = Path(rest).expanduser()
    try:
        there = path.is_dir() if folder else path.exists()
        resolved = path.resolve()
    except (OSError, ValueError) as error:
        raise UsageError(f"--dataset {kind}:{rest}: not a usable path: {error}") from None
    if not there:
        what = "folder" if folder else "file or folder"
        raise UsageError(f"--dataset {kind}:{rest}: no such {what}", mend=f"name a {what} that exists")
    return resolved


def _coco(path: Path, split: str, *, shows: bool) -> _Place:
    captions = path / "annotations" / f"captions_{split}2017.json"
    if not captions.is_file():
        raise UsageError(
            f"--dataset coco:{path}: no annotations/{captions.name} in it",
            mend="unpack COCO's annotations_trainval2017.zip there, or name another --split (train, val)",
        )
    pictures = path / f"{split}2017"
    if shows and not pictures.is_dir():
        raise UsageError(
            f"--dataset coco:{path}: no folder {pictures.name} in it, and the recipe calibrates on pictures",
            mend=f"unpack COCO's {pictures.name}.zip there, or take a recipe that calibrates on text",
        )
    captions, pictures = captions.resolve(), pictures.resolve()
    return _Place(
        name=str(path),
        files=(captions,),
        reader="json",
        pictures=pictures if shows else None,
        reads=(captions, pictures) if shows else (captions,),
    )


def _folder(path: Path, *, shows: bool) -> _Place:
    tables = sorted(path.glob("*.jsonl"))
    table = path / "metadata.jsonl"
    if table not in tables and len(tables) != 1:
        found = f"{len(tables)} files *.jsonl" if tables else "no *.jsonl"
        raise UsageError(
            f"--dataset folder:{path}: {found} in it, and no metadata.jsonl",
            mend='name the list of prompts metadata.jsonl; each line: {"file_name": …, "prompt": …}',
        )
    table = (table if table in tables else tables[0]).resolve()
    return _Place(
        name=str(path),
        files=(table,),
        reader="json",
        pictures=path if shows else None,
        reads=(path, table) if shows else (table,),
    )


def _data(path: Path, split: str, *, shows: bool) -> _Place:
    if path.is_file():
        files = [path] if path.suffix in READERS else []
        root = path.parent
    else:
        root = path / split if (path / split).is_dir() else path
        files = [file for file in sorted(root.iterdir()) if file.is_file() and file.suffix in READERS]
        # What `Dataset.save_to_disk` writes beside its tables.
        files = [file for file in files if file.name not in {"dataset_info.json", "state.json"}]
    endings = {file.suffix for file in files}
    if len({READERS[ending] for ending in endings}) != 1:
        found = f"files of several kinds ({', '.join(sorted(endings))})" if endings else "no table"
        raise UsageError(
            f"--dataset data:{path}: {found}",
            mend=f"name one file, or a folder of files of one kind, of {', '.join(READERS)}",
        )
    tables = tuple(file.resolve() for file in files)
    return _Place(
        name=str(path),
        files=tables,
        reader=READERS[files[0].suffix],
        pictures=root if shows else None,
        reads=(root, *tables) if shows else tables,
    )


def _hub(rest: str) -> _Place:
    found = _HUB.match(rest)
    if found is None:
        raise UsageError(
            f"--dataset hub:{rest}: not a name on the hub", mend="write hub:ORG/NAME[/CONFIG][@REVISION]"
        )
    return _Place(
        name=found["id"],
        config=found["config"],
        revision=found["revision"],
        reads=(downloaded_dataset(found["id"]),),
    )
