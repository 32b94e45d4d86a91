"""Builds the native kernels and puts them into the tree: `python tools/build_native.py BUILD_FOLDER`.

Where there is no C++ compiler this says so in one line and succeeds: the numpy op set runs without the kernels. Where
there is one, a build that fails is a failure: exit status 1 and the first lines about it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from genmote.cli._output import Bar

ROOT = Path(__file__).parents[1]
COMPILERS = ("c++", "g++", "clang++")  # what CMake looks for where CXX names none
LINES = 20  # of a failed step's log, from the first error on


def main(build: Path) -> int:
    if "CXX" not in os.environ and not any(map(shutil.which, COMPILERS)):
        print("native: there is no C++ compiler, the kernels were not built; the numpy op set runs, slowly")
        return 0
    build.mkdir(parents=True, exist_ok=True)
    log = build / "build.log"
    cmake = Path(sys.executable).parent / "cmake"
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=str(cmake.parent)) else []
    make = f"-DCMAKE_MAKE_PROGRAM={cmake.parent / 'ninja'}"
    configure = [str(cmake), "-S", str(ROOT), "-B", str(build), *generator, make, "-DCMAKE_BUILD_TYPE=Release"]
    steps = [
        [*configure, f"-DPython_EXECUTABLE={sys.executable}"],
        [str(cmake), "--build", str(build), "--parallel"],
        [str(cmake), "--install", str(build), "--prefix", str(ROOT)],
    ]
    with open(log, "w", encoding="utf-8") as out, Bar(unit_bytes=False) as bar:
        for step in steps:
            if run(step, out, bar) != 0:
                break
        else:
            return 0
    print(f"{first_error(log)}\nnative: the kernels could not be built ({log} has the rest)", file=sys.stderr)
    return 1


def first_error(log: Path) -> str:
    """What the log says from the first error on; its end where no line speaks of one."""
    lines = log.read_text(encoding="utf-8").splitlines()
    at = next((i for i, line in enumerate(lines) if re.search(r"\b(error|undefined reference)\b", line, re.I)), -LINES)
    return "\n".join(lines[at:][:LINES])


def run(step: list[str], log: IO[str], bar: Callable[[str, int, int], None]) -> int:
    """One step into the log, showing how many of the files are compiled; gives its exit status."""
    process = subprocess.Popen(step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert process.stdout is not None
    for line in process.stdout:
        log.write(line)
        if found := re.match(r"\[(\d+)/(\d+)\]", line):
            bar("kernels compiled", int(found[1]), int(found[2]))
    return process.wait()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
