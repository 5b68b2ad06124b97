"""``qvlfp8 publish``."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from qvlfp8.project import Project
from qvlfp8.site.outcome import OUTCOMES, WORDS
from qvlfp8.site.publishing import publish
from qvlfp8.untrusted import collection_paused


@collection_paused()
def run_publish(matrix: Path, store: Path | None, results: Path | None, out: Path, *, base: str) -> None:
    """Write the site, and say what is in it.

    Raises:
        QvlError: as :func:`qvlfp8.site.publishing.publish`.
    """
    made = publish(Project.open(matrix, store, results), out, base=base)
    cells = made.site.cells
    outcomes = Counter(cell.outcome for cell in cells)
    told = ", ".join(f"{outcomes[one]} {WORDS[one]}" for one in OUTCOMES if outcomes[one])
    print(f"{out / 'index.html'}: {len(cells)} cells ({told}); {made.files} files, {made.size / 1e6:.1f} MB")
    if made.without is not None:
        print(made.without, file=sys.stderr)
