"""What this machine shows of its condition right now: memory, processors, temperature, battery.

Everything is read from Linux's files and costs a fraction of a millisecond; what a system does not show is None, never
a guess. Rates are over the time since the look before: the first look has none.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from genmote.device.hierarchy import mounts

DEFAULT_HOT_C = 80.0  # where no trip point or maximum tells: a Raspberry Pi slows itself down from here to 85 °C
BELOW_CRITICAL_C = 10.0  # a critical trip point turns the machine off: the limit lies so much below it
SHORT = 0.15  # the machine's own memory pressure is ours to relieve only where less than this share is available
_MACHINE = "this machine"
_SLOW_S = 2.0  # between two looks at thermal zones and batteries: they change slowly, and some are slow to read
_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu", "soc", "scpi", "scmi")  # hwmon chips that are a processor's
_PROCESSOR_ZONES = re.compile(r"cpu|soc|pkg|core|cluster|gpu|tj|therm", re.IGNORECASE)


@dataclass(frozen=True)
class Memory:
    """`left_bytes` of `limit_bytes`: what can still be taken before the tightest limit, that of the machine or of a
    control group (`of`). Page cache that lies idle counts as left."""

    left_bytes: int
    limit_bytes: int
    of: str
    stall: float | None = None  # share of the time in which some task waited for memory (PSI)
    faults_per_s: float | None = None  # pages of this process that had to be read again from the disk


@dataclass(frozen=True)
class Processor:
    """Of the time in which this process's threads wanted a core: the share they `waited`. `idle`: cores, of those it
    may use, that stood still. `stolen`: the share that the hypervisor took; `throttled`: that the quota took."""

    waited: float | None = None
    idle: float | None = None
    stolen: float | None = None
    throttled: float | None = None


@dataclass(frozen=True)
class Heat:
    """The sensor nearest to its limit; `limit_of` says where the limit is from."""

    name: str
    degrees_c: float
    limit_c: float
    limit_of: str

    @property
    def margin_c(self) -> float:
        return self.limit_c - self.degrees_c

    def __str__(self) -> str:
        return f"{self.name} {self.degrees_c:.0f} °C, limit {self.limit_c:.0f} °C ({self.limit_of})"


@dataclass(frozen=True)
class Battery:
    """The emptiest battery that feeds the machine."""

    name: str
    percent: float
    discharging: bool


@dataclass(frozen=True)
class Seen:
    """One look at everything."""

    memory: Memory | None = None
    processor: Processor | None = None
    heat: Heat | None = None
    battery: Battery | None = None


class Sensors:
    """Reads the sensors under `root`. `cpus`: those that this process may run on."""

    def __init__(
        self,
        root: Path = Path("/"),
        cpus: Iterable[int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if cpus is None:
            cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        self.root, self._cpus, self._clock = root, {f"cpu{cpu}" for cpu in cpus}, clock
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._groups = _memory_groups(root)
        self._cpu_group = _cpu_group(root)
        self._zones = _zones(root)
        self._chips = _chips(root)
        self._batteries = _batteries(root)
        self._before: dict[str, tuple[float, float]] = {}
        self._slow: tuple[float, Heat | None, Battery | None] = (-_SLOW_S, None, None)

    def read(self) -> Seen:
        """One look."""
        now = self._clock()
        at, heat, battery = self._slow
        if now - at >= _SLOW_S:
            heat, battery = self._heat(), self._battery()
            self._slow = (now, heat, battery)
        return Seen(self._memory(now), self._processor(now), heat, battery)

    def found(self) -> dict[str, str]:
        """What there is to be seen on this machine, and from where: sensor → a line for people."""
        seen = self.read()
        told = dict.fromkeys(("memory", "memory pressure", "processor", "temperature", "battery"), "not shown here")
        if seen.memory is not None:
            left, limit = seen.memory.left_bytes, seen.memory.limit_bytes
            unit, digits, name = (1e9, 1, "GB") if limit >= 1e9 else (1e6, 0, "MB")  # as the memory is told beside it
            told["memory"] = f"{left / unit:.{digits}f} of {limit / unit:.{digits}f} {name} left, {seen.memory.of}"
        if (pressure := self._pressure()) is not None:
            told["memory pressure"] = "PSI of " + ("this control group" if pressure[1] else "the whole machine")
        ways = {
            "our threads' waits": _text(self.root / "proc/self/schedstat") is not None,
            "idle and stolen time": bool(self._ticks()),
            "the quota's throttling": self._cpu_group is not None,
        }
        if any(ways.values()):
            told["processor"] = ", ".join(way for way, there in ways.items() if there)
        if seen.heat is not None:
            told["temperature"] = str(seen.heat)
        if seen.battery is not None:
            how = "discharging" if seen.battery.discharging else "on power"
            told["battery"] = f"{seen.battery.name} {seen.battery.percent:.0f}%, {how}"
        return told

    # -- memory -------------------------------------------------------------------------------------------------------

    def _memory(self, now: float) -> Memory | None:
        found = _limits(self.root, self._groups)
        if not found:
            return None
        stall = None
        if (pressure := self._pressure()) is not None:
            micros, own = pressure
            share = self._rate("stall", now, micros / 1e6)
            short = [left < SHORT * limit for left, limit, of in found if of == _MACHINE]
            stall = share if own or all(short) else None
        faults = _fields(self.root / "proc/self/stat")
        rate = self._rate("faults", now, float(faults[9])) if len(faults) > 9 else None
        return Memory(*min(found), stall, rate)

    def _pressure(self) -> tuple[int, bool] | None:
        """Microseconds for which some task has waited for memory, and whether in our own group."""
        for group in self._groups[:1]:
            if group.version == 2 and (micros := _pressure_total(group.folder / "memory.pressure")) is not None:
                return micros, True
        micros = _pressure_total(self.root / "proc/pressure/memory")
        return None if micros is None else (micros, False)

    # -- processors ---------------------------------------------------------------------------------------------------

    def _processor(self, now: float) -> Processor | None:
        ran = waited = 0
        for file in _children(self.root / "proc/self/task", "schedstat"):
            numbers = (_text(file) or "").split()
            if len(numbers) >= 2:
                ran, waited = ran + int(numbers[0]), waited + int(numbers[1])
        ran_s, waited_s = self._since("ran", ran / 1e9), self._since("waited", waited / 1e9)
        share = None
        if ran_s is not None and waited_s is not None and ran_s + waited_s > 0.01:  # less says nothing
            share = max(0.0, waited_s) / max(ran_s + waited_s, 1e-9)
        ticks = self._ticks()
        idle = stolen = None
        if ticks:
            every, still, taken = (sum(column) for column in zip(*ticks, strict=True))
            all_, still_, taken_ = (
                self._since(name, float(value))
                for name, value in (("ticks", every), ("idle", still), ("stolen", taken))
            )
            if all_ and still_ is not None and taken_ is not None:
                idle, stolen = max(0.0, still_ / all_) * len(ticks), max(0.0, taken_ / all_)
        throttled = None
        if self._cpu_group is not None:
            version, folder = self._cpu_group
            stat = _table(folder / "cpu.stat")
            micros = stat.get("throttled_usec") if version == 2 else stat.get("throttled_time", 0) / 1e3
            throttled = None if micros is None else self._rate("throttled", now, micros / 1e6)
        if (share, idle, stolen, throttled) == (None,) * 4 and not ticks and not ran:
            return None
        return Processor(share, idle, stolen, throttled)

    def _ticks(self) -> list[tuple[int, int, int]]:
        """(all, idle, stolen) ticks of each processor that we may use."""
        found = []
        for line in (_text(self.root / "proc/stat") or "").splitlines():
            name, *counts = line.split()
            if name in self._cpus and len(counts) >= 8:
                user, nice, system, idle, wait, irq, soft, steal = map(int, counts[:8])
                found.append((user + nice + system + idle + wait + irq + soft + steal, idle + wait, steal))
        return found

    # -- what changes slowly ------------------------------------------------------------------------------------------

    def _heat(self) -> Heat | None:
        found = []
        for name, file, limit_c, limit_of in (*self._zones, *self._chips):
            milli = _number(file)
            if milli is not None and -40_000 < milli < 150_000 and milli != 0:  # 0 is what an absent sensor shows
                found.append(Heat(name, milli / 1e3, limit_c, limit_of))
        return min(found, key=lambda heat: heat.margin_c, default=None)

    def _battery(self) -> Battery | None:
        found = []
        for folder in self._batteries:
            percent = _number(folder / "capacity")
            if percent is not None and 0 <= percent <= 100:
                found.append(Battery(folder.name, float(percent), _text(folder / "status") == "Discharging"))
        return min(found, key=lambda battery: battery.percent, default=None)

    # -- differences --------------------------------------------------------------------------------------------------

    def _since(self, name: str, value: float) -> float | None:
        """How much `value` grew since the look before; None at the first."""
        before = self._before.get(name)
        self._before[name] = (0.0, value)
        return None if before is None else value - before[1]

    def _rate(self, name: str, now: float, value: float) -> float | None:
        """How much `value` grew a second since the look before; None at the first."""
        before = self._before.get(name)
        self._before[name] = (now, value)
        if before is None or now <= before[0]:
            return None
        return max(0.0, value - before[1]) / (now - before[0])


def memory(root: Path = Path("/")) -> Memory | None:
    """What is left of memory now, without rates; None where nothing tells."""
    found = _limits(root, _memory_groups(root))
    return Memory(*min(found)) if found else None


def most_memory(root: Path = Path("/")) -> tuple[int, str] | None:
    """(bytes, whose limit that is): what this process may have at most, however little is used now: the machine's
    memory, or the smallest limit of the control groups that it is in. None where nothing tells."""
    found = [(limit, whose) for _, limit, whose in _limits(root, _memory_groups(root))]
    return min(found, key=lambda each: each[0]) if found else None


def _limits(root: Path, groups: Iterable[_Group]) -> list[tuple[int, int, str]]:
    """(bytes left, limit, whose) of the machine and of each group that has a limit."""
    machine = _table(root / "proc/meminfo")
    total, available = machine.get("MemTotal"), machine.get("MemAvailable")
    found = [(available * 1024, total * 1024, _MACHINE)] if total and available is not None else []
    for group in groups:
        if (left := group.left(total * 1024 if total else None)) is not None:
            found.append((max(0, left[0]), left[1], f"control group {group.name}"))
    return found


@dataclass(frozen=True)
class _Group:
    """A control group with a memory limit: our own, or one above it."""

    version: int
    folder: Path
    name: str

    def left(self, machine_bytes: int | None) -> tuple[int, int] | None:
        """(bytes left, limit), or None where the group has no limit."""
        if self.version == 1:
            limits, used = ["memory.limit_in_bytes"], "memory.usage_in_bytes"
        else:
            limits, used = ["memory.max", "memory.high"], "memory.current"
        numbers = [n for name in limits if (n := _number(self.folder / name)) is not None]
        usage = _number(self.folder / used)
        if not numbers or usage is None or (machine_bytes is not None and min(numbers) >= machine_bytes):
            return None
        stat = _table(self.folder / "memory.stat")
        idle = stat.get("total_inactive_file" if self.version == 1 else "inactive_file", 0)
        return min(numbers) - max(0, usage - idle), min(numbers)


def _memory_groups(root: Path) -> list[_Group]:
    """Our own memory group and those above it, nearest first."""
    found = mounts(root / "proc/self")
    if "memory" in found.own_v1:
        version, folder, top = 1, found.own_v1["memory"], found.v1["memory"]
    elif found.own_v2 is not None and found.v2 is not None:
        version, folder, top = 2, found.own_v2, found.v2
    else:
        return []
    chain = [folder, *(above for above in folder.parents if above == top or top in above.parents)]
    return [_Group(version, each, f"/{each.relative_to(top)}".replace("/.", "/")) for each in chain]


def _cpu_group(root: Path) -> tuple[int, Path] | None:
    """Our group's folder with cpu.stat, where a quota is set."""
    found = mounts(root / "proc/self")
    if "cpu" in found.own_v1:
        folder = found.own_v1["cpu"]
        return (1, folder) if (_number(folder / "cpu.cfs_quota_us") or -1) > 0 else None
    if found.own_v2 is not None and (_text(found.own_v2 / "cpu.max") or "max").split()[0] != "max":
        return 2, found.own_v2
    return None


