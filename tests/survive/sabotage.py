"""Faults that can be put into the copy, to see that the session finds them: file -> (text, what replaces it)."""

from __future__ import annotations

from collections.abc import Mapping

BY_NAME: Mapping[str, Mapping[str, tuple[str, str]]] = {
    # The record is in its place before what it speaks of.
    "record-first": {
        "store.py": (
            "            made.rename(target)\n",
            "            target.mkdir()\n"
            "            (made / RECORD).rename(target / RECORD)\n"
            "            import time; time.sleep(0.05)\n"
            "            for path in made.iterdir():\n"
            "                path.rename(target / path.name)\n"
            "            made.rmdir()\n",
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
