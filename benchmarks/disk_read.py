"""How fast this machine's disk gives a file from its beginning to its end, past the page cache.

    python -m benchmarks.disk_read FILE [SECONDS] [READERS]

Prints one JSON object: bytes a second. Reads of 4 MiB with O_DIRECT into huge pages where the system gives them (a read
into small ones is cut into more requests), READERS of them under way at a time (default 2), for SECONDS (default 2),
from the beginning again where the file ends: what a program that does nothing else gets.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import sys
import threading
import time

PIECE_BYTES = 4 << 20
HUGE_BYTES = 2 << 20


def measure(path: str, seconds: float = 2.0, readers: int = 2) -> float:
    """Bytes a second. Raises OSError where the file cannot be read past the page cache."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        pieces = os.fstat(descriptor).st_size // PIECE_BYTES
        if not pieces:
            raise OSError(f"{path} is shorter than one read of {PIECE_BYTES} bytes")
        turn = iter(range(1 << 60))
        lock = threading.Lock()
        done: list[int] = []
        start = time.perf_counter()

        def read() -> None:
            # shared memory, which mmap gives unless told otherwise, has small pages alone on most systems
            memory = mmap.mmap(-1, PIECE_BYTES + HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):  # a kernel without
                    memory.madvise(mmap.MADV_HUGEPAGE)
            address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            first = -address % HUGE_BYTES
            buffer = memoryview(memory)[first : first + PIECE_BYTES]
            total = 0
            while time.perf_counter() - start < seconds:
                with lock:
                    at = next(turn) % pieces
                total += os.preadv(descriptor, [buffer], at * PIECE_BYTES)
            done.append(total)

        workers = [threading.Thread(target=read) for _ in range(readers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(done) / (time.perf_counter() - start)
    finally:
        os.close(descriptor)


def main() -> None:
    """Measure the file that the command names."""
    words = sys.argv[1:]
    seconds = float(words[1]) if len(words) > 1 else 2.0
    readers = int(words[2]) if len(words) > 2 else 2
    print(json.dumps({"bytes_per_s": measure(words[0], seconds, readers)}))


if __name__ == "__main__":
    main()
