"""Engine `venv`, without a package that is installed: what it finds built, it does not build again."""

from __future__ import annotations

import json
from pathlib import Path

from qvlfp8.engine.venv import VenvEngine
from qvlfp8.environments import QuantizeEnvironment
from qvlfp8.locks import Lock
from qvlfp8.store import Store

ENVIRONMENT = QuantizeEnvironment(modelopt="0.41.0", transformers="4.57.6")


def test_a_whole_environment_is_not_made_again(tmp_path: Path) -> None:
    announced: list[str] = []
    engine = VenvEngine(Store(tmp_path), python="3.11", torch="2.13.0", announce=announced.append)
    lock = Lock(path=tmp_path / "lock.txt", digest="ab" * 32)
    folder = tmp_path / "environments" / f"{ENVIRONMENT.id}-abababababab"
    folder.mkdir(parents=True)
    assert not engine.built(ENVIRONMENT, lock)
    facts = {"packages": 3, "seconds": 12.5}
    (folder / "complete.json").write_text(json.dumps(facts))
    assert engine.built(ENVIRONMENT, lock)
    assert engine.build(ENVIRONMENT, lock, tmp_path / "log.txt") == facts
    assert announced == []
    assert "is whole" in (tmp_path / "log.txt").read_text()
