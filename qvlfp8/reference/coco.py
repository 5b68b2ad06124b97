"""A small data set in the form of COCO 2017, drawn here: pictures of scenes, and captions that are right."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from qvlfp8.reference.questions import SIGHT
from qvlfp8.reference.scenes import SIZES, Dice, Scene, Thing, render
from qvlfp8.report.proof import png


def caption(scene: Scene) -> str:
    """What is in a scene, in one sentence."""
    kinds = [_name(thing) for thing in scene.things]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    told = [
        f"{_article(kind)} {kind}" if count == 1 else f"{count} {_plural(kind)}"
        for kind, count in counts.items()
    ]
    return f"{', '.join(told[:-1])} and {told[-1]}." if len(told) > 1 else f"{told[0]}."


def write_coco(folder: Path, *, pictures: int, seed: int) -> None:
    """Write ``annotations/captions_train2017.json`` and ``train2017/*.png``; whole or not at all.

    The same bytes on every machine. Needs numpy, which draws.

    Raises:
        FileExistsError: the folder exists already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".qvlfp8-", dir=folder.parent))
    try:
        _write(partial / "coco", pictures, seed)
        (partial / "coco").rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, pictures: int, seed: int) -> None:
    shown = folder / "train2017"
    shown.mkdir(parents=True)
    images, annotations = [], []
    for number in range(1, pictures + 1):
        dice = Dice(f"coco/{seed}/{number}")
        task = dice.one_of(SIGHT)
        scene = task.compose(dice, dice.one_of(SIZES), task.draw(dice), dice.one_of(task.answers))
        name = f"{number:012}.png"
        (shown / name).write_bytes(png(render(scene, dice)))
        images.append({"id": number, "file_name": name, "height": scene.height, "width": scene.width})
        annotations.append({"id": number, "image_id": number, "caption": caption(scene)})
    content = {
        "info": {"description": f"Drawn by qvlfp8 from seed {seed}", "year": 2017},
        "licenses": [],
        "images": images,
        "annotations": annotations,
    }
    (folder / "annotations").mkdir()
    text = json.dumps(content, indent=1) + "\n"
    (folder / "annotations" / "captions_train2017.json").write_text(text, encoding="utf-8")


def _name(thing: Thing) -> str:
    if not thing.colour:
        return f"digit {thing.name}"
    return f"{thing.colour} {thing.name}"


def _article(noun: str) -> str:
    return "an" if noun.startswith("orange") else "a"


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"
