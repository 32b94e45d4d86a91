"""The kernels on this machine's own processor: the same bits from every instruction set, and the choice of one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from genmote.errors import OpsError

# What the documentation says may be asked for.
NAMES = ("scalar", "avx2", "avx512", "amx", "neon", "dotprod", "i8mm")


def test_same_bits(cases: tuple[Path, int], check_here: Path) -> None:
    """AMX is run under the emulation of its tile instructions, which needs AVX-512 for the rest."""
    from genmote.ops import _native

    path, count = cases
    ran = subprocess.run([check_here, path], capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr
    lines = ran.stdout.splitlines()
    tried = [line.split()[1] for line in lines if line.startswith("isa ")]
    here = {name for name in _native.isa_names() if _native.isa_runs(name)}
    assert set(tried) == here | ({"amx"} if "avx512" in here else set())
    assert lines[-1] == f"same {count * len(tried)}"


def test_tiles_that_are_wrong_are_not_used(cases: tuple[Path, int], check_here: Path) -> None:
    """A processor whose tiles are one off in one number of 256: the kernels for AMX are compared with those for AVX-512
    before they are used, and left out."""
    from genmote.ops import _native

    if not _native.isa_runs("avx512"):
        pytest.skip("this processor has no AVX-512, without which there is no AMX")
    ran = subprocess.run(
        [check_here, cases[0]],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "GENMOTE_AMX_FAULT": "1"},
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr
    tried = [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("isa ")]
    assert "avx512" in tried and "amx" not in tried


def test_a_wrong_bit_is_seen(cases: tuple[Path, int], check_here: Path, tmp_path: Path) -> None:
    data = bytearray(cases[0].read_bytes())
    data[-1] ^= 1
    (tmp_path / "cases").write_bytes(data)
    ran = subprocess.run([check_here, tmp_path / "cases"], capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 1 and re.search(r"^differs scalar rope", ran.stdout, re.MULTILINE)


def test_each_name_is_taken_or_refused_in_one_line() -> None:
    pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    from genmote import ops
    from genmote.ops import _native

    here = [name for name in _native.isa_names() if _native.isa_runs(name)]
    assert set(_native.isa_names()) <= set(NAMES) and here[-1] == "scalar" and _native.best_isa() == here[0]
    for name in (*NAMES, "sse9"):
        if name in here:
            assert ops.load("native", isa=name, threads=1).isa == name
        else:
            with pytest.raises(
                OpsError, match=rf"instruction set '{name}': this machine runs {', '.join(here)}; choose one"
            ):
                ops.load("native", isa=name)


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    from genmote import ops

    monkeypatch.setenv("GENMOTE_ISA", "scalar")
    assert ops.load("native", threads=1).isa == "scalar"
    monkeypatch.setenv("GENMOTE_ISA", "sse9")
    with pytest.raises(OpsError, match="instruction set 'sse9'"):
        ops.load("native")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no list of the processor's features")
def test_plain_avx2_can_be_had() -> None:
    """GENMOTE_AVXVNNI=0 keeps the AVX2 kernels from using AVX-VNNI; the bits do not change."""
    from genmote.ops import _native

    if "avx_vnni" not in Path("/proc/cpuinfo").read_text() or "avx2" not in _native.isa_names():
        pytest.skip("this processor has no AVX-VNNI")
    code = """
import hashlib, numpy as np
from genmote.ops import load, quant
from genmote.ops.layer import Linear
ops, random = load("native", isa="avx2", threads=1), np.random.default_rng(3)
w = ops.matrix("Q8_0", (64, 512), quant.quantize("Q8_0", random.standard_normal((64, 512)).astype(np.float32)))
x = random.standard_normal((9, 512)).astype(np.float32)
print(hashlib.sha256(ops.linear(x, Linear(w)).tobytes()).hexdigest())
"""
    outputs = set()
    for value in ("0", "1"):
        environment = {**os.environ, "GENMOTE_AVXVNNI": value}
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        outputs.add(ran.stdout)
    assert len(outputs) == 1
