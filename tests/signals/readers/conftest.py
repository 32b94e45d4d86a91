from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.fixture
def data() -> Callable[[str], Path]:
    """A real file of the data sets that may lie beside the project; the test is skipped where it does not."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"{name} is not beside the project")
        return path

    return find
