"""The meter against known work: so many bytes, so much memory, so much time, counters that we write ourselves."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from genmote import records
from genmote.device import energy, jail, pages, profile
from genmote.device.cgroup import Limits
from genmote.device.meter import Meter, cgroup_peak
from genmote.errors import SpecError

MIB = 1 << 20


def on_disk(path: Path) -> bool:
    """Whether the file lies on a disk whose traffic the kernel counts (a tmpfs has none)."""
    number = path.stat().st_dev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").exists()


def test_bytes_written_and_read_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with Meter() as writing, open(path, "wb") as file:
        file.write(os.urandom(8 * MIB))
        file.flush()
        os.fsync(file.fileno())
    if not on_disk(path) or writing.reading.written_bytes is None:
        pytest.skip("no disk traffic is counted here")
    assert 8 * MIB <= writing.reading.written_bytes < 10 * MIB
    assert pages.drop(path) == 0
    with Meter() as cold:
        path.read_bytes()
    with Meter() as warm:
        path.read_bytes()
    assert cold.reading.read_bytes is not None and warm.reading.read_bytes is not None
    assert 8 * MIB <= cold.reading.read_bytes < 10 * MIB
    assert warm.reading.read_bytes < MIB
    assert (warm.reading.asked_bytes or 0) >= 8 * MIB  # the page cache answered, but it was asked


def test_mapped_pages_count_as_read_but_were_not_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.write(os.urandom(8 * MIB))
        os.fsync(file.fileno())
    if not on_disk(path):
        pytest.skip("no disk traffic is counted here")
    pages.drop(path)
    with Meter() as meter, open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert sum(view[at] for at in range(0, len(view), 4096)) > 0
    assert (meter.reading.read_bytes or 0) >= 8 * MIB
    assert (meter.reading.asked_bytes or 0) < MIB


def test_peak_memory_is_that_of_the_block() -> None:
    big = bytearray(b"1") * (96 * MIB)
    del big
    with Meter() as small:
        pass
    with Meter() as meter:
        block = bytearray(b"1") * (64 * MIB)
        del block
    assert small.reading.peak_rss_bytes is not None and meter.reading.peak_rss_bytes is not None
    if meter.reading.peak_since != "start of the block":
        pytest.skip("this kernel does not let the high-water mark be reset")
    grown = meter.reading.peak_rss_bytes - small.reading.peak_rss_bytes
    assert 60 * MIB <= grown <= 70 * MIB


def test_time_and_processor_time_are_told_apart() -> None:
    with Meter() as asleep:
        time.sleep(0.2)
    with Meter() as busy:
        began = time.process_time()
        while time.process_time() - began < 0.2:
            pass
    assert asleep.reading.wall_s >= 0.2 and asleep.reading.cpu_s < 0.1
    assert 0.2 <= busy.reading.cpu_s < 0.3


def test_another_process_is_metered(python: Callable[[str], list[str]]) -> None:
    program = "x = input(); b = bytearray(b'1') * (48 << 20); sum(range(10**6)); print('done', flush=True); input()"
    process = subprocess.Popen(python(program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    meter = Meter(pid=process.pid)
    meter.start()
    process.stdin.write("go\n")
    process.stdin.flush()
    process.stdout.readline()
    reading = meter.stop()
    process.communicate("end\n", timeout=20)
    assert (reading.peak_rss_bytes or 0) >= 48 * MIB
    assert reading.cpu_s > 0
    with pytest.raises(SpecError, match=f"process {process.pid} is not there: wanted one that runs"):
        Meter(pid=process.pid)


def test_a_reading_before_the_end_is_refused() -> None:
    with Meter() as meter, pytest.raises(SpecError, match="the meter has not stopped yet: read it after its block"):
        _ = meter.reading


@pytest.mark.usefixtures("cgroups")
def test_within_a_jail_the_groups_peak_is_the_jails(tmp_path: Path) -> None:
    program = "from genmote.device.meter import cgroup_peak\nx = bytearray(b'1') * (40 << 20)\nprint(cgroup_peak())"
    with open(tmp_path / "out", "wb") as out:
        report = jail.run([sys.executable, "-c", program], Limits(memory_bytes=128 * MIB), stdout=out)
    if (told := (tmp_path / "out").read_text().strip()) == "None":
        pytest.skip("this kernel keeps no peak of a group")
    assert report.usage.peak_bytes is not None
    assert 40 * MIB <= int(told) <= report.usage.peak_bytes < 128 * MIB


def test_no_group_has_no_peak(tmp_path: Path) -> None:
    assert cgroup_peak(tmp_path) is None


# -- energy -----------------------------------------------------------------------------------------------------------


def rapl(root: Path, packages: list[tuple[int, int]]) -> list[Path]:
    zones = []
    for i, (count, span) in enumerate(packages):
        zone = root / f"sys/class/powercap/intel-rapl:{i}"
        inner = root / f"sys/class/powercap/intel-rapl:{i}:0"
        for folder, name in ((zone, f"package-{i}"), (inner, "core")):
            folder.mkdir(parents=True)
            (folder / "name").write_text(f"{name}\n")
            (folder / "energy_uj").write_text(f"{count}\n")
            (folder / "max_energy_range_uj").write_text(f"{span}\n")
        zones.append(zone)
    return zones


def test_rapl_adds_packages_once_and_survives_the_wrap(tmp_path: Path) -> None:
    first, second = rapl(tmp_path, [(1_000_000, 9_999_999), (9_000_000, 9_999_999)])
    with Meter(root=tmp_path) as meter:
        (first / "energy_uj").write_text("3500000")
        (second / "energy_uj").write_text("500000")  # 1.5 J further on, past the end of the counter
    assert meter.reading.energy == energy.Energy(4.0, "measured", "processor package (RAPL)")


def test_a_counter_that_cannot_be_read_any_more_is_not_zero(tmp_path: Path) -> None:
    zones = rapl(tmp_path, [(1, 10)])
    with Meter(root=tmp_path) as meter:
        (zones[0] / "energy_uj").unlink()
    assert meter.reading.energy.how == "unavailable" and meter.reading.energy.joules is None


def test_a_boards_sensor_is_sampled_and_goes_before_rapl(tmp_path: Path) -> None:
    rapl(tmp_path, [(0, 10)])
    chip = tmp_path / "sys/class/hwmon/hwmon3"
    chip.mkdir(parents=True)
    (chip / "name").write_text("ina3221\n")
    (chip / "in1_input").write_text("5000\n")  # mV
    (chip / "curr1_input").write_text("800\n")  # mA
    with Meter(root=tmp_path) as meter:
        time.sleep(0.3)
    reading = meter.reading
    assert reading.energy.how == "measured" and reading.energy.of == "board's supply (first channel)"
    assert reading.energy.joules == pytest.approx(4.0 * reading.wall_s, rel=0.2)
    (chip / "power1_input").write_text("2500000\n")  # uW
    with Meter(root=tmp_path) as meter:
        time.sleep(0.1)
    assert meter.reading.energy.joules == pytest.approx(2.5 * meter.reading.wall_s, rel=0.4)


def ina3221(root: Path, number: int, channels: dict[str, tuple[int, int]]) -> None:
    """A chip as a Jetson's kernel shows it: channels with labels, then shunt voltages and a sum without."""
    chip = root / f"sys/class/hwmon/hwmon{number}"
    chip.mkdir(parents=True)
    (chip / "name").write_text("ina3221\n")
    for i, (label, (volts, amps)) in enumerate(channels.items(), 1):
        (chip / f"in{i}_label").write_text(f"{label}\n")
        (chip / f"in{i}_input").write_text(f"{volts}\n")
        (chip / f"curr{i}_input").write_text(f"{amps}\n")
    (chip / "in4_input").write_text("5240\n")
    (chip / "curr4_input").write_text("1560\n")


