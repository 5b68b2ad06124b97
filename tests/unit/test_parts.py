"""Parts of cells: whole checkpoints, each in one part, about as many in each."""

from __future__ import annotations

import pytest

from qvlfp8.parts import parts
from qvlfp8.project import Project
from tests.unit.test_site import ROOT


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_checkpoint_is_whole_and_in_one_part(count: int) -> None:
    cells = Project.open(ROOT / "matrix.yaml").matrix.cells
    found = parts(cells, count)
    assert len(found) == count
    assert sorted(cell.id for part in found for cell in part) == sorted(cell.id for cell in cells)
    names = [{cell.checkpoint for cell in part} for part in found]
    assert sum(map(len, names)) == len(set().union(*names))
    assert max(map(len, names)) - min(map(len, names)) <= 1
    for part in found:
        # In the matrix's order.
        chosen = {cell.id for cell in part}
        assert part == tuple(cell for cell in cells if cell.id in chosen)


def test_there_are_no_more_parts_than_checkpoints() -> None:
    cells = Project.open(ROOT / "matrix.yaml").matrix.cells
    one = [cell for cell in cells if cell.checkpoint == cells[0].checkpoint]
    assert parts(one, 4) == (tuple(one),)
