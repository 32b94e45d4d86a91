"""Cold rows of a native cache on disk: the same bits, bounded memory, and errors that leave the session as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.errors import SpecError
from genmote.ops.layer import Layer, LayerSpec
from genmote.ops.protocol import Span

native = pytest.importorskip("genmote.ops.native_ops")
KINDS = ("f16", "int8", "int4")
LAYERS, HEADS, KV_HEADS, DIM = 5, 4, 2, 96


def layers() -> list[Layer]:
    nothing: Any = None
    return [Layer(LayerSpec(i, HEADS, KV_HEADS, DIM, 0.1), *[nothing] * 6) for i in range(LAYERS)]


def rows(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((count, n, DIM)).astype(np.float32) for n in (HEADS, KV_HEADS, KV_HEADS)]


def feed(ops: Any, cache: Any, some: list[np.ndarray]) -> np.ndarray:
    out = [
        ops.attend(*(np.roll(x, at.spec.index, -1) for x in some), [Span(cache, 0, len(some[0]))], at)
        for at in layers()
    ]
    cache.advance(len(some[0]))
    return np.stack(out)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_through_all_that_happens_to_a_cache(kind: str, tmp_path: Path) -> None:
    ops = native.create(threads=2)
    plain = ops.cache(LAYERS, KV_HEADS, DIM, 2000, kind=kind)
    cold = ops.cache(LAYERS, KV_HEADS, DIM, 2000, kind=kind, spill=tmp_path, resident_rows=32)
    rng = np.random.default_rng(3)

    def both(action: Any) -> None:
        a, b = action(plain), action(cold)
        assert a is None or np.array_equal(a, b)

    for step in range(40):
        count = int(rng.choice([1, 1, 40, 130]))
        both(lambda cache, count=count, step=step: feed(ops, cache, rows(count, step)))
        if step % 4 == 3:
            back = int(rng.integers(max(plain.floor, plain.position - 90), plain.position + 1))
            both(lambda cache, back=back: cache.truncate(back))
        if step % 10 == 8 and plain.length > 20:
            for layer in range(LAYERS):
                kept = np.sort(rng.permuted(np.tile(np.arange(plain.lengths[layer]), (KV_HEADS, 1)), axis=1)[:, :-9])
                both(lambda cache, layer=layer, kept=kept: cache.keep(layer, kept))
        if step % 7 == 5:
            both(lambda cache: np.concatenate([cache.keys(layer) + cache.values(layer) for layer in (4, 1, 0)]))
    state = plain.export()
    assert all(np.array_equal(x, state[name]) for name, x in cold.export().items())
    both(lambda cache: cache.restore(state))
    both(lambda cache: feed(ops, cache, rows(3, 99)))
    written, read = cold.spilled
    assert written > 0 and read > 0 and plain.spilled == (0, 0)
    assert not list(tmp_path.iterdir())  # the file has no name: nothing is left behind


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Two layers' rows and the resident ones of each, whatever the length."""
    ops = native.create(threads=1)
    cache = ops.cache(LAYERS, KV_HEADS, DIM, 1 << 16, spill=tmp_path, resident_rows=32)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    some = rows(256)
    feed(ops, cache, some)
    before = resident()
    for _ in range(63):
        feed(ops, cache, some)
    whole = cache.nbytes
    assert whole == 60 << 20
    assert resident() - before < whole * 0.55
    assert cache.spilled[0] > whole * 0.9


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cold rows could not be written .*give --kv-spill another folder"):
        native.create().cache(1, 1, 8, 64, spill=tmp_path / "none")


def test_a_full_disk_leaves_the_session_as_it_was(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    code = f"""
import resource, signal, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[2])]!r}
from test_spill import *
ops = native.create(threads=1)
wanted = ops.cache(LAYERS, KV_HEADS, DIM, 2000)
cache = ops.cache(LAYERS, KV_HEADS, DIM, 2000, spill={str(tmp_path)!r}, resident_rows=16)
for c in (wanted, cache):
    feed(ops, c, rows(100))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    feed(ops, cache, rows(200, 1))
    raise SystemExit("no error")
except SpecError as error:
    assert "could not be written" in str(error) and "--kv-spill" in str(error), error
assert cache.position == 100
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""
    code = (
        code.replace("(4096, 4096)", "(4096, resource.RLIM_INFINITY)")
        + """
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert np.array_equal(feed(ops, cache, rows(200, 1)), feed(ops, wanted, rows(200, 1)))
"""
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