def test_a_jetson_modules_input_is_the_whole(tmp_path: Path) -> None:
    ina3221(tmp_path, 0, {"VDD_CPU_GPU_CV": (4890, 152), "VDD_IN": (4900, 1050), "VDD_SOC": (4900, 312)})
    found = energy.find(tmp_path)
    assert isinstance(found, energy.Sensor) and found.of == "board's supply (VDD_IN)"
    assert found.watts() == pytest.approx(4.9 * 1.05)


def test_rails_without_an_input_are_added_up_and_named(tmp_path: Path) -> None:
    ina3221(tmp_path, 0, {"VDD_GPU_SOC": (19000, 200), "VDD_CPU_CV": (19000, 100), "VIN_SYS_5V0": (5000, 600)})
    ina3221(tmp_path, 1, {"VDDQ_VDD2_1V8AO": (19000, 50)})
    found = energy.find(tmp_path)
    assert isinstance(found, energy.Sensor)
    assert found.of == "rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 + VDDQ_VDD2_1V8AO"
    assert found.watts() == pytest.approx(19 * 0.35 + 3.0)


PMIC = """ 3V7_WL_SW_A current(0)=0.10000000A
  VDD_CORE_A current(7)=2.00000000A
 3V7_WL_SW_V volt(8)=3.70000000V
  VDD_CORE_V volt(15)=0.80000000V
     EXT5V_V volt(24)=5.08530000V
      BATT_V volt(25)=0.00000000V
"""


