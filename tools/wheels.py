"""Builds the wheels: `python tools/wheels.py FOLDER` makes one for this machine and one for 64-bit ARM Linux.

The second is cross-compiled (Debian's g++-aarch64-linux-gnu) for the same Python version; where that compiler is absent
it is left out, and one line says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ARM_COMPILER = "aarch64-linux-gnu-g++"


def build(folder: Path, environment: dict[str, str], *settings: str) -> Path | None:
    """One wheel into `folder`; None, with the build's words shown, when that fails."""
    before = set(folder.glob("*.whl"))
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-v"]
    command += ["--disable-pip-version-check", "--wheel-dir", str(folder)]
    command += [f"--config-settings={setting}" for setting in settings]
    ran = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    made = [path for path in folder.glob("*.whl") if path not in before]
    if ran.returncode == 0 and len(made) == 1 and not made[0].name.endswith("none-any.whl"):
        return made[0]
    # The build falls back to Python files alone where nothing compiles; as a wheel to give away that is a failure.
    for wheel in made:
        wheel.unlink()
    print(f"{ran.stdout}{ran.stderr}{' '.join(command)} built no kernels", file=sys.stderr)
    return None


def arm(folder: Path) -> Path | None:
    """The wheel for 64-bit ARM Linux, for the Python version that runs this."""
    tag = f"cpython-{sys.version_info.major}{sys.version_info.minor}-aarch64-linux-gnu"
    environment = {"_PYTHON_HOST_PLATFORM": "linux-aarch64", "SETUPTOOLS_EXT_SUFFIX": f".{tag}.so"}
    return build(folder, environment, f"cmake.define.CMAKE_TOOLCHAIN_FILE={ROOT / 'native' / 'aarch64.cmake'}")


def main(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("genmote-*.whl"):
        old.unlink()
    status = 0
    for name, wheel in (("this machine", build(folder, {})), ("64-bit ARM", _arm_or_reason(folder))):
        if wheel is None:
            print(f"wheels: the one for {name} failed", file=sys.stderr)
            status = 1
        elif isinstance(wheel, Path):
            print(f"{wheel} ({wheel.stat().st_size / 1e6:.1f} MB)")
    return status


def _arm_or_reason(folder: Path) -> Path | str | None:
    if shutil.which(ARM_COMPILER) is None:
        print(f"wheels: none for 64-bit ARM, {ARM_COMPILER} is not here (Debian: g++-aarch64-linux-gnu)")
        return "left out"
    return arm(folder)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
