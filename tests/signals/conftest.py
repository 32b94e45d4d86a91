from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

from genmote.errors import GenmoteError
from genmote.signals import recordings
from genmote.signals.kinds import Series


@lru_cache
def _read(name: str) -> list[Series] | str:
    try:
        return recordings.series(name)
    except GenmoteError as fault:
        return str(fault)


@pytest.fixture(scope="session")
def recording() -> Callable[[str], list[Series]]:
    """A real recording by name, fetched once; the test is skipped where it cannot be."""

    def read(name: str) -> list[Series]:
        found = _read(name)
        if isinstance(found, str):
            pytest.skip(f"the recording {name} is not here: {found}")
        return found

    return read


DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def data() -> Callable[[str], Path]:
    """A real file of the data sets that may lie beside the project; the test is skipped where it does not."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"{name} is not beside the project")
        return path

    return find
