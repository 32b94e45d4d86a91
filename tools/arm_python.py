"""A Python for 64-bit ARM with NumPy, to try the ARM wheel in: `python tools/arm_python.py FOLDER`.

Debian's packages are downloaded and unpacked into FOLDER/root, nothing is installed; qemu-aarch64 runs the result.
Needs apt, dpkg-deb and pip; prints why when something is missing, and ends with status 1 then.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def python(root: Path) -> Path:
    return root / "usr" / "bin" / f"python{VERSION}"


def make(folder: Path) -> Path:
    """The folder that qemu takes with -L; made once. Raises `OSError` or `CalledProcessError` where it cannot be."""
    root = folder / "root"
    if (root / "complete").exists():
        return root
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("state/lists/partial", "cache/archives/partial", "root", "wheels"):
        (folder / name).mkdir(parents=True)
    (folder / "state" / "status").touch()
    # An apt of its own: empty state, the machine's sources, another architecture.
    options = {
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "state" / "status",
        "Dir::Cache": folder / "cache",
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    quiet(*apt, "update")
    quiet(
        *apt, "-y", "--download-only", "install", f"python{VERSION}-minimal", f"libpython{VERSION}-stdlib", "libstdc++6"
    )
    for package in (folder / "cache" / "archives").glob("*.deb"):
        quiet("dpkg-deb", "-x", str(package), str(root))
    platforms = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    pip += [word for name in platforms for word in ("--platform", name)]
    quiet(*pip, "--python-version", VERSION, "--dest", str(folder / "wheels"), "numpy")
    for wheel in (folder / "wheels").glob("*.whl"):
        install(wheel, root)
    (root / "complete").touch()
    return root


def install(wheel: Path, root: Path) -> None:
    """Unpack a wheel where that Python looks for packages."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root / "usr" / "lib" / "python3" / "dist-packages")


def quiet(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


if __name__ == "__main__":
    try:
        print(make(Path(sys.argv[1]).absolute()))
    except (OSError, subprocess.CalledProcessError) as fault:
        said = getattr(fault, "stderr", None) or b""
        print(f"no ARM Python: {fault} {said.decode(errors='replace').strip()}", file=sys.stderr)
        sys.exit(1)
