"""The reader of the streamed weights: the right bytes from any place, and every fault told."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.errors import ModelFileError

native = pytest.importorskip("genmote.ops._native", exc_type=ImportError)

SIZE = 3_000_001


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(np.random.default_rng(3).bytes(SIZE))
    return tmp_path / "file"


def room(nbytes: int) -> Any:
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("threads", [1, 4])
def test_reads_the_file(path: Path, direct: bool, threads: int) -> None:
    whole = np.fromfile(path, np.uint8)
    reader = native.Reader(os.fspath(path), threads, direct)
    rng = np.random.default_rng(5)
    places = [(0, SIZE), (SIZE - 1, 1), (4095, 2), (4096, 4096), (1 << 20, (1 << 20) + 1)]
    places += [(int(a), int(rng.integers(1, SIZE - a + 1))) for a in rng.integers(0, SIZE - 1, 40)]
    tickets = []
    for number, (offset, nbytes) in enumerate(places):
        to = room(reader.room(offset, nbytes) + 8192)
        tickets.append((reader.submit(offset, nbytes, to, 4096, number % 3), to))
    for (ticket, to), (offset, nbytes) in zip(tickets, places, strict=True):
        reader.wait(ticket)
        at = 4096 + offset % 4096
        assert np.array_equal(to[at : at + nbytes], whole[offset : offset + nbytes])
        assert (
            not to[:4096].any() and not to[4096 + reader.room(offset, nbytes) :].any()
        )  # nothing beside it is touched
    assert reader.bytes_read >= sum(nbytes for _, nbytes in places)


def test_room() -> None:
    assert [native.Reader.room(*place) for place in ((0, 1), (4095, 2), (4096, 4096), (1, 8192))] == [
        4096,
        8192,
        4096,
        12288,
    ]


def test_what_cannot_be_read_is_told(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"absent: cannot be opened \(No such file"):
        native.Reader(os.fspath(tmp_path / "absent"))
    reader = native.Reader(os.fspath(path))
    to = room(1 << 20)
    with pytest.raises(ModelFileError, match=f"cannot be read at byte {SIZE - 10} .the file ends at {SIZE}"):
        reader.submit(SIZE - 10, 11, to)
    with pytest.raises(ValueError, match="too small"):
        reader.submit(0, len(to) + 1, to)
    with pytest.raises(ValueError, match="block of 4096"):
        reader.submit(0, 10, to, 64)
    with pytest.raises(ValueError, match="no such read"):
        reader.wait(99)


@pytest.mark.parametrize("direct", [True, False])
def test_a_file_that_changes_is_told(path: Path, direct: bool) -> None:
    reader = native.Reader(os.fspath(path), 2, direct)
    to = room(1 << 20)
    reader.wait(reader.submit(0, 1 << 20, to))
    with open(path, "r+b") as file:
        file.write(b"x")
    with pytest.raises(ModelFileError, match=r"changed while its weights were being read.*load the model again"):
        reader.wait(reader.submit(2 << 20, 4096, to))
    with pytest.raises(ModelFileError, match="changed"):
        reader.check()


@pytest.mark.parametrize("direct", [True, False])
def test_a_file_that_shrinks_is_told(path: Path, direct: bool) -> None:
    reader = native.Reader(os.fspath(path), 2, direct)
    os.truncate(path, 1_000_123)
    for offset in (0, 1_000_000, 2_000_000):
        with pytest.raises(ModelFileError, match=r"changed|file ends"):
            reader.wait(reader.submit(offset, 400_000, room(1 << 20)))


def test_a_file_that_is_replaced_is_still_the_old_one(path: Path) -> None:
    whole = np.fromfile(path, np.uint8)
    reader = native.Reader(os.fspath(path))
    other = path.with_name("other")
    other.write_bytes(bytes(SIZE))
    other.rename(path)
    to = room(4 << 20)
    reader.wait(reader.submit(0, SIZE, to))
    assert np.array_equal(to[:SIZE], whole)


def test_cancelled_reads_leave_their_memory_alone(path: Path) -> None:
    reader = native.Reader(os.fspath(path), 2)
    for _ in range(20):
        to = room(3 << 20)
        tickets = [reader.submit(0, SIZE - 1, to) for _ in range(4)]
        for ticket in tickets:
            reader.cancel(ticket)
        to[:] = 7
        time.sleep(0.002)
        assert (to == 7).all()


def test_demand_goes_before_prefetch(path: Path) -> None:
    """One thread with much to prefetch: what is wanted now is there while most of the rest is not."""
    reader = native.Reader(os.fspath(path), 1)
    to, wanted = room(4 << 20), room(4096)
    later = [reader.submit(0, SIZE, to, 0, 9) for _ in range(100)]
    reader.wait(reader.submit(0, 4096, wanted, 0, 0))
    assert sum(map(reader.done, later)) < 90
    for ticket in later:
        reader.cancel(ticket)


def test_what_is_hastened_goes_before_the_rest(path: Path) -> None:
    reader = native.Reader(os.fspath(path), 1)
    to = room(200 << 12)
    later = [reader.submit(n << 12, 4096, to, n << 12, 9) for n in range(200)]
    reader.hasten(later[-1], 0)
    reader.wait(later[-1])
    assert sum(map(reader.done, later[:-1])) < 150
    for ticket in later[:-1]:
        reader.wait(ticket)
    assert np.array_equal(to, np.fromfile(path, np.uint8)[: len(to)])


def test_only_what_is_not_begun_can_be_withdrawn(path: Path) -> None:
    reader = native.Reader(os.fspath(path), 1)
    whole, to = room(3 << 20), room(20 << 12)
    long = [reader.submit(0, SIZE, whole) for _ in range(8)]
    tickets = [reader.submit(n << 12, 4096, to, n << 12) for n in range(20)]
    gone = [n for n in range(20) if reader.withdraw(tickets[n])]
    for ticket in long:
        reader.wait(ticket)
        assert not reader.withdraw(ticket)
    assert len(gone) > 10
    for n in set(range(20)) - set(gone):
        reader.wait(tickets[n])
    assert gone == [n for n in range(20) if not to[n << 12 : (n + 1) << 12].any()]
    with pytest.raises(ValueError, match="no such read"):
        reader.wait(tickets[gone[0]])
    assert not reader.withdraw(tickets[gone[0]])


def test_several_threads_may_ask(path: Path) -> None:
    whole = np.fromfile(path, np.uint8)
    reader = native.Reader(os.fspath(path), 2)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            offset = int(rng.integers(0, SIZE - 5000))
            to = room(16384)
            reader.wait(reader.submit(offset, 5000, to, 0, int(rng.integers(0, 3))))
            if not np.array_equal(to[offset % 4096 :][:5000], whole[offset : offset + 5000]):
                wrong.append(offset)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a process's size is read where Linux tells it")
def test_where_no_thread_can_be_started_it_is_told_and_tried_again(path: Path) -> None:
    code = """
