"""What all tests share: a home of their own, models where they are here, two paces."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow") or "slow" in (config.getoption("-m") or ""):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow (make test-slow)")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty GENMOTE_HOME for one test; models that the user has are not seen."""
    folder = tmp_path / "home"
    monkeypatch.setenv("GENMOTE_HOME", str(folder))
    return folder


def _find(name: str) -> Path:
    from genmote.models.store import find

    path = find(name)
    if path is None:
        pytest.skip(f"the model {name} is not here: `genmote pull {name}`")
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M file; the test is skipped where it has not been pulled."""
    return _find("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """The real Gemma-3-270M file; the test is skipped where it has not been pulled."""
    return _find("gemma3-270m")


@pytest.fixture(scope="session")
def find_model() -> Callable[[str], Path]:
    """Path of a named model, or skip."""
    return _find


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of reference data that may lie beside a checkout; the test is skipped where it does not."""
    folder = Path(os.environ.get("GENMOTE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("reference data is not here: set GENMOTE_TEST_DATA to its folder")
    return folder
