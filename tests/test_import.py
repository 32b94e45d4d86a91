"""`import genmote` does nothing: it is quick, loads nothing heavy and opens no socket.

Times are of the processor, the best of several, so that a busy machine does not count.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("numpy", "torch", "jinja2", "llguidance", "http", "urllib.request", "ssl", "asyncio", "starlette", "uvicorn")
HEAVY_FOR_THE_ENGINE = ("torch", "jinja2", "llguidance", "http", "urllib.request", "ssl", "asyncio", "starlette")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_takes_under_150_ms() -> None:
    code = "import time; a = time.process_time(); import genmote; print((time.process_time() - a) * 1000)"
    best_ms = min(float(run(code)) for _ in range(5))
    assert best_ms < 150, f"import genmote took {best_ms:.0f} ms"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [("import genmote", HEAVY), ("from genmote import Engine", HEAVY_FOR_THE_ENGINE)],
)
def test_import_loads_nothing_heavy(statement: str, heavy: tuple[str, ...]) -> None:
    loaded = run(f"import sys; {statement}; print(*sys.modules)").split()
    assert not set(heavy) & set(loaded)


def test_the_engine_and_numpy_take_under_150_ms_more_than_numpy() -> None:
    code = "import numpy, time; a = time.process_time(); from genmote import Engine; print(time.process_time() - a)"
    best_ms = 1000 * min(float(run(code)) for _ in range(5))
    assert best_ms < 150, f"from genmote import Engine took {best_ms:.0f} ms"


def test_import_opens_no_socket() -> None:
    code = (
        "import sys; opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(event) if event.startswith('socket.') else None)\n"
        "import genmote; print(opened)"
    )
    assert run(code) == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    import genmote

    with pytest.raises(AttributeError, match="module 'genmote' has no attribute 'Motor'"):
        genmote.Motor  # noqa: B018
