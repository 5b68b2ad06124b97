"""What each kind of data set yields, read by ``datasets``: texts, and pictures as they lie there.

Nothing of a data set is code here: no loading script is run, and no address in it is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from qvlfp8.worker.calibration_pictures import UNUSABLE, Cell
from qvlfp8.worker.protocol import Refused

Kind = Literal["coco", "hub", "data", "folder"]
Reader = Literal["parquet", "json", "csv", "arrow"]
Role = Literal["image", "text", "answer"]

DESCRIBE = "Describe the picture."
"""What is asked about a picture that comes with a caption alone."""


class Asked(TypedDict):
    """A data set as a worker is told of it: names resolved, paths absolute.

    ``columns`` has the roles that are used: ``image`` exactly if pictures are shown. ``pictures`` is the
    folder in which every picture must lie that a row names; of the hub it is the downloaded copy.
    """

    kind: Kind
    source: str
    name: str
    config: str | None
    revision: str | None
    split: str
    files: list[str]
    reader: Reader | None
    pictures: str | None
    columns: dict[Role, str]
    samples: int
    seed: int
    batch_size: int
    max_length: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row: what the user says, the answer, and a picture; empty or None where the row has none."""

    text: str
    answer: str
    picture: Cell | None


class Table:
    """The rows of a data set by number."""

    def __init__(self, asked: Asked, rows: Any, pictures: Path | None, revision: str | None) -> None:
        self.pictures = pictures
        self.revision = revision
        self._asked = asked
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Sample:
        row, columns = self._rows[number], self._asked["columns"]
        text, answer = (_text(row[columns[role]]) if role in columns else None for role in ("text", "answer"))
        if text is None:
            # A caption: the answer where its picture is shown, else all that there is.
            text, answer = (DESCRIBE, answer) if "image" in columns and answer else (answer, None)
        elif answer == "":
            text = ""
        return Sample(
            text=text or "",
            answer=answer or "",
            picture=row[columns["image"]] if "image" in columns else None,
        )


class _Captions(Sequence[Mapping[str, Any]]):
    """COCO's captions, each with the file name of its picture, which stands in another list of the file."""

    def __init__(self, captions: Any, images: Any | None) -> None:
        self._captions = captions
        self._names = None
        if images is not None:
            self._names = dict(zip(images["id"], images["file_name"], strict=True))

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, number: Any) -> Any:
        row = self._captions[number]
        return row if self._names is None else {**row, "file_name": self._names.get(row["image_id"])}


def open_table(asked: Asked, cache: Path) -> Table:
    """Open a data set; ``cache`` is a folder for what ``datasets`` makes of it.

    Raises:
        Refused: :data:`UNUSABLE`, it cannot be had or read, or lacks a column; the message has the mend.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        match asked["kind"]:
            case "coco":
                return _coco(asked, cache)
            case "hub":
                return _hub(asked, cache)
            case "data" | "folder":
                rows = _read(asked, cache)
                return Table(asked, _typed(asked, rows), _pictures(asked), None)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        # What `datasets` raises says little; its cause says what is wrong with which file.
        cause = error.__cause__ or error
        raise Refused(
            UNUSABLE,
            f"{asked['source']}: cannot be read: {type(cause).__name__}: {str(cause)[:500]}; "
            "mend the file, or name another (--dataset)",
        ) from error


def _pictures(asked: Asked) -> Path | None:
    return Path(asked["pictures"]) if asked["pictures"] else None


def _read(asked: Asked, cache: Path, **options: Any) -> Any:
    import datasets

    return datasets.load_dataset(
        asked["reader"], data_files=asked["files"], split="train", cache_dir=str(cache), **options
    )


def _coco(asked: Asked, cache: Path) -> Table:
    captions = _read(asked, cache, field="annotations")
    _must_have(asked, captions, ("image_id", "caption"))
    images = None
    if "image" in asked["columns"]:
        images = _read(asked, cache, field="images")
        _must_have(asked, images, ("id", "file_name"))
        images = images.select_columns(["id", "file_name"])
    captions = captions.select_columns(["image_id", "caption"])
    return Table(asked, _Captions(captions, images), _pictures(asked), None)


def _hub(asked: Asked, cache: Path) -> Table:
    import datasets
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                asked["name"], repo_type="dataset", revision=asked["revision"], ignore_patterns=["*.py"]
            )
        )
    except (OSError, ValueError) as error:
        raise Refused(
            UNUSABLE,
            f"{asked['source']}: not to be had from the hub: {error}; check the name, or "
            f"`hf download --repo-type dataset {asked['name']}` where there is a network",
        ) from error
    rows = datasets.load_dataset(
        str(folder), name=asked["config"], split=asked["split"], cache_dir=str(cache)
    )
    return Table(asked, _typed(asked, rows), folder, folder.name)


def _must_have(asked: Asked, rows: Any, columns: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in rows.column_names]:
        option = "" if asked["kind"] == "coco" else "; name others (--columns image=…,text=…,answer=…)"
        raise Refused(
            UNUSABLE,
            f"{asked['source']}: no column {' and no column '.join(missing)}; "
            f"it has {', '.join(rows.column_names)}{option}",
        )


def _typed(asked: Asked, rows: Any) -> Any:
    """The columns that are used, pictures not decoded; refused if one cannot be what it should be."""
    import datasets

    columns = asked["columns"]
    _must_have(asked, rows, tuple(columns.values()))
    rows = rows.select_columns(list(dict.fromkeys(columns.values())))
    for role, column in columns.items():
        feature = rows.features[column]
        if role == "image":
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
            elif not _may_be_pictures(feature, asked):
                _refuse_column(asked, role, column, feature, "pictures, or names of files")
        elif not _is_text(getattr(feature, "feature", feature)):
            _refuse_column(asked, role, column, feature, "text")
    return rows


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in {"string", "large_string"}


def _may_be_pictures(feature: Any, asked: Asked) -> bool:
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    # A name of the hub would be an address; nothing is fetched.
    return getattr(feature, "dtype", None) == "binary" or (_is_text(feature) and asked["kind"] != "hub")


def _refuse_column(asked: Asked, role: Role, column: str, feature: Any, wanted: str) -> None:
    raise Refused(
        UNUSABLE,
        f"{asked['source']}: column {column} holds {feature}, not {wanted}; "
        f"name one that does (--columns {role}=…)",
    )


def _text(value: object) -> str:
    """A text, or the first of several."""
    if isinstance(value, list):
        value = next(iter(value), None)
    return value.strip() if isinstance(value, str) else ""
