"""What must not be shown or kept: the caller's tokens, passwords and credentials, taken out of text.

They are known by their values: tokens and passwords of the environment, credentials in addresses that it
names (package indexes, proxies, mirrors), passwords of ``.netrc``, the hub's token file.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from qvlfp8.seen_files import Mark, mark_at

__all__ = ["SHOWN", "known", "redact", "scrub"]

SHOWN = "[secret]"
"""What stands in a secret's place."""

_NAMES = re.compile(
    r"(?:^|_)(?:TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIALS?|API_?KEY|ACCESS_?KEY|AUTH)(?:$|_)",
    re.IGNORECASE,
)
"""Variables whose value is a secret as it is."""

_USER_PART = re.compile(r"\b[A-Za-z][\w+.-]*://([^/\s@:]*)(?::([^/\s@]*))?@")
"""Name and password in an address."""

_SHORTEST = 4
"""A shorter value would be found in any text."""

_TEXTS = ("*.txt", "*.log", "*.json")


def known(environment: Mapping[str, str] = os.environ, *, of_files: bool = True) -> tuple[str, ...]:
    """Every form in which a secret of the caller may turn up, the longest first.

    Args:
        environment: the caller's.
        of_files: those of ``.netrc`` and of the hub's token file, too, which are opened for it.
    """
    files = (_netrc(environment), _hub_token(environment)) if of_files else ()
    # The same variables and files have the same secrets, and each log and record is looked through for them.
    return _known(tuple(environment.items()), tuple((file, mark_at(file)) for file in files))


@lru_cache(maxsize=16)
def _known(
    environment: tuple[tuple[str, str], ...], files: tuple[tuple[str, Mark | None], ...]
) -> tuple[str, ...]:
    plain: set[str] = set()
    for name, value in environment:
        if _NAMES.search(name):
            plain.add(value)
        for user, password in _USER_PART.findall(value):
            # An address with one part only has a token there.
            plain.add(password or user)
            plain.add(_basic(user, password))
    if files:
        (netrc, _), (token, _) = files
        for user, password in _of_netrc(netrc):
            plain |= {password, _basic(user, password)}
        plain |= set(_of_hub(token))
    forms = {form for value in plain if len(value) >= _SHORTEST for form in _forms(value)}
    return tuple(sorted(forms, key=len, reverse=True))


def _basic(user: str, password: str) -> str:
    """As a header of HTTP has them."""
    pair = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password)}"
    return base64.b64encode(pair.encode()).decode()


def _forms(value: str) -> Iterator[str]:
    decoded = urllib.parse.unquote(value)
    for form in (value, decoded, urllib.parse.quote(decoded, safe="")):
        yield form
        yield json.dumps(form)[1:-1]


def _netrc(environment: Mapping[str, str]) -> str:
    return environment.get("NETRC") or str(Path(environment.get("HOME") or "/") / ".netrc")


def _hub_token(environment: Mapping[str, str]) -> str:
    caches = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME") or "/") / ".cache"
    home = environment.get("HF_HOME") or str(Path(caches) / "huggingface")
    return environment.get("HF_TOKEN_PATH") or str(Path(home) / "token")


def _of_netrc(file: str) -> Iterator[tuple[str, str]]:
    import netrc  # where it is used: every command starts by way of this module

    with contextlib.suppress(OSError, UnicodeDecodeError, netrc.NetrcParseError):
        for user, account, password in netrc.netrc(file).hosts.values():
            yield user, password
            yield user, account


def _of_hub(file: str) -> Iterator[str]:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        yield Path(file).read_text(encoding="utf-8").strip()


def redact(text: str, *, of_files: bool = True) -> str:
    """The text with :data:`SHOWN` where a secret stood; ``of_files`` as for :func:`known`."""
    for secret in known(of_files=of_files):
        text = text.replace(secret, SHOWN)
    return text


def scrub(place: Path) -> None:
    """Take secrets out of a file, or out of the logs and small texts directly in a folder.

    What has none keeps its bytes; a file is replaced whole. Links are left alone.

    Raises:
        OSError: the disk refuses.
    """
    secrets = [secret.encode() for secret in known()]
    if not secrets:
        return
    files = [file for pattern in _TEXTS for file in place.glob(pattern)] if place.is_dir() else [place]
    for file in files:
        if file.is_file() and not file.is_symlink():
            _scrub(file, secrets)


def _scrub(file: Path, secrets: list[bytes]) -> None:
    content = file.read_bytes()
    clean = content
    for secret in secrets:
        clean = clean.replace(secret, SHOWN.encode())
    if clean != content:
        partial = file.with_name(f"{file.name}.part")
        partial.write_bytes(clean)
        partial.replace(file)
