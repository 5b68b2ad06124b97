"""uv's words, as it printed them, and pip's settings, as users have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvlfp8.engine.uv import find_links, split_lock, torch_source, understand, uv_environment
from qvlfp8.errors import (
    BuildError,
    IndexUnreachableError,
    PackageMissingError,
    QvlError,
    StoreWriteError,
)

NO_ROUTE = """\
Using Python 3.11.7 environment at: evx
error: Request failed after 3 retries in 6.8s
  cause: Failed to fetch: https://pypi.org/simple/six/
  cause: error sending request for url (https://pypi.org/simple/six/)
  cause: client error (Connect)
  cause: dns error
"""
NO_VERSION = """\
error: No solution found when resolving dependencies
  cause: Because there is no version of six==99.0 and you require six==99.0, we can conclude that your \
requirements are unsatisfiable.
"""
NO_PACKAGE = """\
error: No solution found when resolving dependencies
  cause: Because sixx was not found in the package registry and you require sixx==1, we can conclude …
"""
OTHER_FILE = """\
Resolved 1 package in 49ms
error: Failed to download `six==1.16.0`
  cause: Hash mismatch for `six==1.16.0`
"""
FULL = "error: Failed to install: six\n  cause: No space left on device (os error 28)\n"
BROKEN = "error: Failed to build `vllm==0.10.2`\n  cause: The build backend returned an error\n"


@pytest.mark.parametrize(
    ("said", "kind", "keeps"),
    [
        (NO_ROUTE, IndexUnreachableError, "dns error"),
        (NO_VERSION, PackageMissingError, "six==99.0"),
        (NO_PACKAGE, PackageMissingError, "sixx"),
        (OTHER_FILE, PackageMissingError, "Hash mismatch for `six==1.16.0`"),
        (FULL, StoreWriteError, "No space left"),
        (BROKEN, BuildError, "vllm==0.10.2"),
        ("", BuildError, "no message"),
    ],
)
def test_what_uv_says_decides_the_class_and_stays_readable(
    said: str, kind: type[QvlError], keeps: str
) -> None:
    error = understand(said, 1)
    assert type(error) is kind
    assert keeps in error.problem
    assert "\n" not in error.problem
    assert error.mend


def test_torch_comes_from_a_local_folder_that_has_it_else_from_the_cpu_index(
    tmp_path: Path,
) -> None:
    here = {"PIP_FIND_LINKS": f"https://example.org/wheels {tmp_path}"}
    assert torch_source("2.13.0+cpu", here) == ("--torch-backend", "cpu")
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    assert torch_source("2.13.0+cpu", here) == ()
    assert torch_source("2.13.0+cpu", {"UV_FIND_LINKS": str(tmp_path)}) == ()
    assert torch_source("2.12.0+cpu", here) == ("--torch-backend", "cpu")
    assert torch_source("2.13.0+cpu", {}) == ("--torch-backend", "cpu")
    assert find_links(here) == ("https://example.org/wheels", str(tmp_path))


def test_pips_settings_are_passed_on_unless_uv_has_its_own() -> None:
    got = uv_environment(
        {"PIP_INDEX_URL": "https://a", "PIP_CERT": "/ca", "PYTHONPATH": "/x", "PATH": "/bin"}, A="1"
    )
    assert got == {
        "PIP_INDEX_URL": "https://a", "PIP_CERT": "/ca", "PATH": "/bin", "A": "1",
        "UV_DEFAULT_INDEX": "https://a", "SSL_CERT_FILE": "/ca", "UV_SYSTEM_CERTS": "true",
    }  # fmt: skip
    assert (
        uv_environment({"PIP_INDEX_URL": "https://a", "UV_DEFAULT_INDEX": "https://b"})["UV_DEFAULT_INDEX"]
        == "https://b"
    )


def test_a_lock_is_split_at_what_must_be_built() -> None:
    built = "vllm==0.10.2 \\\n    --hash=sha256:1 \\\n    --hash=sha256:2\n"
    lock = f"# head\na==1 \\\n    --hash=sha256:0\n{built}z==3 \\\n    --hash=sha256:3\n"
    wheels, source = split_lock(lock)
    assert source == built
    assert wheels == lock.replace(source, "")
    assert split_lock("a==1\n") == ("a==1\n", "")
