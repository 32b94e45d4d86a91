"""`import genmote` does nothing: it is quick, loads nothing heavy and opens no socket.

Times are of the processor, the best of several, so that a busy machine does not count, and of compiled bytecode, as an
installed package has it (where writing it is switched off, compiling takes longer than all the rest).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("numpy", "torch", "jinja2", "llguidance", "http", "urllib.request", "ssl", "asyncio", "starlette", "uvicorn")
HEAVY_FOR_THE_ENGINE = ("torch", "jinja2", "llguidance", "http", "urllib.request", "ssl", "asyncio", "starlette")


def run(code: str, bytecode: Path | None = None) -> str:
    """What `code` prints in a process of its own, which keeps its bytecode under `bytecode`."""
    env = os.environ.copy()
    if bytecode is not None:
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        env["PYTHONPYCACHEPREFIX"] = str(bytecode)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout


def best_ms_of(statement: str, loaded: str, bytecode: Path) -> float:
    code = f"import {loaded}; a = time.process_time(); {statement}; print(1000 * (time.process_time() - a))"
    run(code, bytecode)
    return min(float(run(code, bytecode)) for _ in range(5))


def test_import_takes_under_150_ms(tmp_path: Path) -> None:
    best_ms = best_ms_of("import genmote", "time", tmp_path)
    assert best_ms < 150, f"import genmote took {best_ms:.0f} ms"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [("import genmote", HEAVY), ("from genmote import Engine", HEAVY_FOR_THE_ENGINE)],
)
def test_import_loads_nothing_heavy(statement: str, heavy: tuple[str, ...]) -> None:
    loaded = run(f"import sys; {statement}; print(*sys.modules)").split()
    assert not set(heavy) & set(loaded)


def test_the_engine_and_numpy_take_under_150_ms_more_than_numpy(tmp_path: Path) -> None:
    best_ms = best_ms_of("from genmote import Engine", "numpy, time", tmp_path)
    assert best_ms < 150, f"from genmote import Engine took {best_ms:.0f} ms"


def test_import_opens_no_socket() -> None:
    code = (
        "import sys; opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(event) if event.startswith('socket.') else None)\n"
        "import genmote; print(opened)"
    )
    assert run(code).strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    import genmote

    with pytest.raises(AttributeError, match="module 'genmote' has no attribute 'Motor'"):
        genmote.Motor  # noqa: B018
