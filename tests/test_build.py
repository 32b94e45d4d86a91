"""The build of the kernels and the tests that want them: what is broken shows, what is absent is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent
COMPILES = (TOOLS / "cmake").exists() and shutil.which("c++") is not None

# The kernels hidden, then pytest on the arguments.
HIDDEN = """
import sys
sys.modules["genmote.ops._native"] = None
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def build(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the build over the sources in `root`."""
    shutil.copytree(ROOT / "tools", root / "tools")
    command = [sys.executable, root / "tools" / "build_native.py", root / "build"]
    paths = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=paths, capture_output=True, text=True, check=False, timeout=60)


def test_without_a_compiler_the_build_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "empty").mkdir()
    ran = build(tmp_path, PATH=str(tmp_path / "empty"))
    assert ran.returncode == 0
    assert ran.stdout == (
        "native: there is no C++ compiler, the kernels were not built; the numpy op set runs, slowly\n"
    )


@pytest.mark.skipif(not COMPILES, reason="no CMake or no C++ compiler")
def test_a_kernel_that_does_not_compile_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(x LANGUAGES CXX)\nadd_library(x STATIC wrong.cpp)\n"
    )
    (tmp_path / "wrong.cpp").write_text("int one() { return 1; }\nint two() { return three; }\n")
    ran = build(tmp_path)
    assert ran.returncode == 1
    assert "wrong.cpp:2" in ran.stderr.splitlines()[0] and "three" in ran.stderr
    assert f"native: the kernels could not be built ({tmp_path / 'build' / 'build.log'} has the rest)" in ran.stderr


@pytest.mark.skipif(not COMPILES, reason="no CMake or no C++ compiler")
def test_a_broken_compiler_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text("cmake_minimum_required(VERSION 3.20)\nproject(x LANGUAGES CXX)\n")
    ran = build(tmp_path, CXX="/bin/false")
    assert ran.returncode == 1
    assert ran.stderr.startswith("CMake Error")


@pytest.mark.parametrize(
    ("name", "test"),
    [
        ("native", "tests/ops/test_native_block.py"),
        ("models", "tests/models/test_store.py::test_real_models_are_described"),
        ("emulation", "tests/native/test_emulated.py::test_same_bits[aarch64-max]"),
    ],
)
def test_what_is_required_and_absent_fails(name: str, test: str, tmp_path: Path) -> None:
    environment = {**os.environ, "GENMOTE_HOME": str(tmp_path), "PATH": str(tmp_path)}
    command = [sys.executable, "-c", HIDDEN, "-q", "-p", "no:cacheprovider", test]
    for required, other in (("", "skipped"), (name, "failed")):
        ran = subprocess.run(
            command,
            env={**environment, "GENMOTE_REQUIRE": required},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert " skipped" in ran.stdout if other == "skipped" else ran.returncode in (1, 2), ran.stdout + ran.stderr
        assert (f"GENMOTE_REQUIRE wants what is absent: {name}" in ran.stdout) == (other == "failed")


def test_an_unknown_requirement_is_told(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_home.py"],
        env={**os.environ, "GENMOTE_REQUIRE": "nativ"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 4
    assert "GENMOTE_REQUIRE: nativ: known are native, models, emulation" in ran.stderr
