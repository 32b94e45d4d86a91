"""Small digests: the same as hashlib's, without its library."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genmote import digest


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_it_is_sha256(parts: list[bytes]) -> None:
    ours, theirs = digest.sha256(), hashlib.sha256()
    for part in parts:
        ours.update(part)
        theirs.update(part)
    assert (ours.digest(), ours.hexdigest()) == (theirs.digest(), theirs.hexdigest())


def test_a_python_without_its_own_takes_hashlib_s(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_sha2", "_sha256"):
        monkeypatch.setitem(sys.modules, name, None)
    assert digest.sha256(b"abc").hexdigest() == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("large", [False, True])
def test_a_file_s_is_of_what_is_left_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    content = bytes(range(256)) * 3000
    (tmp_path / "f").write_bytes(content)
    monkeypatch.setattr(digest, "LARGE_FILE", 1 if large else 1 << 30)
    with open(tmp_path / "f", "rb", buffering=0) as file:
        file.seek(7)
        assert digest.of_file(file) == hashlib.sha256(content[7:]).hexdigest()


def test_a_load_needs_nothing_that_only_fetching_needs() -> None:
    code = (
        "import sys; from genmote.models import packed, store, tokenizer; from genmote.runtime import engine, loading\n"
    )
    code += "store.find('smollm2-135m')\n"
    code += f"loading.file_sha256(packed.Path({__file__!r}))\n"
    code += "print(sorted({'_hashlib', 'zipfile', 'subprocess'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
