"""Sensors: what a made tree of files says, and what this machine's kernel says under real stress."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from genmote.device import jail
from genmote.device.cgroup import Limits
from genmote.device.sensors import Battery, Heat, Sensors, most_memory

MIB = 1 << 20
Write = Callable[[dict[str, str]], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Write:
    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


MEMINFO = {"proc/meminfo": "MemTotal:  512000 kB\nMemFree: 1 kB\nMemAvailable:  {} kB\n"}


def meminfo(available_kb: int) -> dict[str, str]:
    return {name: text.format(available_kb) for name, text in MEMINFO.items()}


def test_a_machine_that_shows_nothing_has_nothing_to_be_seen(tmp_path: Path) -> None:
    seen = Sensors(tmp_path).read()
    assert (seen.memory, seen.processor, seen.heat, seen.battery) == (None, None, None, None)
    assert set(Sensors(tmp_path).found().values()) == {"not shown here"}


def test_memory_is_told_in_the_units_of_the_other_figures(tree: Write) -> None:
    assert Sensors(tree(meminfo(300_000))).found()["memory"] == "307 of 524 MB left, this machine"
    large = {"proc/meminfo": "MemTotal:  8000000 kB\nMemAvailable:  300000 kB\n"}
    assert Sensors(tree(large)).found()["memory"] == "0.3 of 8.2 GB left, this machine"


def test_memory_left_is_that_of_the_tightest_limit_above(tree: Write, tmp_path: Path) -> None:
    root = tree(
        meminfo(300_000)
        | {
            "proc/self/cgroup": "0::/outer/inner\n",
            "proc/self/mountinfo": f"31 23 0:28 / {tmp_path}/cgroup rw - cgroup2 cgroup2 rw\n",
            "cgroup/memory.max": "max",
            "cgroup/outer/memory.max": str(100 * MIB),
            "cgroup/outer/memory.current": str(90 * MIB),
            "cgroup/outer/memory.stat": f"anon 1\ninactive_file {20 * MIB}\n",
            "cgroup/outer/inner/memory.max": str(80 * MIB),
            "cgroup/outer/inner/memory.high": "max",
            "cgroup/outer/inner/memory.current": str(40 * MIB),
        }
    )
    memory = Sensors(root).read().memory
    assert memory is not None  # idle page cache counts as left: 100 - (90 - 20)
    assert (memory.left_bytes, memory.limit_bytes, memory.of) == (30 * MIB, 100 * MIB, "control group /outer")
    tree({"cgroup/outer/inner/memory.high": str(45 * MIB)})
    memory = Sensors(root).read().memory
    assert memory is not None and memory.of == "control group /outer/inner"
    assert (memory.left_bytes, memory.limit_bytes) == (5 * MIB, 45 * MIB)
    tree(meminfo(1_000))
    memory = Sensors(root).read().memory
    assert memory is not None and (memory.left_bytes, memory.of) == (1_024_000, "this machine")


def test_the_most_that_a_process_may_have_is_the_smallest_limit(tree: Write, tmp_path: Path) -> None:
    """However much of it is left: `outer` has less left, `inner` allows less."""
    root = tree(
        {
            "proc/meminfo": "MemTotal: 2048000 kB\nMemAvailable: 1000 kB\n",
            "proc/self/cgroup": "0::/outer/inner\n",
            "proc/self/mountinfo": f"31 24 0:26 / {tmp_path}/cgroup rw - cgroup2 cgroup2 rw\n",
            "cgroup/outer/memory.max": str(100 * MIB),
            "cgroup/outer/memory.current": str(100 * MIB),
            "cgroup/outer/inner/memory.max": str(80 * MIB),
            "cgroup/outer/inner/memory.current": "0",
        }
    )
    assert most_memory(root) == (80 * MIB, "control group /outer/inner")
    tree(dict.fromkeys(("cgroup/outer/memory.max", "cgroup/outer/inner/memory.max"), "max"))
    assert most_memory(root) == (2048000 * 1024, "this machine")
    assert most_memory(tmp_path / "nothing") is None


def test_memory_of_version_1(tree: Write, tmp_path: Path) -> None:
    root = tree(
        meminfo(300_000)
        | {
            "proc/self/cgroup": "4:memory:/box\n",
            "proc/self/mountinfo": f"31 23 0:28 / {tmp_path}/mem rw - cgroup cgroup rw,memory\n",
            "mem/box/memory.limit_in_bytes": str(50 * MIB),
            "mem/box/memory.usage_in_bytes": str(60 * MIB),
            "mem/box/memory.stat": f"inactive_file 7\ntotal_inactive_file {2 * MIB}\n",
        }
    )
    memory = Sensors(root).read().memory  # a limit that was lowered below what is used: nothing is left
    assert memory is not None and (memory.left_bytes, memory.limit_bytes, memory.of) == (
        0,
        50 * MIB,
        "control group /box",
    )
    tree({"mem/box/memory.limit_in_bytes": "9223372036854771712"})
    memory = Sensors(root).read().memory
    assert memory is not None and memory.of == "this machine"


def psi(micros: int) -> str:
    return f"some avg10=0.00 avg60=0.00 avg300=0.00 total={micros}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


def test_pressure_is_the_share_since_the_look_before_and_the_machines_only_where_it_is_short(tree: Write) -> None:
    clock = Clock()
    root = tree(meminfo(50_000) | {"proc/pressure/memory": psi(1_000_000)})
    sensors = Sensors(root, clock=clock)
    first = sensors.read().memory
    assert first is not None and first.stall is None
    clock.now += 0.5
    tree({"proc/pressure/memory": psi(1_200_000)})
    second = sensors.read().memory
    assert second is not None and second.stall == pytest.approx(0.4)
    clock.now += 0.5
    tree(meminfo(300_000) | {"proc/pressure/memory": psi(1_400_000)})  # others' trouble: there is plenty for us
    third = sensors.read().memory
    assert third is not None and third.stall is None


def test_pressure_of_the_own_group_counts_whatever_the_machine_has(tree: Write, tmp_path: Path) -> None:
    clock = Clock()
    root = tree(
        meminfo(300_000)
        | {
            "proc/self/cgroup": "0::/box\n",
            "proc/self/mountinfo": f"31 23 0:28 / {tmp_path}/cgroup rw - cgroup2 cgroup2 rw\n",
            "cgroup/box/memory.pressure": psi(0),
        }
    )
    sensors = Sensors(root, clock=clock)
    sensors.read()
    clock.now += 1
    tree({"cgroup/box/memory.pressure": psi(250_000)})
    memory = sensors.read().memory
    assert memory is not None and memory.stall == pytest.approx(0.25)
    assert sensors.found()["memory pressure"] == "PSI of this control group"


def test_waits_idle_and_stolen_time(tree: Write) -> None:
    clock = Clock()
    stat = "cpu  1 1 1 1 1 1 1 1 0 0\ncpu0 {} 0 0 {} 0 0 0 {} 0 0\ncpu1 100 0 0 100 0 0 0 0 0 0\ncpu2 0 0 0 9 0 0 0 0\n"
    root = tree(
        {
            "proc/stat": stat.format(100, 100, 0),
            "proc/self/task/1/schedstat": "1000000000 0 5",
            "proc/self/task/2/schedstat": "0 0 0",
        }
    )
    sensors = Sensors(root, cpus=[0], clock=clock)  # cpu1 and cpu2 are not ours
    sensors.read()
    clock.now += 1
    tree(
        {
            "proc/stat": stat.format(150, 125, 25),
            "proc/self/task/1/schedstat": "1300000000 100000000 9",
            "proc/self/task/2/schedstat": "300000000 100000000 9",
        }
    )
    processor = sensors.read().processor
    assert processor is not None
    assert processor.waited == pytest.approx(0.2 / 0.8)
    assert processor.idle == pytest.approx(0.25) and processor.stolen == pytest.approx(0.25)
    assert processor.throttled is None


@pytest.mark.parametrize("version", [1, 2])
def test_time_that_the_quota_took(tree: Write, tmp_path: Path, version: int) -> None:
    clock = Clock()
    common = {"proc/self/cgroup": "0::/box\n2:cpu,cpuacct:/box\n"}
    if version == 1:
        files = {
            "proc/self/mountinfo": f"31 23 0:28 / {tmp_path}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
            "cpu/box/cpu.cfs_quota_us": "5000",
            "cpu/box/cpu.stat": "nr_periods 9\nthrottled_time {}000\n",
        }
    else:
        files = {
            "proc/self/mountinfo": f"31 23 0:28 / {tmp_path}/cpu rw - cgroup2 cgroup2 rw\n",
            "cpu/box/cpu.max": "5000 10000",
            "cpu/box/cpu.stat": "usage_usec 9\nthrottled_usec {}\n",
        }
    root = tree(common | {name: text.replace("{}", "1000000") for name, text in files.items()})
    sensors = Sensors(root, clock=clock)
    sensors.read()
    clock.now += 2
    tree({name: text.replace("{}", "2000000") for name, text in files.items() if name.endswith("cpu.stat")})
    processor = sensors.read().processor
    assert processor is not None and processor.throttled == pytest.approx(0.5)


ZONE = "sys/class/thermal/thermal_zone0/"
CHIP = "sys/class/hwmon/hwmon0/"


@pytest.mark.parametrize(
    ("files", "heat"),
    [
        (
            {"type": "cpu-thermal", "temp": "62000", "trip_point_0_type": "passive", "trip_point_0_temp": "80000"},
            Heat("cpu-thermal", 62.0, 80.0, "trip point"),
        ),
        (  # the lowest that slows the chip down; a fan's does not
            {
                "type": "x",
                "temp": "50000",
                "trip_point_0_type": "active",
                "trip_point_0_temp": "45000",
                "trip_point_1_type": "hot",
                "trip_point_1_temp": "90000",
                "trip_point_2_type": "passive",
                "trip_point_2_temp": "95000",
            },
            Heat("x", 50.0, 90.0, "trip point"),
        ),
        (
            {"type": "skin", "temp": "50000", "trip_point_0_type": "critical", "trip_point_0_temp": "70000"},
            Heat("skin", 50.0, 60.0, "below the critical trip point"),
        ),
        (
            {"type": "cpu", "temp": "50000", "trip_point_0_type": "critical", "trip_point_0_temp": "110000"},
            Heat("cpu", 50.0, 80.0, "below the critical trip point"),
        ),
        ({"type": "soc", "temp": "50000"}, Heat("soc", 50.0, 80.0, "default")),
        ({"type": "pmic", "temp": "50000"}, None),  # not a processor's, and no limit is known
        ({"type": "soc", "temp": "-273000"}, None),
        ({"type": "soc", "temp": "0"}, None),
        ({"type": "soc"}, None),
    ],
)
def test_temperature_of_zones(tree: Write, files: dict[str, str], heat: Heat | None) -> None:
    assert Sensors(tree({ZONE + name: text + "\n" for name, text in files.items()})).read().heat == heat


@pytest.mark.parametrize(
    ("files", "heat"),
    [
        ({"temp1_max": "80000", "temp1_crit": "100000"}, Heat("coretemp", 71.0, 80.0, "the sensor's maximum")),
        ({"temp1_crit": "100000"}, Heat("coretemp", 71.0, 90.0, "below the sensor's critical value")),
        ({}, Heat("coretemp", 71.0, 80.0, "default")),
        ({"name": "nvme", "temp1_max": "70000"}, None),  # a drive
    ],
)
def test_temperature_of_chips(tree: Write, files: dict[str, str], heat: Heat | None) -> None:
    chip = {"name": "coretemp", "temp1_input": "71000"} | files
    assert Sensors(tree({CHIP + name: text for name, text in chip.items()})).read().heat == heat


def test_the_sensor_nearest_to_its_limit_counts(tree: Write) -> None:
    root = tree(
        {
            ZONE + "type": "cpu",
            ZONE + "temp": "70000",
            CHIP + "name": "soc_thermal",
            CHIP + "temp1_input": "60000",
            CHIP + "temp1_max": "65000",
        }
    )
    heat = Sensors(root).read().heat
    assert heat is not None and heat.name == "soc_thermal" and heat.margin_c == pytest.approx(5.0)


def test_batteries_of_the_machine_and_not_of_a_mouse(tree: Write) -> None:
    supply = "sys/class/power_supply/"
    root = tree(
        {
            supply + "AC/type": "Mains",
            supply + "BAT0/type": "Battery",
            supply + "BAT0/capacity": "55",
            supply + "BAT0/status": "Discharging",
            supply + "mouse/type": "Battery",
            supply + "mouse/scope": "Device",
            supply + "mouse/capacity": "3",
        }
    )
    clock = Clock()
    sensors = Sensors(root, clock=clock)
    assert sensors.read().battery == Battery("BAT0", 55.0, True)
    tree({supply + "BAT0/status": "Charging"})
    assert sensors.read().battery == Battery("BAT0", 55.0, True)  # looked at each two seconds
    clock.now += 2
    assert sensors.read().battery == Battery("BAT0", 55.0, False)
    assert sensors.found()["battery"] == "BAT0 55%, on power"


# -- the real kernel ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cgroups")
def test_a_process_that_eats_memory_in_a_real_group_sees_what_is_left(tmp_path: Path) -> None:
    program = (
        "import json\nfrom genmote.device.sensors import Sensors\nsensors, found, held = Sensors(), [], []\n"
        "for _ in range(4):\n"
        "    memory = sensors.read().memory\n    found.append((memory.left_bytes, memory.limit_bytes, memory.of))\n"
        "    held.append(bytearray(b'1') * (20 << 20))\n"
        "print(json.dumps(found))"
    )
    with open(tmp_path / "out", "wb") as out:
        report = jail.run([sys.executable, "-c", program], Limits(memory_bytes=160 * MIB), stdout=out)
    assert report.status == 0
    looks = json.loads((tmp_path / "out").read_text())
    assert {limit for _, limit, _ in looks} == {160 * MIB}
    assert all(of.startswith("control group /") and "genmote-jail-" in of for _, _, of in looks)
    for before, after in itertools.pairwise(looks):
        assert 18 * MIB <= before[0] - after[0] <= 24 * MIB


def test_threads_wait_when_other_processes_spin() -> None:
    sensors = Sensors()
    if not (Path("/proc/self/schedstat").exists() and Path("/proc/stat").exists()):
        pytest.skip("this kernel does not count waits")
    spin = [sys.executable, "-I", "-S", "-c", "while True: pass"]
    spinning = [subprocess.Popen(spin) for _ in range(3 * len(os.sched_getaffinity(0)))]
    try:
        time.sleep(0.2)
        sensors.read()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            pass
        processor = sensors.read().processor
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    assert processor is not None and processor.waited is not None and processor.idle is not None
    assert processor.waited > 0.4 and processor.idle < 0.3


def test_a_look_is_cheap() -> None:
    sensors = Sensors()
    sensors.read()
    took = []
    for _ in range(20):
        began = time.thread_time()
        sensors.read()
        took.append(time.thread_time() - began)
    assert sorted(took)[10] < 0.005  # of the 250 ms between two looks
