"""Cold rows of a native cache on disk: the same bits, bounded memory, and errors that leave the session as it was."""

from __future__ import annotations

import os
import signal
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


SAME, OTHER = (KV_HEADS,) * LAYERS, (2, 1, 2, 1, 1)  # key-value heads of each layer; twice as many query heads


def layers(kv_heads: tuple[int, ...] = SAME) -> list[Layer]:
    nothing: Any = None
    return [Layer(LayerSpec(i, 2 * kv, kv, DIM, 0.1), *[nothing] * 6) for i, kv in enumerate(kv_heads)]


def rows(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((count, n, DIM)).astype(np.float32) for n in (HEADS, KV_HEADS, KV_HEADS)]


def feed(ops: Any, cache: Any, some: list[np.ndarray], kv_heads: tuple[int, ...] = SAME) -> np.ndarray:
    out = []
    for at in layers(kv_heads):
        heads = (at.spec.n_heads, at.spec.n_kv_heads, at.spec.n_kv_heads)
        q, k, v = (np.roll(x, at.spec.index, -1)[:, :n] for x, n in zip(some, heads, strict=True))
        out.append(ops.attend(q, k, v, [Span(cache, 0, len(q))], at))
    cache.advance(len(some[0]))
    return np.concatenate(out, axis=1)


@pytest.mark.parametrize("kv_heads", [SAME, OTHER], ids=["same", "other"])
@pytest.mark.parametrize("page", [4096, 16384])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_through_all_that_happens_to_a_cache(
    kind: str, page: int, kv_heads: tuple[int, ...], tmp_path: Path
) -> None:
    """Also with the larger pages of some systems' memory."""
    ops = native.create(threads=2)
    plain = ops.cache(LAYERS, kv_heads, DIM, 2000, kind=kind)
    cold = ops.cache(LAYERS, kv_heads, DIM, 2000, kind=kind, spill=tmp_path, resident_rows=32, page=page)
    rng = np.random.default_rng(3)

    def both(action: Any) -> None:
        a, b = action(plain), action(cold)
        assert a is None or np.array_equal(a, b)

    for step in range(40 if page == 4096 else 20):
        count = int(rng.choice([1, 1, 40, 130]))
        both(lambda cache, count=count, step=step: feed(ops, cache, rows(count, step), kv_heads))
        if step % 4 == 3:
            back = int(rng.integers(max(plain.floor, plain.position - 90), plain.position + 1))
            both(lambda cache, back=back: cache.truncate(back))
        if step % 10 == 8 and plain.length > 20:
            for layer in range(LAYERS):
                kept = np.sort(
                    rng.permuted(np.tile(np.arange(plain.lengths[layer]), (kv_heads[layer], 1)), axis=1)[:, :-9]
                )
                both(lambda cache, layer=layer, kept=kept: cache.keep(layer, kept))
        if step % 7 == 3:
            both(lambda cache: np.concatenate([cache.keys(3, 0), cache.values(0, kv_heads[0] - 1)]))
        if step % 7 == 5:
            both(
                lambda cache: np.concatenate([(cache.keys(layer) + cache.values(layer)).ravel() for layer in (4, 1, 0)])
            )
    state = plain.export()
    assert all(np.array_equal(x, state[name]) for name, x in cold.export().items())
    both(lambda cache: cache.restore(state))
    both(lambda cache: feed(ops, cache, rows(3, 99), kv_heads))
    written, read = cold.spilled
    assert written > 0 and read > 0 and written % page == read % page == 0
    assert plain.spilled == (0, 0)
    assert not list(tmp_path.iterdir())  # the file has no name: nothing is left behind


@pytest.mark.slow
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
    whole = 60 << 20
    assert 0 < cache.nbytes <= whole - cache.spilled[0]  # what is on disk takes no memory
    assert resident() - before < whole * 0.55
    assert cache.spilled[0] > whole * 0.9


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cold rows could not be written .*give --kv-spill another folder"):
        native.create().cache(1, 1, 8, 64, spill=tmp_path / "none")


