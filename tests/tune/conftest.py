"""A tiny model and examples for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.models.make_model import make_model

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with 4-bit weights, that has a vocabulary of bytes and a few words."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    make_model("tiny-llama", "Q4_0", path, seed=5)
    return path


@pytest.fixture
def lines(tmp_path: Path) -> Write:
    """Writes objects as lines of a file."""

    def write(*objects: Any, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(each) + "\n" for each in objects), encoding="utf-8")
        return path

    return write


@pytest.fixture
def data(lines: Write) -> Path:
    """A rule: the completion is the prompt's last letter, twice."""
    rng = np.random.default_rng(4)
    words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(60)]
    return lines(*({"prompt": word, "completion": word[-1] * 2} for word in words))