import mmap, resource, sys
import numpy as np
from genmote.errors import ModelFileError
from genmote.ops import _native
to = np.frombuffer(mmap.mmap(-1, 1 << 20), np.uint8)
reader = _native.Reader(sys.argv[1], 2)
size = int(open("/proc/self/statm").read().split()[0]) * mmap.PAGESIZE
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20), resource.RLIM_INFINITY))
try:
    reader.submit(0, 4096, to)
except ModelFileError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
reader.wait(reader.submit(0, 4096, to))
print(bytes(to[:4096]) == open(sys.argv[1], "rb").read(4096))
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == f"{path}: no thread can be started to read it; end other programs\nTrue\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_reads_on(path: Path) -> None:
    whole = np.fromfile(path, np.uint8)
    reader = native.Reader(os.fspath(path), 2)
    to = room(4 << 20)
    ticket = reader.submit(0, SIZE, to)  # under way in the parent as it forks
    child = os.fork()
    if not child:
        reader.wait(ticket)
        same = np.array_equal(to[:SIZE], whole)
        reader.wait(reader.submit(5, 4096, to))
        os._exit(0 if same and np.array_equal(to[5:4101], whole[5:4101]) else 1)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert status == 0
    reader.wait(ticket)
    assert np.array_equal(to[:SIZE], whole)


def test_ctrl_c_is_seen_while_weights_are_pinned(path: Path) -> None:
    """A pin that has to wait behind many reads: it ends at once, and what it had read is not held."""
    from genmote.ops import native_ops, quant

    ops = native_ops.create(threads=1)
    reader = native.Reader(os.fspath(path), 1)
    stream = native.Stream(reader)
    matrix = stream.matrix(quant.by_name("F32").ggml_id, 32, 64, 0)
    stream.arrange([(0, [(matrix.id, 0, 2)])], [0], 1 << 16)
    reader.wait(reader.submit(0, 4096, room(4096)))  # the first chunk's own reads are done
    to = room(4 << 20)
    before = [reader.submit(0, SIZE, to) for _ in range(3000)]
    killer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    killer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            stream.pin(ops.machine, 1 << 20)
        assert not all(map(reader.done, before))
        assert stream.pinned_bytes == 0
    finally:
        killer.join()
        for ticket in before:
            reader.cancel(ticket)
    stream.pin(ops.machine, 1 << 20)
    assert stream.pinned_bytes > 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a process's size is read where Linux tells it")
def test_a_failed_pin_holds_nothing_of_what_it_read(tmp_path: Path) -> None:
    from genmote.ops import native_ops, quant

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    (tmp_path / "file").write_bytes(b"x" * (48 << 20))
    stream = native.Stream(native.Reader(os.fspath(tmp_path / "file"), 2))
    matrix = stream.matrix(quant.by_name("F32").ggml_id, 12288, 1024, 0)
    stream.arrange([(0, [(matrix.id, at, at + 8)]) for at in range(0, 768, 8)], list(range(96)), 4 << 20)
    os.utime(tmp_path / "file")  # whoever reads on is told that the file was changed
    before = resident()
    with pytest.raises(ModelFileError, match="changed"):
        stream.pin(native_ops.create(threads=1).machine, 64 << 20)
    assert stream.pinned_bytes == 0 and resident() - before < 8 << 20
