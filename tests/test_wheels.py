"""What `make wheels` and `pip install` give: kernels built in, a fallback without a compiler, the same bits on ARM."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

# Products of matrices in a file, as one number for all their bits.
PRODUCTS = """
import hashlib, sys
import numpy as np
from genmote.ops import _native, load
from genmote.ops.layer import Linear
ops = load("native", threads=2)
digest = hashlib.sha256()
with np.load(sys.argv[1]) as file:
    for name in file:
        if name != "x":
            matrix = ops.matrix(name, (40, 512), file[name])
            digest.update(ops.linear(ops.array(file["x"]), Linear(matrix)).tobytes())
print(_native.best_isa(), digest.hexdigest())
"""
ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
TYPES = ("F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q6_K")


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A file of matrices and inputs, and what the kernels in this tree make of them. The file is made here alone:
    NumPy's own functions differ in the last bit from machine to machine."""
    pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    from genmote.ops.quant import quantize

    random = np.random.default_rng(7)
    arrays = {name: quantize(name, random.standard_normal((40, 512)).astype(np.float32)) for name in TYPES}
    path = tmp_path_factory.mktemp("products") / "products.npz"
    np.savez(path, x=random.standard_normal((5, 512)).astype(np.float32), **arrays)
    ran = subprocess.run([sys.executable, "-c", PRODUCTS, str(path)], capture_output=True, text=True, check=True)
    return str(path), ran.stdout.split()[1]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "GENMOTE_TEST_WHEELS" in os.environ:  # a folder of wheels that have just been built
        return Path(os.environ["GENMOTE_TEST_WHEELS"])
    folder = tmp_path_factory.mktemp("wheels")
    subprocess.run([sys.executable, str(ROOT / "tools" / "wheels.py"), str(folder)], check=True)
    return folder


def wheel_of(folder: Path, machine: str) -> Path:
    found = list(folder.glob(f"genmote-*-linux_{machine}.whl"))
    if not found:
        pytest.skip(f"no wheel for {machine} was built here")
    return found[0]


def test_this_machines_wheel_runs_in_a_fresh_environment(
    wheels: Path, products: tuple[str, str], tmp_path: Path
) -> None:
    wheel = wheel_of(wheels, os.uname().machine)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert f"genmote/ops/_native{sysconfig.get_config_var('EXT_SUFFIX')}" in names
    assert "genmote/models/sources/smollm2-135m.toml" in names and "genmote/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "native/", "benchmarks/"))]
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel], check=True)
    ran = subprocess.run(
        [tmp_path / "env" / "bin" / "genmote", "doctor"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=ALONE,
    )
    assert "native, " in ran.stdout
    ran = subprocess.run(
        [python, "-c", PRODUCTS, products[0]], capture_output=True, text=True, check=True, cwd=tmp_path, env=ALONE
    )
    assert ran.stdout.split()[1] == products[1]


def test_without_a_compiler_the_install_succeeds_and_says_so(tmp_path: Path) -> None:
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns(".git", ".venv", "build", "dist", "tests", "*.so", "records")
    shutil.copytree(ROOT, source, ignore=left_out)
    command = [sys.executable, "-m", "pip", "wheel", str(source), "-v", "--no-deps", "--no-build-isolation"]
    ran = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path)],
        env={**os.environ, "CXX": "/bin/false", "CC": "/bin/false"},
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("py3-none-any.whl")
    assert "genmote: no native kernels were built (no working C++ compiler)" in ran.stdout + ran.stderr
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "from genmote import ops; print(ops.load().name)"
    paths = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    told = subprocess.run(
        [sys.executable, "-c", code], env=paths, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stdout == "numpy\n"


@pytest.fixture(scope="module")
def arm_root(wheels: Path) -> Path:
    """A folder with a Python for ARM in which the ARM wheel is unpacked."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not here (Debian: qemu-user)")
    wheel = wheel_of(wheels, "aarch64")
    made = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "arm_python.py"), str(ROOT / "build" / "arm-python")],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(made.stderr.strip())
    root = Path(made.stdout.strip())
    shutil.rmtree(root / "usr" / "lib" / "python3" / "dist-packages" / "genmote", ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root / "usr" / "lib" / "python3" / "dist-packages")
    return root


@pytest.mark.parametrize(("cpu", "isa"), [("cortex-a53", "neon"), ("cortex-a72", "neon"), ("cortex-a76", "dotprod")])
def test_the_arm_wheel_gives_the_same_bits(arm_root: Path, products: tuple[str, str], cpu: str, isa: str) -> None:
    python = arm_root / "usr" / "bin" / f"python3.{sys.version_info.minor}"
    emulator = ["qemu-aarch64", "-cpu", cpu, "-L", str(arm_root), str(python)]
    ran = subprocess.run(
        [*emulator, "-c", PRODUCTS, products[0]], capture_output=True, text=True, check=False, cwd=arm_root, env=ALONE
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [isa, products[1]]
