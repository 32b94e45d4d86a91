"""The page cache: how much of a file lies in memory, and sending it out.

A cgroup is charged for a file's pages by whoever touched them first. A model that someone has read before is free of
charge for the next one, so a test of a memory limit must drop its pages first and look whether they went.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from functools import lru_cache
from typing import Any

_WINDOW = 1 << 30  # bytes looked at in one go: a file may be larger than the address space of a 32-bit board
_FAILED = ctypes.c_void_p(-1).value


@lru_cache(maxsize=1)
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return libc


def cached_bytes(path: str | os.PathLike[str]) -> int | None:
    """Bytes of the file at `path` that lie in the page cache (whole pages); None where the system does not tell.

    Linux tells it only to those who may write the file or own it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() and not os.access(path, os.W_OK):
            return None
        return _resident(descriptor, status.st_size)
    except (OSError, AttributeError):
        return None
    finally:
        os.close(descriptor)


def _resident(descriptor: int, size: int) -> int:
    libc, page, found = _libc(), mmap.PAGESIZE, 0
    for start in range(0, size, _WINDOW):
        length = min(_WINDOW, size - start)
        address = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, start)
        if address is None or address == _FAILED:
            raise OSError(ctypes.get_errno(), "mmap")
        try:
            seen = (ctypes.c_ubyte * -(-length // page))()
            if libc.mincore(address, length, ctypes.addressof(seen)):
                raise OSError(ctypes.get_errno(), "mincore")
            found += sum(byte & 1 for byte in bytes(seen)) * page
        finally:
            libc.munmap(address, length)
    return found


def drop(path: str | os.PathLike[str]) -> int | None:
    """Send the file's pages out of the page cache; returns the bytes that stayed (None: the system does not tell).

    Dirty pages are written first. Pages that a process has mapped and touched stay.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)  # a read-only file system has nothing dirty
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return cached_bytes(path)
