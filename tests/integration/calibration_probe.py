"""Read data sets, make batches and quantize with them, inside a quantize environment.

    python calibration_probe.py JOB.json RESULT.json

JOB: ``model`` (the reference model's folder), ``work`` (an empty folder), ``one`` and ``other`` (what a
worker is told of two data sets with the same captions and other pictures), ``spoilt`` and ``outside``
(of two that are damaged), ``text`` and ``image`` (recipes). RESULT: what each part found.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from qvlfp8 import checkpoint
from qvlfp8.worker import calibration, quantize
from qvlfp8.worker.calibration_pictures import Unusable, decode, read_picture
from qvlfp8.worker.calibration_tables import Asked, open_table
from qvlfp8.worker.protocol import Refused

Job = dict[str, Any]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def changed(asked: Asked, **fields: Any) -> Asked:
    return {**asked, **fields}  # type: ignore[typeddict-item]


def refusal(work: Callable[[], object]) -> str:
    """What it says when it is refused; empty if it is not."""
    try:
        work()
    except (Refused, Unusable) as error:
        return f"{getattr(error, 'kind', None) or getattr(error, 'reason', None)}: {error}"
    return ""


def images() -> list[Any]:
    from PIL import Image

    return [Image.new("RGB", (56 + 28 * n, 84), (40 * n, 90, 200 - 30 * n)) for n in range(4)]


def png(picture: Any) -> bytes:
    stream = BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def sources(job: Job) -> dict[str, Any]:
    """The same four rows in every form that there is: what is read of each."""
    import datasets

    root = Path(job["work"]) / "sources"
    root.mkdir()
    shown = images()
    texts = [f"caption {n}" for n in range(4)]
    for number, picture in enumerate(shown):
        (root / f"{number}.png").write_bytes(png(picture))
    rows = datasets.Dataset.from_dict(
        {"text": texts, "many": [[text, "another"] for text in texts], "n": list(range(4)),
         "image": [{"bytes": png(picture), "path": None} for picture in shown]}
    )  # fmt: skip
    typed = rows.cast_column("image", datasets.Image())
    typed.to_parquet(root / "typed.parquet")
    rows.to_parquet(root / "plain.parquet")
    typed.save_to_disk(str(root / "disk"))
    names = [f"{n}.png" for n in range(4)]
    lines = [json.dumps({"image": name, "text": text}) for name, text in zip(names, texts, strict=True)]
    (root / "rows.jsonl").write_text("\n".join(lines))
    (root / "rows.csv").write_text("image,text\n" + "\n".join(map(",".join, zip(names, texts, strict=True))))
    (root / "broken.jsonl").write_text('{"image": "0.png", "te')
    snapshot = Path(os.environ["HF_HUB_CACHE"]) / "datasets--org--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    blob = snapshot.parents[1] / "blobs" / "ff"
    blob.parent.mkdir()
    shutil.copy(root / "typed.parquet", blob)
    (snapshot / "train-0.parquet").symlink_to("../../blobs/ff")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)

    def of(name: str, reader: str | None = None, **fields: Any) -> Asked:
        return changed(
            job["one"],
            **{"kind": "data", "source": name, "name": name, "files": [str(root / name)], "reader": reader,
               "pictures": str(root), "columns": {"image": "image", "text": "text"}, **fields},
        )  # fmt: skip

    def read(asked: Asked) -> dict[str, Any]:
        table = open_table(asked, root / "cache")
        found = [table[number] for number in range(len(table))]
        cells = [(one.picture, table.pictures) for one in found]
        return {
            "texts": [one.text for one in found],
            "answers": [one.answer for one in found],
            "pictures": [sha(decode(read_picture(*cell)).tobytes()) for cell in cells if cell[0] is not None],
            "revision": table.revision,
        }

    hub = of("org/name", kind="hub", source="hub:org/name", files=[], pictures=None)
    good = {
        "parquet": of("typed.parquet", "parquet"),
        "parquet without a feature": of("plain.parquet", "parquet"),
        "jsonl": of("rows.jsonl", "json"),
        "csv": of("rows.csv", "csv"),
        "arrow": of("disk", "arrow", files=sorted(map(str, (root / "disk").glob("*.arrow")))),
        "hub": hub,
        "several texts": of("typed.parquet", "parquet", columns={"text": "many"}),
        "an answer": of("typed.parquet", "parquet", columns={"text": "many", "answer": "text"}),
    }
    bad = {
        "no column": of("rows.csv", "csv", columns={"text": "prompt"}),
        "no text": of("typed.parquet", "parquet", columns={"text": "n"}),
        "no picture": of("typed.parquet", "parquet", columns={"text": "text", "image": "n"}),
        "broken": of("broken.jsonl", "json"),
        "no hub": of("org/none", kind="hub", source="hub:org/none"),
        "no split": changed(hub, split="test"),
        "address": changed(hub, columns={"text": "text", "image": "text"}),
    }
    return {
        "shown": [sha(picture.tobytes()) for picture in shown],
        "good": {name: read(asked) for name, asked in good.items()},
        "bad": {name: refusal(lambda asked=asked: read(asked)) for name, asked in bad.items()},  # type: ignore[misc]
    }


def pictures(_job: Job) -> dict[str, Any]:
    """What becomes of files that are no ordinary picture."""
    from PIL import Image

    def saved(mode: str, form: str) -> bytes:
        stream = BytesIO()
        Image.new(mode, (60, 40)).save(stream, form)
        return stream.getvalue()

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def sized(width: int, height: int) -> bytes:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")

    good = {
        form: saved(mode, form)
        for mode, form in (("CMYK", "JPEG"), ("P", "GIF"), ("RGBA", "PNG"), ("L", "WEBP"), ("1", "TIFF"))
    }
    bad = {
        "truncated": png(images()[0])[:100],
        "text": b"not a picture",
        "empty": b"",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        "bomb": sized(50_000, 50_000),
        "large": sized(8001, 8000),
    }
    return {
        "good": {form: [decode(data).mode, decode(data).size] for form, data in good.items()},
        "bad": {name: refusal(lambda data=data: decode(data)) for name, data in bad.items()},  # type: ignore[misc]
    }


class _Model:
    """As much of a loaded model as batches need: where it is, and how it is called."""

    device = "cpu"

    def forward(self) -> None:
        """Take what transformers 4 takes."""


def batches(job: Job) -> dict[str, Any]:
    """Batches of data sets whose pictures differ in size, in several ways."""
    model, work = Path(job["model"]), Path(job["work"])
    jinja = (model / "chat_template.jinja").read_text()
    newer, older = work / "newer", work / "older"
    for folder in (newer, older):
        shutil.copytree(model, folder)
        (folder / "chat_template.jinja").unlink()
    (newer / "chat_template.jinja").write_text("{{- 'Be brief. ' }}" + jinja)
    (older / "chat_template.json").write_text(json.dumps({"chat_template": "{{- 'Be kind. ' }}" + jinja}))

    def made(folder: Path = model, **fields: Any) -> dict[str, Any]:
        return _made(job, folder, changed(job["one"], **fields))

    moved = work / "moved"
    shutil.copytree(Path(job["one"]["pictures"]), moved)
    at_moved = changed(job["one"], pictures=str(moved))
    prepared = calibration.prepare(model, job["image"]["calibration"], at_moved, work / "cache")
    shutil.rmtree(moved)
    return {
        "moved": refusal(lambda: list(prepared.batches(_Model()))),
        "one": made(batch_size=3),
        "same": made(batch_size=3),
        "seed": made(batch_size=3, seed=1),
        "single": made(),
        "text": made(columns={"answer": "caption"}, pictures=None),
        "cut": made(max_length=60),
        "newer": made(newer),
        "older": made(older),
        "spoilt": _made(job, model, job["spoilt"]),
        "too short": refusal(lambda: made(max_length=30)),
        "outside": refusal(lambda: _made(job, model, job["outside"])),
    }


def _made(job: Job, folder: Path, asked: Asked) -> dict[str, Any]:
    from transformers import AutoTokenizer

    recipe = "image" if "image" in asked["columns"] else "text"
    prepared = calibration.prepare(folder, job[recipe]["calibration"], asked, Path(job["work"]) / "cache")
    ready = prepared.batches(_Model())
    found = list(ready)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    return {
        "shapes": [list(batch["input_ids"].shape) for batch in found],
        "digests": [_digest(batch) for batch in found],
        "again": [_digest(batch) for batch in ready],
        "first": tokenizer.decode(found[0]["input_ids"][0]),
        "masked": sum(int((1 - batch["attention_mask"]).sum()) for batch in found),
        "placeholders": [int((batch["input_ids"] == pad).sum()) for batch in found],
        "sizes": [batch["image_grid_thw"].tolist() for batch in found if "image_grid_thw" in batch],
        "patches": [len(batch["pixel_values"]) for batch in found if "pixel_values" in batch],
        "measured": prepared.measured(ready),
    }


def _digest(batch: dict[str, Any]) -> str:
    return sha(b"".join(tensor.numpy().tobytes() for tensor in batch.values()))


def scales(job: Job) -> dict[str, Any]:
    """The tensors of four checkpoints by digest: two recipes, each on two data sets."""
    found = {}
    for recipe in ("text", "image"):
        for name in ("one", "other"):
            out = Path(job["work"]) / f"{recipe}-{name}"
            out.mkdir()
            asked = changed(job[name], batch_size=2)
            if recipe == "text":
                asked = changed(asked, columns={"answer": "caption"}, pictures=None)
            params = {"model": job["model"], "recipe": job[recipe], "seed": 0, "dataset": asked}
            measured = quantize.run(params, out)
            tensors = checkpoint.read(out / quantize.CHECKPOINT).tensors
            found[f"{recipe} {name}"] = {
                "tensors": {key: sha(checkpoint.read_bytes(tensor)) for key, tensor in tensors.items()},
                "calibration": measured["calibration"],
            }
    return found


def main(job: Job) -> dict[str, Any]:
    quantize.prepare([])
    return {part.__name__: part(job) for part in (sources, pictures, batches, scales)}


if __name__ == "__main__":
    asked_for, answer = map(Path, sys.argv[1:])
    answer.write_text(json.dumps(main(json.loads(asked_for.read_text()))))
