"""Builds the native kernels and puts them into the tree: `python tools/build_native.py BUILD_FOLDER`.

Where there is no working compiler this says so in one line and succeeds: the numpy op set runs without them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(build: Path) -> int:
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
    with open(log, "w", encoding="utf-8") as out:
        for step in steps:
            if subprocess.run(step, stdout=out, stderr=subprocess.STDOUT, check=False).returncode != 0:
                print(f"native: the kernels were not built ({log} says why); the numpy op set runs, slowly")
                return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
