"""Pictures of a data set: untrusted files, opened within bounds or not at all."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from qvlfp8.untrusted import NotACheckpoint, is_inside, open_regular, printable

if TYPE_CHECKING:
    from PIL.Image import Image

UNUSABLE = "dataset-unusable"
"""The kind of a refusal that speaks of the data set."""

MAX_BYTES = 64_000_000
"""Largest file; COCO's are below 1 MB."""

MAX_PIXELS = 64_000_000
"""Largest picture; decoded, it takes 192 MB. Cameras have 12 to 50 million."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that Pillow decodes by itself: no other program is started for any of them."""


class Stored(TypedDict):
    """A picture as ``datasets`` stores it: its bytes, or the path of a file."""

    bytes: bytes | None
    path: str | None


Cell = str | bytes | Stored
"""A picture in a table: the name of a file, its bytes, or either."""


class Unusable(Exception):
    """A sample that is left out and counted: ``reason`` is what is counted, the message says which."""

    def __init__(self, reason: str, which: str) -> None:
        super().__init__(printable(which))
        self.reason = reason


class Outside(Exception):
    """A row that names a file outside the folder of pictures: no data set that was made well has one."""


def read_picture(cell: Cell | None, root: Path | None) -> bytes:
    """Read a picture's file.

    Raises:
        Unusable: there is none, or it is too large.
        Outside: the row names a file outside ``root``, also by a link.
    """
    data, name = _parts(cell)
    if data is None:
        if not name or root is None:
            raise Unusable("no picture", name or "an empty cell")
        data = _read_file(name, root)
    if len(data) > MAX_BYTES:
        raise Unusable("picture too large", f"{name or 'a cell'} has more than {MAX_BYTES} bytes")
    return data


def _parts(cell: Cell | None) -> tuple[bytes | None, str | None]:
    match cell:
        case None:
            return None, None
        case str():
            return None, cell
        case bytes():
            return cell, None
        case _:
            return cell["bytes"], cell["path"]


def _read_file(name: str, root: Path) -> bytes:
    try:
        file = Path(os.path.normpath(root / name))
        inside = file.is_relative_to(root) and is_inside(file, root)
    except (OSError, ValueError):  # a name that no file system takes
        raise Unusable("no picture", name) from None
    if not inside:
        raise Outside(f"{printable(name)} is not in {root}")
    try:
        with open_regular(file, root) as stream:
            return stream.read(MAX_BYTES + 1)
    except (NotACheckpoint, OSError, ValueError):
        raise Unusable("no picture", name) from None


def decode(data: bytes) -> Image:
    """Decode a picture to RGB.

    Raises:
        Unusable: it is broken, of another format, or too large.
    """
    from PIL import Image as Images

    try:
        with Images.open(BytesIO(data), formats=FORMATS) as image:
            _refuse_large(image)
            return image.convert("RGB")
    except (Unusable, MemoryError):
        raise
    except Images.DecompressionBombError:
        raise Unusable("picture too large", "far more pixels than are read") from None
    except Exception as error:  # a decoder may raise anything at broken data
        raise Unusable("broken picture", str(error)) from error


def _refuse_large(image: Image) -> None:
    """Before it is decoded, which is what costs."""
    if image.width * image.height > MAX_PIXELS:
        raise Unusable("picture too large", f"{image.width} x {image.height} pixels")
