"""What a run takes: time, processor time, bytes read and written, peak memory, energy. Each figure says how it was had.

>>> with Meter() as meter:
...     total = sum(range(1000))
>>> meter.reading.wall_s > 0 and meter.reading.energy.how in ("measured", "modelled", "unavailable")
True
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genmote import records
from genmote.device import energy
from genmote.device.hierarchy import CONTROLLERS, mounts
from genmote.device.profile import Profile
from genmote.errors import SpecError


@dataclass(frozen=True)
class Reading:
    """What happened between a meter's start and its end; None where this system does not tell.

    `read_bytes` and `written_bytes` went to or came from a disk; `asked_bytes` were read by system calls, wherever
    they came from (pages of mapped files are in none of them but `read_bytes`). `peak_rss_bytes` is the process's most
    resident memory within the metered time where the kernel lets it be reset, else since its start (`peak_since`).
    """

    wall_s: float
    cpu_s: float
    read_bytes: int | None
    written_bytes: int | None
    asked_bytes: int | None
    peak_rss_bytes: int | None
    peak_since: str
    cgroup_peak_bytes: int | None
    major_faults: int | None
    energy: energy.Energy
    tokens: int | None = None

    def values(self) -> dict[str, Any]:
        """The figures as a record holds them: flat, units in the keys, what is not known left out."""
        found: dict[str, Any] = {
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "asked_bytes": self.asked_bytes,
            "peak_rss_bytes": self.peak_rss_bytes,
            "peak_since": self.peak_since,
            "cgroup_peak_bytes": self.cgroup_peak_bytes,
            "major_faults": self.major_faults,
            "tokens": self.tokens,
            **self.energy.values(),
        }
        if self.tokens and self.energy.joules is not None:
            found["energy_mj_per_token"] = 1e3 * self.energy.joules / self.tokens
        if self.tokens and self.wall_s > 0:
            found["tokens_per_s"] = self.tokens / self.wall_s
        return {key: value for key, value in found.items() if value is not None}

    def record(self, what: str, **provenance: Any) -> records.Record:
        """The reading as a record; `provenance` is any other field of it (model_sha256, seed, threads)."""
        return records.Record(what=what, values=self.values(), energy=self.energy.how, **provenance)


class Meter:
    """Measures a block of this process, or another process `pid`, from `start` to `stop` (or as a context).

    `profile` models the energy where none can be measured. Set `tokens` in the block to have figures for each token.
    """

    def __init__(self, *, profile: Profile | None = None, pid: int | None = None, root: Path = Path("/")) -> None:
        self.tokens: int | None = None
        self._pid = pid or os.getpid()
        self._proc = Path(f"/proc/{self._pid}")
        if pid is not None and not self._proc.exists():
            raise SpecError(f"process {pid} is not there: wanted one that runs")
        self._profile = profile
        self._source = energy.find(root)
        self._reading: Reading | None = None

    @property
    def reading(self) -> Reading:
        """What was measured; raises SpecError before the meter has stopped."""
        if self._reading is None:
            raise SpecError("the meter has not stopped yet: read it after its block")
        return self._reading

    def __enter__(self) -> Meter:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin; a second start begins anew."""
        self._reading = None
        self._since = "start of the block" if _reset_peak(self._proc) else "start of the process"
        if self._source is not None:
            self._source.start()
        self._io = _io(self._proc)
        self._stat = _stat(self._proc)
        self._began = time.monotonic()

    def stop(self) -> Reading:
        """End, and return what was measured."""
        wall_s = time.monotonic() - self._began
        io, (cpu_s, faults) = _io(self._proc), _stat(self._proc)
        joules = self._source.stop() if self._source is not None else None
        cpu_s -= self._stat[0]

        def since(key: str) -> int | None:
            return io[key] - self._io[key] if key in io and key in self._io else None

        self._reading = Reading(
            wall_s=wall_s,
            cpu_s=cpu_s,
            read_bytes=since("read_bytes"),
            written_bytes=since("write_bytes"),
            asked_bytes=since("rchar"),
            peak_rss_bytes=_peak(self._proc),
            peak_since=self._since,
            cgroup_peak_bytes=cgroup_peak(self._proc),
            major_faults=None if faults is None or self._stat[1] is None else faults - self._stat[1],
            energy=self._energy(joules, wall_s, cpu_s),
            tokens=self.tokens,
        )
        return self._reading

    def _energy(self, joules: float | None, wall_s: float, cpu_s: float) -> energy.Energy:
        if joules is not None and self._source is not None:
            return energy.Energy(joules, energy.MEASURED, self._source.of)
        if self._profile is not None:
            return energy.modelled(self._profile, wall_s, cpu_s)
        return energy.Energy(None, energy.UNAVAILABLE, "no counter or sensor can be read, and no profile was given")


def cgroup_peak(proc: Path = Path("/proc/self")) -> int | None:
    """The most memory that the process's control group used, page cache included; None where nothing counts it.

    It is the group's figure since it was made: of this process alone only where it runs in a group of its own (a jail).
    """
    found = mounts(proc)
    if CONTROLLERS["memory"][0] in found.own_v1:
        path = found.own_v1["memory"] / "memory.max_usage_in_bytes"
    elif found.own_v2 is not None:
        path = found.own_v2 / "memory.peak"
    else:
        return None
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _reset_peak(proc: Path) -> bool:
    """Set the high-water mark of resident memory to what is resident now."""
    try:
        (proc / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _io(proc: Path) -> dict[str, int]:
    with contextlib.suppress(OSError, ValueError):
        lines = (line.split(":") for line in (proc / "io").read_text().splitlines())
        return {key: int(value) for key, value in lines}
    return {}


def _peak(proc: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "status").read_text(errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _stat(proc: Path) -> tuple[float, int | None]:
    """Processor seconds and major faults of the process, those of its ended children included."""
    if proc.name == str(os.getpid()):
        import resource

        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
        return cpu_s, own.ru_majflt + children.ru_majflt
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = (proc / "stat").read_text(errors="replace").rpartition(")")[2].split()
        ticks = sum(int(field) for field in fields[11:15])
        return ticks / os.sysconf("SC_CLK_TCK"), int(fields[9]) + int(fields[10])
    return 0.0, None
