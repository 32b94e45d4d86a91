"""The probe measures something real: rates that cannot be missed by much, a profile that loads again, no file left."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from genmote.cli import _machine, main
from genmote.device import probe as probing
from genmote.device import profile, sizes
from genmote.errors import UserError


class FakeKernels:
    """Kernels of known speed."""

    isa = "neon"

    def int8_gops(self, threads: int) -> float:
        return 77.0

    def read_gb_s(self, threads: int) -> float:
        return 5000.0


def test_the_read_rate_is_what_a_pass_over_an_array_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_pass", lambda arrays: 0.5 if sum(a.nbytes for a in arrays) >= 8 << 20 else 99.0)
    monkeypatch.setattr(probing, "test_bytes", lambda: 64 << 20)
    assert probing.read_gb_s(1, 0) == pytest.approx((64 << 20) / 0.5 / 1e9)
    assert probing.read_gb_s(4, 0) == pytest.approx((64 << 20) / 0.5 / 1e9)


def test_a_pass_reads_every_array() -> None:
    arrays = [np.ones(1 << 22, np.int32) for _ in range(3)]
    assert 1e-4 < probing._pass(arrays) < 5  # 48 MiB: between 480 GB/s and 10 MB/s


def test_a_test_takes_an_eighth_of_what_is_there_at_most() -> None:
    free = probing.available_bytes()
    assert free is None or probing.test_bytes() <= free / 8 * 1.5


def test_available_memory_is_bound_by_the_control_group(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 4096000 kB\nMemAvailable:    2048000 kB\n")
    assert probing.available_bytes(tmp_path) == 2048000 * 1024
    group = tmp_path / "cgroup/box"
    group.mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
    (tmp_path / "proc/self/mountinfo").write_text(f"31 23 0:28 / {tmp_path}/cgroup rw - cgroup2 cgroup2 rw\n")
    (group / "memory.max").write_text("100000000")
    (group / "memory.current").write_text("40000000")
    assert probing.available_bytes(tmp_path) == 60000000
    inner = group / "run"  # a jail's limit is that of the group above the command's own
    inner.mkdir()
    (inner / "memory.max").write_text("max")
    (inner / "memory.current").write_text("1000")
    (tmp_path / "proc/self/cgroup").write_text("0::/box/run\n")
    assert probing.available_bytes(tmp_path) == 60000000
    (group / "memory.max").write_text("max")
    assert probing.available_bytes(tmp_path) == 2048000 * 1024


def test_the_disk_is_read_past_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(16 << 20))
    began = time.perf_counter()
    disk = probing.read_disk(path, 30.0)
    assert disk.size_bytes == 16 << 20
    assert disk.read_mb_s >= (16 << 20) / (time.perf_counter() - began) / 1e6
    assert disk.how.startswith(("direct reads", "buffered reads"))


def test_a_test_file_is_removed_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_FILE", 8 << 20)
    assert probing.probe_disk(tmp_path, 0.2).size_bytes > 0
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(probing, "read_disk", lambda path, seconds: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        probing.probe_disk(tmp_path, 0.2)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_or_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x")
    with pytest.raises(UserError, match="small: 1 bytes: wanted a file of 1 MiB or more to read"):
        probing.read_disk(tmp_path / "small", 0.1)
    with pytest.raises(UserError, match="none: No such file or directory: wanted a large file to read"):
        probing.read_disk(tmp_path / "none", 0.1)
    with pytest.raises(UserError, match="small/in: Not a directory: wanted a folder with 192 MiB free"):
        probing.probe_disk(tmp_path / "small" / "in", 0.1)


def test_a_probed_profile_holds_the_kernels_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "test_bytes", lambda: 16 << 20)
    (tmp_path / "large").write_bytes(os.urandom(4 << 20))
    steps: list[tuple[int, int]] = []
    found = probing.probe(
        tmp_path,
        kernels=FakeKernels(),
        file=tmp_path / "large",
        seconds=0.05,
        progress=lambda what, done, total: steps.append((done, total)),
    )
    assert (found.compute.isa, found.compute.int8_gops, found.bandwidth.read_gb_s) == ("neon", 77.0, 5000.0)
    assert "larger than the cache" in found.bandwidth.source and "int8 by the neon kernels" in found.compute.source
    assert found.memory.usable_mib <= found.memory.total_mib and found.compute.cores == len(os.sched_getaffinity(0))
    assert steps == [(i, 6) for i in range(7)]
    plain = probing.probe(tmp_path, file=tmp_path / "large", seconds=0.05)
    assert plain.compute.int8_gops == plain.compute.f32_gflops and plain.compute.isa == "none"


def test_the_verb_writes_a_profile_that_devices_and_jail_take(
    tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("genmote.ops._native")
    monkeypatch.setattr(probing, "test_bytes", lambda: 16 << 20)
    (tmp_path / "large").write_bytes(os.urandom(4 << 20))
    board = tmp_path / "board.toml"
    words = ["--file", str(tmp_path / "large"), "--seconds", "0.05", "-o", str(board), "--json"]
    assert main(["device-probe", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert not _machine.recorded().exists(), "with -o that file alone is written"
    found = profile.load(str(board))
    assert found.compute.isa == told["compute"]["isa"] and found.compute.int8_gops > 0.1
    assert profile.runnable(str(board)) == found
    assert main(["devices", str(board)]) == 0
    assert "measured by genmote" in capsys.readouterr().out
    assert sizes.parse_bytes(f"{found.memory.usable_mib}MiB") == found.usable_bytes
    assert found.measured is not None and found.measured.seconds == 0.05
    for load, said in ((99.0, " on 2 cores: the figures are too low\n"), (0.5, " on 2 cores\n")):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, load, load))
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
        assert main(["device-probe", *words[:4], "--force"]) == 0
        shown = capsys.readouterr()
        assert f"\nmeasured for 0.05 s each, at a load of {load:g}{said}" in shown.out
        assert f"device-probe: remembered for plans, measured for 0.05 s each, at a load of {load:g}" in shown.err
        assert ("the figures will be too low" in shown.err) == (load > 1)
        assert _machine.remembered() is not None


@pytest.mark.parametrize(
    ("name", "said"),
    [("no/x.toml", "{0}/no/x.toml cannot be written, {0}/no is no folder: make it first"), ("", "{0} is a folder")],
)
def test_where_the_profile_cannot_be_is_told_before_anything_is_measured(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "probe", lambda *a, **k: pytest.fail("measured"))
    assert main(["device-probe", "-o", str(tmp_path / name)]) == 2
    err = capsys.readouterr().err
    assert said.format(tmp_path) in err and err.count("\n") == 1


def test_an_impossible_time_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device-probe", "--seconds", "0"]) == 2
    assert "seconds=0, wanted 0.01 to 60" in capsys.readouterr().err
    assert main(["device-probe", "--force", "-o", "x.toml"]) == 2
    assert "force: with --output nothing is remembered; leave one of them out" in capsys.readouterr().err
