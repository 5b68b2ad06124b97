"""Which of the recorded versions a user asks about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from qvlfp8.errors import UsageError

__all__ = ["asked_for"]


class _Recorded(Protocol):
    @property
    def vllm(self) -> str: ...


R = TypeVar("R", bound=_Recorded)


def asked_for(recorded: Sequence[R], text: str | None, *, option: str) -> Sequence[R]:
    """Those of the versions that a specifier holds for; all of them without one.

    Args:
        recorded: what is there, a contract or the like for each version.
        text: such as ``>=0.12,<0.20``, ``vllm>=0.12`` or ``0.12.0``.
        option: what the user calls it, for the error.

    Raises:
        UsageError: it is no specifier, or holds for no recorded version.
    """
    if text is None:
        return recorded
    bare = text.strip().removeprefix("vllm").strip()
    try:
        # An empty set would hold for all.
        wanted = SpecifierSet(bare if bare[:1] in set("<>=!~") else f"=={bare}", prereleases=True)
    except InvalidSpecifier:
        raise UsageError(
            f"{option} {text!r} is no version specifier", mend="such as '>=0.12,<0.20'"
        ) from None
    found = [contract for contract in recorded if wanted.contains(contract.vllm)]
    if not found:
        known = ", ".join(dict.fromkeys(contract.vllm for contract in recorded))
        raise UsageError(
            f"{option} {text!r} holds for none of the recorded versions", mend=f"recorded are {known}"
        )
    return found
