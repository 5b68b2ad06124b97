from __future__ import annotations

from dataclasses import dataclass

from qvlfp8.lazy import lazy

asked: list[str] = []


@dataclass(frozen=True)
class Named:
    name: str

    @lazy
    def loud(self) -> str:
        """In capitals."""
        asked.append(self.name)
        return self.name.upper()


def test_each_object_works_its_own_out_once() -> None:
    asked.clear()
    one, other = Named("a"), Named("b")
    assert [one.loud, one.loud, other.loud, one.loud] == ["A", "A", "B", "A"]
    assert asked == ["a", "b"]
    assert one == Named("a")


def test_it_is_documented_as_what_it_was_made_of() -> None:
    assert Named.loud.__doc__ == "In capitals."
