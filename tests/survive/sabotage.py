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
    # For engine ray alone: in the shared store, a step's entry is there before the files that it names.
    "entry-first": {
        "cluster/shared.py": (
            """files=dict(self._copied(send, paths, nbytes)))
            self._write_whole(f"{place}/{ENTRY}", entry.model_dump_json().encode())
""",
            """files={
                f.relative_to(folder).as_posix(): SharedFile(size=f.stat().st_size, sha256=_sha256(f))
                for f in paths
            })
            self._write_whole(f"{place}/{ENTRY}", entry.model_dump_json().encode())
            time.sleep(0.1)
            self._copied(send, paths, nbytes)
""",
        )
    },
    # What a lost node had finished and not told of, for which it takes a while, is done again.
    "asks-nobody": {
        "cluster/place.py": ("(untold := self._finished.untold(step))", "(untold := None)"),
        "cluster/node.py": (
            "            self._shared.put(record.stage, record.digest, entry, record.made)\n",
            """            self._shared.put(record.stage, record.digest, entry, record.made)
            threading.Event().wait(1.0)
""",
        ),
    },
}
