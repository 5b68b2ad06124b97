"""Which engines a session kills in, how many kills each gets, and what each one needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

from qvlfp8.errors import QvlError
from qvlfp8.images.daemon import connect
from tests.survive import project, sabotage
from tests.survive.containers import Containers
from tests.survive.subjects import Clustered, Drilled, Subject
from tests.survive.surroundings import Surroundings, ThisMachine

SHARES: Mapping[str, float] = {"venv": 0.72, "docker": 0.12, "ray": 0.16}
"""Of the kills: a run in containers takes twice as long as one without, and one on a cluster longer still."""


def shares(kills: int, engine: str, say: Callable[[str], None]) -> dict[str, int]:
    """How many kills each engine gets.

    Args:
        kills: all of them.
        engine: one of them, or ``all`` for those at hand; venv has the kills of those that are not.
        say: is told of each that is not at hand.
    """
    if engine != "all":
        return {engine: kills}
    found = {name: round(kills * share) for name, share in SHARES.items() if name != "venv"}
    for name, why in (("docker", _no_daemon()), ("ray", _no_ray())):
        if why:
            say(f"{name}: not run, since {why}; its {found.pop(name)} kills go to venv")
    return {"venv": kills - sum(found.values()), **found}


def make(engine: str, root: Path, fault: str | None) -> tuple[Subject, Surroundings]:
    """The drill's project and where its steps run.

    Args:
        engine: one of :data:`SHARES`.
        root: an empty folder.
        fault: to be put into the copy (:mod:`tests.survive.sabotage`).

    Raises:
        QvlError: no daemon answers.
    """
    planted = sabotage.BY_NAME[fault] if fault else None
    match engine:
        case "docker":
            containers = Containers()
            return Drilled(project.make(root, planted, image=containers.image), engine), containers
        case "ray":
            from tests.survive.nodes import Nodes

            drill = project.make(root, planted)
            nodes = Nodes(root / "nodes", drill)
            return Clustered(drill, engine, nodes.address), nodes
        case _:
            return Drilled(project.make(root, planted), engine), ThisMachine()


def _no_daemon() -> str:
    try:
        connect().close()
    except QvlError as error:
        return f"no daemon is at hand ({error.problem})"
    return ""


def _no_ray() -> str:
    return "" if importlib.util.find_spec("ray") else "Ray is not installed"