def vcgencmd(folder: Path, answer: str) -> None:
    """A program of that name on the path."""
    folder.mkdir(exist_ok=True)
    program = folder / "vcgencmd"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = pmic_read_adc ] || exit 1\ncat <<'END'\n{answer}END\n")
    program.chmod(0o755)


def test_a_raspberry_pi_5_tells_its_rails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vcgencmd(tmp_path / "bin", PMIC)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    with Meter(root=tmp_path) as meter:
        time.sleep(0.2)
    reading = meter.reading
    assert reading.energy.how == "measured" and reading.energy.of.startswith(
        "board's rails (Raspberry Pi 5 PMIC; without"
    )
    assert reading.energy.joules == pytest.approx((0.37 + 1.6) * reading.wall_s, rel=0.3)


@pytest.mark.parametrize("answer", ["", 'error=1 error_msg="Command not registered"\n', "EXT5V_V volt(24)=5.0V\n"])
def test_a_firmware_that_does_not_tell_is_no_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    vcgencmd(tmp_path / "bin", answer)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    assert energy.find(tmp_path) is None


def test_a_sensor_that_fails_on_the_way_is_not_zero(tmp_path: Path) -> None:
    chip = tmp_path / "sys/class/hwmon/hwmon0"
    chip.mkdir(parents=True)
    (chip / "name").write_text("ina219")
    (chip / "power1_input").write_text("1000000")
    with Meter(root=tmp_path) as meter:
        time.sleep(0.06)
        (chip / "power1_input").unlink()
        time.sleep(0.12)
    assert meter.reading.energy.how == "unavailable"


def test_other_chips_are_no_board_sensors(tmp_path: Path) -> None:
    chip = tmp_path / "sys/class/hwmon/hwmon0"
    chip.mkdir(parents=True)
    (chip / "name").write_text("coretemp")
    (chip / "power1_input").write_text("1000000")
    assert energy.find(tmp_path) is None


def test_modelled_energy_is_idle_all_the_time_and_load_for_the_processors_share(tmp_path: Path) -> None:
    board = profile.load("pi-4b-4gb")  # 2.7 W idle, 6.4 W with all of 4 cores busy
    assert energy.modelled(board, wall_s=10, cpu_s=0).joules == pytest.approx(27.0)
    assert energy.modelled(board, wall_s=10, cpu_s=40).joules == pytest.approx(64.0)
    assert energy.modelled(board, wall_s=10, cpu_s=20).joules == pytest.approx(45.5)
    assert energy.modelled(board, wall_s=10, cpu_s=400).joules == pytest.approx(64.0)
    with Meter(root=tmp_path, profile=board) as meter:
        time.sleep(0.1)
    assert meter.reading.energy.how == "modelled" and meter.reading.energy.of.startswith("Raspberry Pi 4")
    assert (meter.reading.energy.joules or 0) >= 0.27
    with Meter(root=tmp_path) as meter:
        pass
    assert meter.reading.energy.how == "unavailable"


def test_a_profile_without_power_models_nothing(tmp_path: Path) -> None:
    text = (profile.FOLDER / "pi-zero-2w.toml").read_text(encoding="utf-8").split("[power]")[0]
    (tmp_path / "board.toml").write_text(text, encoding="utf-8")
    board = profile.load(str(tmp_path / "board.toml"))
    assert energy.modelled(board, 1.0, 1.0) == energy.Energy(None, "unavailable", "the profile tells no power")


def test_a_reading_is_a_record(tmp_path: Path) -> None:
    board = profile.load("pi-zero-2w")
    with Meter(root=tmp_path, profile=board) as meter:
        meter.tokens = 20
        time.sleep(0.05)
    record = meter.reading.record("test.generate", threads=2, model_sha256="ab" * 32)
    assert record.energy == "modelled" and record.threads == 2
    values = json.loads(record.line())["values"]
    assert values["tokens"] == 20
    assert values["tokens_per_s"] == pytest.approx(20 / values["wall_s"])
    assert values["energy_mj_per_token"] == pytest.approx(50 * values["energy_j"])
    records.append(tmp_path / "records.jsonl", record)
    assert next(records.read(tmp_path / "records.jsonl")).values == values
