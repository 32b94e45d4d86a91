"""How fast this machine reads memory: the sum of as many bytes as a model's weights, by as many threads.

    python -m benchmarks.plain_read BYTES THREADS

Prints one JSON object with the best of the passes in bytes a second and what did the reading. The reader is a few
lines of C (a sum over 64-bit words, compiled for this CPU), or NumPy's sum where there is no compiler.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PASSES = 12
SOURCE = """
#include <stdint.h>
#include <stddef.h>
uint64_t total(const uint64_t *x, size_t n) {
    uint64_t s = 0;
    for (size_t i = 0; i < n; i++) s += x[i];
    return s;
}
"""


def compiled(folder: Path) -> Callable[[np.ndarray], int] | None:
    """The C reader, or None where it cannot be compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    source, library = folder / "total.c", folder / "total.so"
    source.write_text(SOURCE)
    flags = ["-O3", "-march=native", "-funroll-loops", "-shared", "-fPIC"]
    if subprocess.run([compiler, *flags, str(source), "-o", str(library)], capture_output=True, check=False).returncode:
        return None
    function = ctypes.CDLL(str(library)).total
    function.restype = ctypes.c_uint64
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return lambda words: int(function(words.ctypes.data, words.size))


def measure(size: int, threads: int) -> tuple[float, str]:
    """Bytes a second of the best pass over `size` bytes, and the reader's name."""
    words = np.ones(size // 8, dtype=np.uint64)
    parts = np.array_split(words, threads)
    with tempfile.TemporaryDirectory() as folder:
        reader = compiled(Path(folder))
        total: Callable[[np.ndarray], int] = reader or (lambda part: int(part.sum()))
        start, end = threading.Barrier(threads + 1), threading.Barrier(threads + 1)
        wrong: list[int] = []

        def read(part: np.ndarray) -> None:
            for _ in range(PASSES):
                start.wait()
                if total(part) != part.size:
                    wrong.append(part.size)
                end.wait()

        workers = [threading.Thread(target=read, args=(part,), daemon=True) for part in parts]
        for worker in workers:
            worker.start()
        best_s = float("inf")
        for _ in range(PASSES):
            start.wait()
            begun = time.perf_counter()
            end.wait()
            best_s = min(best_s, time.perf_counter() - begun)
        for worker in workers:
            worker.join()
        if wrong:
            raise SystemExit("the plain read gave a wrong sum")
    return words.nbytes / best_s, "C" if reader else "NumPy"


if __name__ == "__main__":
    rate, used = measure(int(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps({"bytes_per_s": rate, "reader": used}))
