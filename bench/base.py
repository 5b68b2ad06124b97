"""Whether the base is the same on another machine: made twice, the second time under other circumstances.

    python bench/base.py

The second time hostname, resolver, umask, locale, time zone and home are others (hostname and resolver for
root alone, in a mount namespace of its own). Needs mmdebstrap; about 80 s.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from qvlfp8 import digest
from qvlfp8.errors import BuildError
from qvlfp8.images import base

_OTHER = {"TZ": "Asia/Tokyo", "LANG": "de_DE.UTF-8", "HOME": "/nonexistent"}
_MOUNTS = 'mount --bind "$1" /etc/hostname; mount --bind "$2" /etc/resolv.conf; shift 2; exec "$@"'


def main() -> int:
    """Make both, and compare."""
    with tempfile.TemporaryDirectory(prefix="qvlfp8-bench-") as scratch:
        root = Path(scratch)
        one = digest.of_file(base.make(root / "one", announce=print))
        other = elsewhere(root)
    print(f"here       {one}\nelsewhere  {other}\n{'the same' if one == other else 'NOT THE SAME'}")
    return 0 if one == other else 1


def elsewhere(root: Path) -> str:
    """The digest of the base as another machine makes it."""
    command = [sys.executable, __file__, "--in", str(root / "other")]
    if os.geteuid() == 0:
        hostname, resolver = root / "hostname", root / "resolver"
        hostname.write_text("elsewhere\n")
        resolver.write_text(Path("/etc/resolv.conf").read_text() + "search example.org\n")
        command = ["unshare", "--mount", "sh", "-ec", _MOUNTS, "sh", str(hostname), str(resolver), *command]
    done = subprocess.run(
        command, env={**os.environ, **_OTHER}, umask=0o077, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--in"]:
            print(digest.of_file(base.make(Path(sys.argv[2]), announce=lambda _: None)))
        else:
            sys.exit(main())
    except BuildError as error:
        sys.exit(f"error: {error}")
