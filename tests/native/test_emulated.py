"""The kernels give the same bits on processors that this machine is not: cross-compiled, under user-mode emulation."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Which kernels each processor must find itself able to run. A53: Pi Zero 2 and 3; A72: Pi 4; A76: Pi 5; max: has i8mm.
PROCESSORS = {
    ("aarch64", "cortex-a53"): {"neon", "scalar"},
    ("aarch64", "cortex-a72"): {"neon", "scalar"},
    ("aarch64", "cortex-a76"): {"dotprod", "neon", "scalar"},
    ("aarch64", "max"): {"i8mm", "dotprod", "neon", "scalar"},
    ("riscv64", "rv64"): {"scalar"},
}
# These two take minutes and show little that the others do not: an A72 runs an A53's kernels, and of RISC-V there is
# only what every processor runs.
SLOW = {("aarch64", "cortex-a72"), ("riscv64", "rv64")}


@pytest.mark.parametrize(
    ("machine", "processor"),
    [pytest.param(*each, marks=[pytest.mark.slow] if each in SLOW else []) for each in PROCESSORS],
)
def test_same_bits(machine: str, processor: str, cases: tuple[Path, int], kernel_check: Callable[..., Path]) -> None:
    emulator = f"qemu-{machine}"
    if shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is not here (Debian: qemu-user)")
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'native' / f'{machine}.cmake'}"
    program = kernel_check(f"check-{machine}", f"{machine}-linux-gnu-g++", toolchain)
    path, count = cases
    command = [emulator, "-cpu", processor, program, path]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr
    lines = ran.stdout.splitlines()
    expected = PROCESSORS[machine, processor]
    assert {line.split()[1] for line in lines if line.startswith("isa ")} == expected
    assert lines[-1] == f"same {count * len(expected)}"
