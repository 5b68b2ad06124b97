"""Names of tensors or modules in few lines: those that differ in the number of a layer become one.

``model.layers.0.x`` to ``model.layers.27.x`` read as ``model.layers.{0-27}.x``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LAYER = re.compile(r"\b(layers|blocks|deepstack_merger_list)\.(\d{1,9})(?=\.|$)")


def collapse(names: Iterable[str]) -> list[str]:
    """Give one name for all that differ in one layer number only, in the order of their first occurrence."""
    groups: dict[tuple[str, str], list[int]] = {}
    for name in names:
        found = _LAYER.search(name)
        # A name without a number is a group of its own.
        key = (name[: found.start(2)], name[found.end(2) :]) if found else (name, "\0")
        groups.setdefault(key, []).extend([int(found[2])] if found else [])
    return [
        prefix if suffix == "\0" else f"{prefix}{_written(numbers)}{suffix}"
        for (prefix, suffix), numbers in groups.items()
    ]


def _written(numbers: list[int]) -> str:
    """``3`` alone; ``{0-5,7}`` for several."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    text = ",".join("-".join(map(str, run)) for run in runs)
    return text if len(runs) == 1 and len(runs[0]) == 1 else f"{{{text}}}"
