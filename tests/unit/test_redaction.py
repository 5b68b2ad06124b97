"""What is secret is known in every form in which it turns up, and nothing else is taken out."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from qvlfp8.errors import QvlError
from qvlfp8.redaction import SHOWN, known, redact, scrub

PLAIN = {"TOKENIZERS_PARALLELISM": "false", "PATH": "/usr/bin", "TOKEN_COUNT_OF": "x", "HOME": "/none"}


@pytest.mark.parametrize(
    ("name", "value", "form"),
    [
        ("HF_TOKEN", "hf_abcdef", "hf_abcdef"),
        ("UV_INDEX_OURS_PASSWORD", "open sesame", "open sesame"),
        ("UV_INDEX_OURS_PASSWORD", "open sesame", "open%20sesame"),
        ("PIP_INDEX_URL", "https://user:p%40ss@index.example/simple", "p%40ss"),
        ("PIP_INDEX_URL", "https://user:p%40ss@index.example/simple", "p@ss"),
        ("PIP_INDEX_URL", "https://tokenalone@index.example/simple", "tokenalone"),
        ("PIP_EXTRA_INDEX_URL", "https://a.example https://u:second@b.example", "second"),
        ("https_proxy", "http://user:proxypass@proxy.example:3128", "proxypass"),
        ("https_proxy", "http://u:proxypass@proxy:1", base64.b64encode(b"u:proxypass").decode()),
    ],
)
def test_a_secret_is_known_in_this_form(name: str, value: str, form: str) -> None:
    assert form in known({**PLAIN, name: value})


def test_files_of_the_caller_are_known(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine index.example login someone password netrcpass\n")
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "token").write_text("hf_ofafile\n")
    found = known({"HOME": str(tmp_path)})
    assert {"netrcpass", "hf_ofafile"} <= set(found)


def test_a_token_that_changes_is_known_at_once(tmp_path: Path) -> None:
    token = tmp_path / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    for value in ("hf_first", "hf_other"):  # of one length
        token.write_text(value)
        assert known({"HOME": str(tmp_path)}) == (value,)
    token.unlink()
    assert known({"HOME": str(tmp_path)}) == ()


def test_what_is_no_secret_stays() -> None:
    assert known({**PLAIN, "PIP_INDEX_URL": "https://index.example/simple", "NAME": "a@b.example"}) == ()


def test_text_files_and_errors_are_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    assert redact("with hf_abcdef!") == f"with {SHOWN}!"
    assert str(QvlError("with hf_abcdef", mend="use hf_abcdef")) == f"with {SHOWN}\n  mend: use {SHOWN}"
    log, weights = tmp_path / "log.txt", tmp_path / "model.safetensors"
    for file in (log, weights):
        file.write_bytes(b"\xff hf_abcdef")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("hf_abcdef")
    (tmp_path / "link.txt").symlink_to(elsewhere)
    scrub(tmp_path)
    assert log.read_bytes() == b"\xff [secret]"
    assert weights.read_bytes() == b"\xff hf_abcdef"
    assert elsewhere.read_text() == "hf_abcdef"
