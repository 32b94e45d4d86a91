"""Saving, restoring and forking a text take no second copy of its keys and values."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import re, sys
from pathlib import Path
import numpy as np
from genmote.ops import native_ops
from genmote.runtime import saved
ops = native_ops.create(threads=1)
shape, rows, path = (24, 4, 64), 1024, Path(sys.argv[1])
part = np.ones((rows, shape[1], shape[2] * 2), np.uint8)
none = np.zeros((rows, shape[1]), np.uint16)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
def now():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
cache = ops.cache(*shape, rows)
for layer in range(shape[0]):
    cache.write(layer, 0, part, part, none, none)
cache.place([rows] * shape[0], rows, 0)
size = cache.nbytes
assert size == 24 << 20
saved.write(path, "m", [1], {})
saved.read(path, "m")
before = now()
if sys.argv[2] == "save":
    saved.write(path, "m", [1] * rows, cache.streamed())
    assert path.stat().st_size > size and peak() - before < size // 4, (peak(), before)
elif sys.argv[2] == "fork":
    other = ops.cache(*shape, rows)
    other.copy_from(cache, rows)
    assert size <= peak() - before + (1 << 20) < size + size // 4, (peak(), before)
else:
    saved.write(path, "m", [1] * rows, cache.streamed())
    other = ops.cache(*shape, rows)
    _, state = saved.read(path, "m")
    other.restore(state, state.let_go)
    assert size <= peak() - before + (1 << 20) < size + size // 4, (peak(), before)
if sys.argv[2] != "save":
    assert all(np.array_equal(x, other.export()[name]) for name, x in cache.export().items())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read where Linux tells it")
@pytest.mark.parametrize("what", ["save", "restore", "fork"])
def test_no_second_copy(what: str, tmp_path: Path) -> None:
    pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    ran = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "p"), what],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
