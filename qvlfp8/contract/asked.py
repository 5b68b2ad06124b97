"""Which of the recorded versions a user asks about."""

from __future__ import annotations

from collections.abc import Sequence

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from qvlfp8.contract.data import Contract, load_all
from qvlfp8.errors import UsageError

__all__ = ["asked_for"]


def asked_for(text: str | None, *, option: str) -> Sequence[Contract]:
    """The contracts of the versions that a specifier holds for; all of them without one.

    Args:
        text: such as ``>=0.12,<0.20``, ``vllm>=0.12`` or ``0.12.0``.
        option: what the user calls it, for the error.

    Raises:
        UsageError: it is no specifier, or holds for no recorded version.
    """
    contracts = load_all()
    if text is None:
        return contracts
    bare = text.strip().removeprefix("vllm").strip()
    try:
        # An empty set would hold for all.
        wanted = SpecifierSet(bare if bare[:1] in set("<>=!~") else f"=={bare}", prereleases=True)
    except InvalidSpecifier:
        raise UsageError(
            f"{option} {text!r} is no version specifier", mend="such as '>=0.12,<0.20'"
        ) from None
    found = [contract for contract in contracts if wanted.contains(contract.vllm)]
    if not found:
        known = ", ".join(dict.fromkeys(contract.vllm for contract in contracts))
        raise UsageError(
            f"{option} {text!r} holds for none of the recorded versions", mend=f"recorded are {known}"
        )
    return found
