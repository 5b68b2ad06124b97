"""The compatibility matrix, asserted: every executed stage does what matrix.yaml expects of it.

Select with -k, e.g. ``-k "lm-fp8/modelopt-0.47.0 and vllm-0.10.2 and preflight"``. What is expected to
fail and passes is a failure too, and so is what was not run.
"""

from __future__ import annotations

import pytest


def test_stage(surprise: str | None) -> None:
    if surprise is not None:
        pytest.fail(surprise, pytrace=False)
