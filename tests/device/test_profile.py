"""Profiles: every one loads, says where each figure is from, and is what the issue of it is."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from genmote.cli import main
from genmote.device import profile
from genmote.device.sizes import parse_bytes, parse_rate
from genmote.errors import SpecError
from genmote.spec import to_toml


@pytest.mark.parametrize("name", profile.names())
def test_every_profile_loads_and_gives_its_sources(name: str, tmp_path: Path) -> None:
    device = profile.load(name)
    parts = [getattr(device, f.name) for f in fields(device)]
    sources = [part.source for part in parts if hasattr(part, "source")]
    assert len(sources) >= 5 and all(len(source) > 20 for source in sources)
    (tmp_path / "copy.toml").write_text(to_toml(device), encoding="utf-8")
    assert profile.load(str(tmp_path / "copy.toml")) == device


@pytest.mark.parametrize("name", profile.names())
def test_every_source_can_be_looked_up_or_says_that_it_is_an_estimate(name: str) -> None:
    device = profile.load(name)
    for part in (getattr(device, f.name) for f in fields(device)):
        if (source := getattr(part, "source", None)) is not None:
            assert re.search(r"estimate|[a-z-]\.(com|org|net|io|pm)\b", source), source


def test_the_named_boards_are_here() -> None:
    wanted = "pi-zero-2w pi-3b-plus pi-4b-2gb pi-4b-4gb pi-4b-8gb pi-5-8gb jetson-orin-nano n100-gateway oppo-reno6"
    names = profile.names()
    assert set(wanted.split()) <= set(names) and len(names) >= 14
    architectures = {profile.load(name).arch for name in names}
    assert {"aarch64", "x86_64", "riscv64"} <= architectures


def test_kernels_are_ones_that_the_architecture_has() -> None:
    kernels = {"aarch64": {"neon", "dotprod"}, "x86_64": {"avx2", "avx512"}, "riscv64": {"scalar"}}
    for name in profile.names():
        device = profile.load(name)
        assert device.compute.isa in kernels.get(device.arch, {"none"})
        assert (device.compute.isa == "none") == (device.refused is not None)


def test_microcontrollers_are_refused_with_the_reason() -> None:
    with pytest.raises(SpecError, match="esp32-s3: a microcontroller: 8 MB of memory .* run genmote on a gateway"):
        profile.runnable("esp32-s3")
    assert profile.load("esp32-s3").refused
    assert profile.runnable("PI_ZERO_2W").usable_bytes < profile.load("pi-zero-2w").memory_bytes == 512 << 20


def test_an_unknown_device_and_a_missing_file_are_told() -> None:
    with pytest.raises(SpecError, match="no device is called 'pi-4b', did you mean pi-.*see genmote devices"):
        profile.load("pi-4b")
    with pytest.raises(SpecError, match="my.toml: cannot be read"):
        profile.load("my.toml")


def faulty(path: Path, old: str, new: str) -> str:
    text = (profile.FOLDER / "pi-zero-2w.toml").read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("usable_mib = 320", "usable_mib = 600", "memory.usable_mib=600, wanted at most total_mib=512"),
        ("usable_mib = 320", "usable_mib = 0", "memory.usable_mib=0, wanted a number above 0"),
        ("read_gb_s = 2.6", "read_gb_s = 9.5", "bandwidth.read_gb_s=9.5, wanted at most peak_gb_s=3.6"),
        ("idle_w = 0.6", "idle_w = 3.0", "power.idle_w=3, wanted at most load_w=2"),
        ("cores = 4", 'cores = "four"', "compute.cores='four', wanted a whole number"),
        ('arch = "aarch64"', 'arch = "arm"', "arch='arm', wanted one of aarch64"),
        ('title = "Raspberry Pi Zero 2 W"', 'title = " "', "title is empty, wanted the device's full name"),
        ('kind = "microSD"', 'kind = "microSD"\nspeed = 3', "storage.speed is no setting"),
        ("[memory]", "[measured]\nseconds = 0\nload = 0.1\n[memory]", "measured.seconds=0, wanted a number above 0"),
        ("[memory]", "[measured]\nseconds = 2\nload = -1\n[memory]", "measured.load=-1, wanted a number from 0"),
        ("[power]", "[power]\nsource = ' '\n[other]", "power.source is empty, wanted where the figures are from"),
    ],
)
def test_faults_are_told(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = faulty(tmp_path / "board.toml", old, new)
    if "[other]" in new:
        text = Path(path).read_text(encoding="utf-8").split("[other]")[0] + "idle_w = 1.0\nload_w = 2.0\n"
        Path(path).write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as fault:
        profile.load(path)
    assert told in str(fault.value) and "board.toml: " in str(fault.value)


@pytest.mark.parametrize(("text", "count"), [("1KiB", 1024), ("0.5MB", 500_000), ("2g", 2 * 10**9), (" 7 B ", 7)])
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "1e3", "5XB", "1 2MB", "9" * 40, "nan"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(SpecError, match="wanted an amount above 0 such as 150MB"):
        parse_bytes(text)
    with pytest.raises(SpecError, match="wanted bytes a second such as 40MB/s"):
        parse_rate(text + "/s")


def test_devices_lists_and_details(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[1:]] == profile.names()
    assert "refused" in next(row for row in rows if row.startswith("esp32-s3"))
    assert main(["devices", "pi-zero-2w"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Raspberry Pi Zero 2 W\n") and text.count("  source: ") == 6
    assert main(["devices", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["devices"]
    assert [device["name"] for device in listed] == profile.names()
    assert listed[0]["memory"]["total_mib"] > 0
