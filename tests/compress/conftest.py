"""What the tests of compression share."""

from __future__ import annotations

from pathlib import Path

import pytest

from genmote.models.make_model import make_model


@pytest.fixture(scope="package")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in plain numbers, whose embedding is its output matrix too; not to be written to."""
    path = tmp_path_factory.mktemp("model") / "llama.gguf"
    make_model("tiny-llama", "F32", path, 1)
    return path
