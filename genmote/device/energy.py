"""Energy, and how it was had: measured by the processor's counters or the board's sensor, or modelled, or not at all.

RAPL (Intel and AMD, /sys/class/powercap) counts microjoules of the processor package, without the rest of the board.
A board's sensor (INA219, INA3221 and their kin, /sys/class/hwmon) tells watts, which are sampled and added up.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from genmote.device.profile import Profile

MEASURED, MODELLED, UNAVAILABLE = "measured", "modelled", "unavailable"
_SENSORS = ("ina", "ltc29", "max34", "rpi_volt", "tegra")  # hwmon chips that watch a board's supply
_SAMPLE_S = 0.05


@dataclass(frozen=True)
class Energy:
    """Joules, `how` they were had (one of the record's words), and of what."""

    joules: float | None
    how: str
    of: str


class Source(Protocol):
    """Counts energy from `start` on; `stop` returns the joules, or None when it failed on the way."""

    of: str

    def start(self) -> None: ...
    def stop(self) -> float | None: ...


def find(root: Path = Path("/")) -> Source | None:
    """The best readable source here: the board's sensor counts more than the package's counters do."""
    return _hwmon(root) or _rapl(root)


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
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if not _text(chip / "name").startswith(_SENSORS):
            continue
        powers = [path for path in sorted(chip.glob("power*_input")) if _number(path) is not None]
        if powers:
            return Sensor(_text(chip / "name"), [(path, None) for path in powers[:1]])
        pairs = [(chip / f"in{i}_input", chip / f"curr{i}_input") for i in range(1, 9)]
        rails = [(volts, amps) for volts, amps in pairs if None not in (_number(volts), _number(amps))]
        if rails:
            # INA3221 on a Jetson: its first channel is the whole module's supply.
            return Sensor(_text(chip / "name"), list(rails[:1]))
    return None


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


class Sensor:
    """A board's power sensor, sampled 20 times a second; the watts between two samples are their mean."""

    def __init__(self, name: str, rails: list[tuple[Path, Path | None]]) -> None:
        self.of = f"board's supply ({name})"
        self._rails = rails
        self._joules = 0.0
        self._failed = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._joules, self._failed = 0.0, False
        self._over.clear()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> float | None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        return None if self._failed else self._joules

    def _sample(self) -> None:
        before, watts = time.monotonic(), self.watts()
        over = False
        while not over and not self._failed:
            over = self._over.wait(_SAMPLE_S)
            now, next_watts = time.monotonic(), self.watts()
            if watts is None or next_watts is None:
                self._failed = True
                return
            self._joules += (watts + next_watts) / 2 * (now - before)
            before, watts = now, next_watts

    def watts(self) -> float | None:
        """The power now, W; None when the sensor cannot be read."""
        total = 0.0
        for first, amps in self._rails:
            one = _number(first)
            two = None if amps is None else _number(amps)
            if one is None or (amps is not None and two is None):
                return None
            total += one / 1e6 if two is None else one * two / 1e6  # uW, or mV x mA
        return total


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
