"""Measures the machine it runs on, as a device's profile.

What the kernels of the op sets reach is given from outside (`Kernels`): this room knows memory, disk and the system.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from genmote import __version__, records
from genmote.device import pages, sensors
from genmote.device.profile import MIB, Architecture, Bandwidth, Compute, Measured, Memory, Profile, Storage
from genmote.errors import UserError

Progress = Callable[[str, int, int], None]

_ARCHITECTURES = {"AMD64": "x86_64", "arm64": "aarch64"}
_BLOCK = 4 * MIB
_FILE = 192 * MIB  # what a test file takes: an SD card reads it in five seconds


class Kernels(Protocol):
    """An op set's products, for the probe: its instruction set, and what it reaches with so many threads."""

    isa: str

    def int8_gops(self, threads: int) -> float: ...
    def read_gb_s(self, threads: int) -> float: ...


@dataclass(frozen=True)
class Disk:
    """A sequential read: MB/s, how many bytes, and in which way the page cache was kept out."""

    read_mb_s: float
    size_bytes: int
    how: str


def probe(
    folder: Path,
    *,
    kernels: Kernels | None = None,
    file: Path | None = None,
    seconds: float = 2.0,
    progress: Progress | None = None,
) -> Profile:
    """This machine's profile; each measurement takes about `seconds`.

    The disk is measured by reading `file` (a large one that is there) or a test file that is made in `folder` and
    removed. Raises UserError where the folder cannot be written.
    """
    steps = 6
    tell = progress or (lambda what, done, total: None)
    cores = records.usable_cores()
    measured = Measured(seconds=seconds, load=round(os.getloadavg()[0], 2))  # before it makes a load itself
    when = time.strftime("%Y-%m-%d")
    by = f"measured by genmote {__version__} device-probe on {when}: "
    tell("memory, one core", 0, steps)
    one = read_gb_s(1, seconds)
    tell("memory, all cores", 1, steps)
    every = max(one, read_gb_s(cores, seconds))
    how = "NumPy reads an array four times the cache or more"
    if kernels is not None:
        streamed = kernels.read_gb_s(cores)
        if streamed > every:
            every, how = streamed, f"all cores: the {kernels.isa} kernels multiply by a matrix larger than the cache"
    tell("float32", 2, steps)
    f32 = f32_gflops(seconds)
    tell("int8", 3, steps)
    int8 = kernels.int8_gops(cores) if kernels is not None else f32
    int8_how = (
        f"int8 by the {kernels.isa} kernels" if kernels is not None else "no native kernels here, int8 as float32"
    )
    tell("disk", 4, steps)
    disk = read_disk(file, seconds) if file is not None else probe_disk(folder, seconds)
    tell("system", 5, steps)
    total = records.memory_bytes() or 0
    free = available_bytes() or total
    made = Profile(
        title=platform.node() or "this machine",
        chip=records.cpu_model(),
        arch=architecture(),
        memory=Memory(
            total_mib=max(1, total // MIB),
            usable_mib=max(1, min(free, total) // MIB),
            source=by + "usable is what the system told as available then, within the control group's limit",
        ),
        bandwidth=Bandwidth(read_gb_s=round(every, 2), one_core_gb_s=round(one, 2), source=by + how),
        compute=Compute(
            cores=cores,
            isa=kernels.isa if kernels is not None else "none",
            f32_gflops=round(f32, 1),
            int8_gops=round(int8, 1),
            source=by + f"float32 by NumPy's matrix product, {int8_how}; reached, not peak",
        ),
        storage=Storage(
            kind="disk", read_mb_s=round(disk.read_mb_s, 1), source=by + f"{disk.size_bytes} bytes, {disk.how}"
        ),
        measured=measured,
    )
    tell("done", steps, steps)
    return made


def architecture() -> Architecture:
    """The processor's architecture, as profiles name it."""
    machine = platform.machine()
    name = _ARCHITECTURES.get(machine, machine)
    return cast(Architecture, name if name in get_args(Architecture) else "other")


def read_gb_s(threads: int, seconds: float) -> float:
    """Memory read rate of `threads` threads together, GB/s: the best pass over an array beyond any cache."""
    share = max(4 * MIB, test_bytes() // threads)
    arrays = [np.ones(share // 4, np.int32) for _ in range(threads)]
    best = 0.0
    end = time.monotonic() + seconds
    while not best or time.monotonic() < end:
        best = max(best, threads * share / _pass(arrays) / 1e9)
    return best


def test_bytes() -> int:
    """Bytes for a test of memory: beyond any cache where there is room, at most an eighth of what is available."""
    return min(256 * MIB, (available_bytes() or 1 << 30) // 8)


def _pass(arrays: list[NDArray[np.int32]]) -> float:
    """Seconds in which all threads have read their arrays (NumPy lets go of the interpreter meanwhile)."""
    workers = [threading.Thread(target=np.max, args=(array,)) for array in arrays[1:]]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    np.max(arrays[0])
    for worker in workers:
        worker.join()
    return time.perf_counter() - began


def f32_gflops(seconds: float, size: int = 512) -> float:
    """float32 operations of NumPy's matrix product, 10^9/s; a multiply-add counts two."""
    a = np.ones((size, size), np.float32)
    b, out = a.copy(), np.empty_like(a)
    best = 0.0
    end = time.monotonic() + seconds
    while not best or time.monotonic() < end:
        began = time.perf_counter()
        for _ in range(4):
            np.matmul(a, b, out=out)
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - began) / 1e9)
    return best


def probe_disk(folder: Path, seconds: float) -> Disk:
    """Write a test file in `folder`, read it past the page cache, remove it."""
    path = folder / f".genmote-probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            block = os.urandom(_BLOCK)
            end = time.monotonic() + 3 * seconds
            for _ in range(_FILE // _BLOCK):
                file.write(block)
                if time.monotonic() > end:
                    break
            file.flush()
            os.fsync(file.fileno())
        return read_disk(path, seconds)
    except OSError as fault:
        raise UserError(
            f"{folder}: {fault.strerror}: wanted a folder with {_FILE // MIB} MiB free, or a large file by --file"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def read_disk(path: Path, seconds: float) -> Disk:
    """Sequential read rate of the file at `path`, by direct reads, or with its pages dropped first."""
    try:
        descriptor, how = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0)), "direct reads of 4 MiB"
        if not hasattr(os, "O_DIRECT"):
            raise OSError
    except OSError:  # a tmpfs or a file system over the network has no direct reads
        try:
            stayed = pages.drop(path)
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as fault:
            raise UserError(f"{path}: {fault.strerror}: wanted a large file to read") from None
        how = "buffered reads, pages dropped before" + (f" ({stayed} bytes stayed)" if stayed else "")
    try:
        with mmap.mmap(-1, _BLOCK) as block:  # aligned to a page, as direct reads ask for
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds and (got := os.readv(descriptor, [block])):
                count += got
            took = time.perf_counter() - began
    finally:
        os.close(descriptor)
    if count < MIB:
        raise UserError(f"{path}: {count} bytes: wanted a file of 1 MiB or more to read")
    return Disk(count / took / 1e6, count, how)


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that a new program could have now, within the limits of the control groups that it is in; None where
    nothing tells."""
    found = sensors.memory(root)
    return None if found is None else found.left_bytes