FULL = """
import resource, signal, sys
sys.path[:0] = {paths!r}
from test_spill import *
def limit(size):  # on the size of files: stands for the full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
def full(action):
    limit({size})
    try:
        action()
    except SpecError as error:
        assert "could not be written" in str(error) and "--kv-spill" in str(error), error
    else:
        raise SystemExit("no error")
    limit(resource.RLIM_INFINITY)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ops = native.create(threads=1)
wanted = ops.cache(LAYERS, KV_HEADS, DIM, 2000)
cache = ops.cache(LAYERS, KV_HEADS, DIM, 2000, spill={folder!r}, resident_rows=16)
for c in (wanted, cache):
    feed(ops, c, rows(100))
full(lambda: feed(ops, cache, rows(200, 1)))
assert cache.position == 100
for seed in (2, 3):
    assert np.array_equal(feed(ops, cache, rows(200, seed)), feed(ops, wanted, rows(200, seed)))
"""


@pytest.mark.parametrize("size", [4096, 4_000_000])  # in the first layer; in the third
def test_a_full_disk_leaves_the_session_as_it_was(size: int, tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    code = FULL.format(paths=paths, folder=str(tmp_path), size=size)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_a_pass_that_was_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    """Rows that it had put on disk are not read for those that come instead."""
    ops = native.create(threads=2)
    plain = ops.cache(LAYERS, KV_HEADS, DIM, 2000)
    cold = ops.cache(LAYERS, KV_HEADS, DIM, 2000, spill=tmp_path, resident_rows=32)
    for cache in (plain, cold):
        feed(ops, cache, rows(100))
        for layer in layers()[:2]:
            ops.attend(*rows(512, 1), [Span(cache, 0, 512)], layer)
    for count, seed in ((512, 2), (3, 3)):
        assert np.array_equal(feed(ops, plain, rows(count, seed)), feed(ops, cold, rows(count, seed)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_reads_and_does_not_write(tmp_path: Path) -> None:
    ops = native.create(threads=1)
    cache = ops.cache(LAYERS, KV_HEADS, DIM, 2000, spill=tmp_path, resident_rows=32)
    feed(ops, cache, rows(512))
    cache.keys(0)
    wanted = [cache.keys(layer) for layer in range(LAYERS)]

    def in_a_child(action: Any) -> None:
        """Fail unless it is True there; a child that hangs is ended."""
        child = os.fork()
        if not child:
            signal.alarm(30)
            right = False
            try:
                right = action()
            finally:
                os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def reads() -> bool:
        return all(np.array_equal(cache.keys(layer), wanted[layer]) for layer in range(LAYERS))

    def told(action: Any, words: str) -> bool:
        try:
            action()
        except SpecError as error:
            return words in str(error)
        return False

    def ends() -> bool:
        nonlocal cache
        del cache
        return True

    in_a_child(reads)
    in_a_child(lambda: told(lambda: feed(ops, cache, rows(512, 1)), "belong to the process that this one was forked"))
    in_a_child(ends)
    ready, go = os.pipe()

    def reads_late() -> bool:
        os.read(ready, 1)
        return told(lambda: cache.keys(2), "were changed by the process that this one was forked from")

    child = os.fork()
    if not child:
        signal.alarm(30)
        os._exit(0 if reads_late() else 1)
    cache.truncate(100)
    feed(ops, cache, rows(512, 2))
    os.write(go, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what a process holds is read where Linux tells it")
def test_where_no_thread_can_be_started_it_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    code = """
import os, resource, sys
from genmote.errors import SpecError
from genmote.ops import native_ops
cache = lambda: native_ops.create(threads=1).cache(1, 1, 64, 64, spill=sys.argv[1])
held = lambda: (len(os.listdir("/proc/self/fd")), open("/proc/self/maps").read().count("/dev/zero"))
before = held()
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGESIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + (4 << 20), resource.RLIM_INFINITY))
try:
    cache()
except SpecError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(held() == before)
cache()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == (
        f"{tmp_path}: no thread can be started to read the KV cache's cold rows; end other programs, "
        "or leave --kv-spill out\nTrue\n"
    )