def _zones(root: Path) -> list[tuple[str, Path, float, str]]:
    """Thermal zones with their limits: (name, file, limit °C, where the limit is from)."""
    found = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name = _text(zone / "type") or zone.name
        trips: dict[str, float] = {}
        for kind_file in zone.glob("trip_point_*_type"):
            kind = _text(kind_file) or ""
            milli = _number(kind_file.with_name(kind_file.name.replace("_type", "_temp")))
            if milli is not None and 30_000 <= milli <= 150_000:
                trips[kind] = min(trips.get(kind, 1e9), milli / 1e3)
        known = [trips[kind] for kind in ("passive", "hot") if kind in trips]
        if known:
            found.append((name, zone / "temp", min(known), "trip point"))
        elif "critical" in trips:
            limit_c = min(DEFAULT_HOT_C, trips["critical"] - BELOW_CRITICAL_C)
            found.append((name, zone / "temp", limit_c, "below the critical trip point"))
        elif _PROCESSOR_ZONES.search(name):
            found.append((name, zone / "temp", DEFAULT_HOT_C, "default"))
    return found


def _chips(root: Path) -> list[tuple[str, Path, float, str]]:
    """Processors' sensors in hwmon, as `_zones` gives them."""
    found = []
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = _text(chip / "name") or ""
        if not name.startswith(_CHIPS):
            continue
        for file in sorted(chip.glob("temp*_input")):
            most, critical = (_number(file.with_name(file.name.replace("_input", end))) for end in ("_max", "_crit"))
            if most is not None and 30_000 <= most <= 150_000:
                found.append((name, file, most / 1e3, "the sensor's maximum"))
            elif critical is not None and 30_000 <= critical <= 150_000:
                found.append((name, file, critical / 1e3 - BELOW_CRITICAL_C, "below the sensor's critical value"))
            else:
                found.append((name, file, DEFAULT_HOT_C, "default"))
    return found


def _batteries(root: Path) -> list[Path]:
    """Batteries that feed the machine; those of a mouse or a pen have the scope Device."""
    folders = sorted((root / "sys/class/power_supply").glob("*"))
    return [f for f in folders if _text(f / "type") == "Battery" and _text(f / "scope") != "Device"]


def _children(folder: Path, name: str) -> list[Path]:
    try:
        return [folder / entry / name for entry in os.listdir(folder)]
    except OSError:
        return []


def _pressure_total(path: Path) -> int | None:
    """The `some` line's total, microseconds."""
    found = re.search(r"^some .*\btotal=(\d+)", _text(path) or "", re.MULTILINE)
    return int(found[1]) if found else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def _fields(path: Path) -> list[str]:
    """What follows the command's name in a stat file: state first."""
    return (_text(path) or "").rpartition(")")[2].split()


def _table(path: Path) -> dict[str, int]:
    rows = (line.replace(":", " ").split() for line in (_text(path) or "").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}
