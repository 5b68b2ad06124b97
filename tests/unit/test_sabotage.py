"""What the survival session is to find can be put into the package as it is now."""

from __future__ import annotations

import pytest

from qvlfp8.source import PACKAGE
from tests.survive.sabotage import BY_NAME


@pytest.mark.parametrize("name", BY_NAME)
def test_a_fault_stands_once_where_it_is_to_be_put(name: str) -> None:
    for file, (was, becomes) in BY_NAME[name].items():
        text = (PACKAGE / file).read_text(encoding="utf-8")
        assert text.count(was) == 1, file
        compile(text.replace(was, becomes), file, "exec")
