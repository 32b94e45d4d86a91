"""Energy, and how it was had: measured by the processor's counters or the board's sensor, or modelled, or not at all.

RAPL (Intel and AMD, /sys/class/powercap) counts microjoules of the processor package, without the rest of the board.
A board's sensor (INA219, INA3221 and their kin, /sys/class/hwmon) tells watts, which are sampled and added up; so does
the power chip of a Raspberry Pi 5 (vcgencmd pmic_read_adc).
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from genmote.device.profile import Profile

MEASURED, MODELLED, UNAVAILABLE = "measured", "modelled", "unavailable"
_SENSORS = ("ina", "ltc29", "max34", "rpi_volt", "tegra")  # hwmon chips that watch a board's supply
_WHOLE = ("VDD_IN", "POM_5V_IN")  # labels of the channel that sees all that a Jetson module takes
_SAMPLE_S = 0.05
_SLOW_SAMPLE_S = 0.5


@dataclass(frozen=True)
class Energy:
    """Joules, `how` they were had (one of the record's words), and of what."""

    joules: float | None
    how: str
    of: str

    def values(self) -> dict[str, Any]:
        """As flat figures; without joules where there are none."""
        known = {} if self.joules is None else {"energy_j": self.joules}
        return known | {"energy": self.how, "energy_of": self.of}

    def __str__(self) -> str:
        return f"energy {self.how}" if self.joules is None else f"energy {self.joules:.3g} J ({self.how}: {self.of})"


class Source(Protocol):
    """Counts energy from `start` on; `stop` returns the joules, or None when it failed on the way."""

    of: str

    def start(self) -> None: ...
    def stop(self) -> float | None: ...


def find(root: Path = Path("/")) -> Source | None:
    """The best readable source here: the board's sensor counts more than the package's counters do."""
    return _hwmon(root) or _pmic() or _rapl(root)


def _rapl(root: Path) -> Rapl | None:
    packages = []
    for zone in sorted((root / "sys/class/powercap").glob("*-rapl:[0-9]*")):
        # A zone inside a package (intel-rapl:0:1, its cores or memory) is part of the package's count already.
        if (
            zone.name.count(":") == 1
            and _text(zone / "name").startswith("package")
            and _number(zone / "energy_uj") is not None
        ):
            packages.append(zone)
    return Rapl(packages) if packages else None


def _hwmon(root: Path) -> Sensor | None:
    rails: list[_Rail] = []
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = _text(chip / "name")
        if not name.startswith(_SENSORS):
            continue
        powers = [path for path in sorted(chip.glob("power*_input")) if _number(path) is not None]
        if powers:
            return Sensor(f"board's supply ({name})", [_Rail("", powers[0])])
        # Channels 1 to 3; what an INA3221 shows above them are shunt voltages and a sum.
        for i in range(1, 4):
            volts, amps = chip / f"in{i}_input", chip / f"curr{i}_input"
            if None not in (_number(volts), _number(amps)):
                rails.append(_Rail(_text(chip / f"in{i}_label"), volts, amps))
    whole = [rail for rail in rails if rail.label in _WHOLE]
    if whole:
        return Sensor(f"board's supply ({whole[0].label})", whole[:1])
    if rails and all(rail.label for rail in rails):
        return Sensor(f"rails {' + '.join(rail.label for rail in rails)}", rails)
    # Without labels: the first channel is the supply, as on boards that have but one.
    return Sensor("board's supply (first channel)", rails[:1]) if rails else None


def _pmic() -> Pmic | None:
    """A Raspberry Pi 5's power chip, where its firmware tells."""
    if (command := shutil.which("vcgencmd")) is None:
        return None
    found = Pmic(command)
    return found if found.watts() is not None else None


class Rapl:
    """The packages' energy counters, which wrap around."""

    def __init__(self, zones: list[Path]) -> None:
        self.of = "processor package (RAPL)"
        self._zones = zones
        self._first: list[int] = []

    def start(self) -> None:
        self._first = [_number(zone / "energy_uj") or 0 for zone in self._zones]

    def stop(self) -> float | None:
        total = 0
        for zone, first in zip(self._zones, self._first, strict=True):
            last = _number(zone / "energy_uj")
            if last is None:
                return None
            span = (_number(zone / "max_energy_range_uj") or 0) + 1
            total += last - first if last >= first else last - first + span
        return total / 1e6


class Sampled:
    """Watts that are sampled in the background and added up; between two samples their mean is taken."""

    def __init__(self, of: str, every_s: float) -> None:
        self.of = of
        self._every_s = every_s
        self._joules = 0.0
        self._began, self._ended = 0.0, float("inf")
        self._failed = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._joules, self._failed = 0.0, False
        self._began, self._ended = time.monotonic(), float("inf")
        self._over.clear()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> float | None:
        self._ended = time.monotonic()
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        return None if self._failed else self._joules

    def _sample(self) -> None:
        before, watts = self._began, self.watts()
        over = False
        while not over and not self._failed:
            over = self._over.wait(self._every_s)
            # On a busy machine this thread comes late: what is counted ends where `stop` was called.
            now, next_watts = min(time.monotonic(), self._ended), self.watts()
            if watts is None or next_watts is None:
                self._failed = True
                return
            self._joules += (watts + next_watts) / 2 * (now - before)
            before, watts = now, next_watts

    def watts(self) -> float | None:
        """The power now, W; None when it cannot be read."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Rail:
    """One channel of a sensor: a power, or a voltage and a current."""

    label: str
    first: Path
    amps: Path | None = None


class Sensor(Sampled):
    """A board's power sensor, sampled 20 times a second."""

    def __init__(self, of: str, rails: list[_Rail]) -> None:
        super().__init__(of, _SAMPLE_S)
        self._rails = rails

    def watts(self) -> float | None:
        total = 0.0
        for rail in self._rails:
            one = _number(rail.first)
            two = None if rail.amps is None else _number(rail.amps)
            if one is None or (rail.amps is not None and two is None):
                return None
            total += one / 1e6 if two is None else one * two / 1e6  # uW, or mV x mA
        return total


class Pmic(Sampled):
    """The rails of a Raspberry Pi 5 as its power chip measures them, twice a second: each look starts a program.

    What goes to USB devices and what the regulators lose is not in it: the board takes somewhat more.
    """

    def __init__(self, command: str = "vcgencmd") -> None:
        super().__init__("board's rails (Raspberry Pi 5 PMIC; without USB and the regulators' losses)", _SLOW_SAMPLE_S)
        self._command = command

    def watts(self) -> float | None:
        try:
            told = subprocess.run(
                [self._command, "pmic_read_adc"], capture_output=True, text=True, timeout=2, errors="replace"
            )
        except (OSError, subprocess.SubprocessError):
            return None
        found = re.findall(r"^\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]\s*$", told.stdout, re.MULTILINE)
        amps = {rail: float(value) for rail, unit, value in found if unit == "A"}
        volts = {rail: float(value) for rail, unit, value in found if unit == "V"}
        both = amps.keys() & volts.keys()  # the 5 V input and the clock's battery have no current
        return sum(amps[rail] * volts[rail] for rail in both) if both else None


def modelled(profile: Profile, wall_s: float, cpu_s: float) -> Energy:
    """Energy that a board of this profile takes: idle power all the time, and the share of load that the CPU time is.

    energy = idle W x wall time + (load W - idle W) x CPU time / cores.
    """
    if profile.power is None:
        return Energy(None, UNAVAILABLE, "the profile tells no power")
    power = profile.power
    busy_s = min(cpu_s / profile.compute.cores, wall_s)
    joules = power.idle_w * wall_s + (power.load_w - power.idle_w) * busy_s
    return Energy(joules, MODELLED, f"{profile.title}: {power.idle_w:g} W idle, {power.load_w:g} W with all cores busy")


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdigit() else None
