"""Fill in the commit of every action that the workflows use, by the tag in the comment behind it.

    python .github/pin_actions.py            writes `uses: OWNER/REPO@COMMIT # TAG` anew
    python .github/pin_actions.py --check    only says what is not so, and ends with 1

To move to another version, change the tag in the comment and run it. Forty zeros are a place to fill in.
Tags are asked of the action's repository with `git ls-remote`; git and the standard library are all it takes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent

USES = re.compile(
    r"^(?P<before>\s*(?:-\s+)?uses:\s+)(?P<action>[\w.-]+/[\w.-]+)(?P<inside>(?:/[\w.-]+)*)@(?P<commit>\S+)"
    r"(?P<gap>\s+#\s+)(?P<tag>v[0-9][\w.-]*)\s*$",
    re.MULTILINE,
)
"""One `uses:` of another repository, with its tag. Local ones begin with a dot, and are not pinned."""

ANY_USES = re.compile(r"^\s*(?:-\s+)?uses:\s+(?!\./)(?P<what>.*)$", re.MULTILINE)


class PinError(Exception):
    """An action that cannot be pinned, in one sentence."""


def files(folder: Path) -> list[Path]:
    """The workflows and actions below `.github`."""
    return sorted([*folder.glob("workflows/*.y*ml"), *folder.glob("actions/*/action.y*ml")])


def commit_of(action: str, tag: str, remote: str) -> str:
    """The commit that a tag names.

    Raises:
        PinError: there is no such tag, or git cannot ask.
    """
    url = f"{remote.rstrip('/')}/{action}"
    named = f"refs/tags/{tag}"
    asked = subprocess.run(
        ["git", "ls-remote", url, named, f"{named}^{{}}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if asked.returncode:
        raise PinError(f"{url}: {asked.stderr.strip() or 'git ls-remote failed'}")
    lines = [line.split("\t") for line in asked.stdout.splitlines()]
    found = {ref: commit for commit, ref in lines}
    # An annotated tag is an object of its own; behind ^{} is the commit that it stands for.
    commit = found.get(f"{named}^{{}}", found.get(named))
    if commit is None:
        raise PinError(f"{url}: no tag {tag}")
    return commit


def pinned(text: str, where: Path, remote: str, known: dict[tuple[str, str], str]) -> str:
    """The text of a workflow with every commit filled in.

    Raises:
        PinError: a `uses:` without a commit and a tag behind it, or one that cannot be pinned.
    """
    lacking = len(ANY_USES.findall(text)) - len(USES.findall(text))
    if lacking:
        bad = next(m["what"] for m in ANY_USES.finditer(text) if not USES.match(m[0]))
        raise PinError(f"{where}: `uses: {bad}` is not OWNER/REPO@COMMIT # TAG")

    def fill(found: re.Match[str]) -> str:
        key = found["action"], found["tag"]
        if key not in known:
            known[key] = commit_of(*key, remote)
        return f"{found['before']}{key[0]}{found['inside']}@{known[key]}{found['gap']}{key[1]}"

    return USES.sub(fill, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all is pinned (now), else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--remote", default="https://github.com", help="where repositories are")
    parser.add_argument("--folder", type=Path, default=HERE, help="the folder .github")
    asked = parser.parse_args(arguments)
    known: dict[tuple[str, str], str] = {}
    changed = []
    try:
        for path in files(asked.folder):
            before = path.read_text(encoding="utf-8")
            after = pinned(before, path, asked.remote, known)
            if after != before:
                changed.append(path)
                if not asked.check:
                    path.write_text(after, encoding="utf-8")
    except PinError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for (action, tag), commit in sorted(known.items()):
        print(f"{action} {tag} {commit}")
    for path in changed:
        print(f"{path.name}: {'out of date' if asked.check else 'written'}")
    return int(asked.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
