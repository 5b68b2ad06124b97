"""How what fails a cell is mended, for the top of its page: sentences, and the command for files. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from qvlfp8.known_findings import KNOWN
from qvlfp8.signs import signs_of
from qvlfp8.site.data import SiteCell

__all__ = ["Mend", "Mends", "mends_of"]


@dataclass(frozen=True, kw_only=True)
class Mend:
    """A finding that fails the cell, what it means, and how it is mended."""

    finding: str
    meaning: str
    mend: str


@dataclass(frozen=True, kw_only=True)
class Mends:
    """All of a cell's; ``command`` (empty: none) mends what ``by_command`` names without quantizing again."""

    mends: tuple[Mend, ...] = ()
    command: str = ""
    by_command: tuple[str, ...] = ()


def mends_of(cell: SiteCell) -> Mends:
    """What fails a cell, what a command mends first; nothing for a cell that does not fail."""
    if cell.outcome not in {"blind", "fails"}:
        return Mends()
    by_command = [name for name in cell.findings if signs_of(name).command]
    others = [name for name in cell.findings if name not in by_command]
    return Mends(
        mends=tuple(
            Mend(finding=name, meaning=KNOWN[name].meaning, mend=KNOWN[name].mend)
            for name in (*by_command, *others)
            if name in KNOWN
        ),
        command=_together([signs_of(name).command for name in by_command]),
        by_command=tuple(by_command),
    )


def _together(commands: list[str]) -> str:
    """One command with the options of all: they are calls of one program on one checkpoint."""
    words = dict.fromkeys(tuple(command.split(" --")) for command in commands)
    if not words:
        return ""
    start = next(iter(words))[0]
    options = dict.fromkeys(option for parts in words for option in parts[1:])
    return " --".join((start, *options))
