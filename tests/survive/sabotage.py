"""Faults to put into the copy, to see that the session finds them: file -> (text, what replaces it)."""

from __future__ import annotations

from collections.abc import Mapping

BY_NAME: Mapping[str, Mapping[str, tuple[str, str]]] = {
    # The record is in its place before what it speaks of.
    "record-first": {
        "store.py": (
            "                made.rename(target)\n",
            """                target.mkdir()
                (made / RECORD).rename(target / RECORD)
                time.sleep(0.05)
                for path in made.iterdir():
                    path.rename(target / path.name)
                made.rmdir()
""",
        )
    },
    # The sweep takes finished work with it.
    "sweeps-too-much": {
        "store.py": (
            "shutil.rmtree(self.tmp, ignore_errors=True)",
            'shutil.rmtree(self.root / "steps" / "preflight", ignore_errors=True)',
        )
    },
    # What is finished is not remembered.
    "forgets": {"run.py": ("again=self._again,", "again=True,")},
}
