"""A control group with limits: made, verified by reading back, counted and removed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from genmote.device import maker
from genmote.device.hierarchy import CONTROLLERS, LEAF, PREFIX, Mounts, Place, hand_out, mounts, places
from genmote.device.sizes import meant
from genmote.errors import NoJailError, SpecError, UserError

#: CPU time is given out once in this period: with the kernel's usual 100 ms a process that has used its share stands
#: still for so long that single tokens take twenty times the median.
PERIOD_US = 10_000
LEAST_US = 1_000  # the kernel's least quota in a period
_READ_BPS = "blkio.throttle.read_bps_device"


@dataclass(frozen=True)
class Limits:
    """What a group may use; None is no limit. `cores` is a list as in ``0-1,3``."""

    memory_bytes: int | None = None
    cpus: float | None = None
    disk_read_bytes_per_s: int | None = None
    cores: str | None = None

    def check(self) -> None:
        """Raise SpecError, with all that no group could be given."""
        least = LEAST_US / PERIOD_US
        found = []
        if self.memory_bytes is not None and self.memory_bytes < 1 << 20:
            found.append(f"memory of {self.memory_bytes} B{meant(self.memory_bytes)}: wanted at least 1.05MB")
        if self.cpus is not None and not least <= self.cpus <= 4096:
            found.append(f"cpus={self.cpus:g}: wanted {least:g} or more processors")
        if found:
            raise SpecError("; ".join(found))


@dataclass(frozen=True)
class Usage:
    """What a group has used; None where this kernel does not tell."""

    peak_bytes: int | None = None
    limit_hits: int | None = None
    oom_kills: int | None = None
    refault_bytes: int | None = None
    scanned_bytes: int | None = None
    major_faults: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    cpu_s: float | None = None
    throttled_s: float | None = None


class Group:
    """One cgroup (several folders in v1) with limits. Use :meth:`make`, then :meth:`remove` in a ``finally``."""

    def __init__(self, name: str, made: dict[str, Place], not_limited: list[str]) -> None:
        self.name = name
        self.not_limited = not_limited
        self._folders = {key: (place.version, place.folder / name) for key, place in made.items()}

    @classmethod
    def make(cls, limits: Limits, devices: list[str], *, inside: str | None = None) -> Group:
        """Make a group with `limits`; the disk limit is for the block `devices` ("254:0").

        Raises SpecError for impossible limits, NoJailError where no group can be made or the kernel does not keep its
        limits, UserError where it refuses one.
        """
        limits.check()
        wanted = {"memory", "cpu", "disk"} | ({"cores"} if limits.cores else set())
        found = mounts(inside=inside)
        made = places(wanted, found)
        _sweep({place.folder for place in made.values()} | set(found.own_v1.values()))
        group = cls(f"{PREFIX}{maker.sign()}-{os.urandom(3).hex()}", made, [])
        try:
            group._create()
            group._limit(limits, devices, found)
        except BaseException:
            group.remove()
            raise
        return group

    @property
    def versions(self) -> list[int]:
        return sorted({version for version, _ in self._folders.values()})

    def _create(self) -> None:
        for version, folder in dict.fromkeys(self._folders.values()):
            try:
                folder.mkdir()
                if version == 2:
                    given = {CONTROLLERS[key][1] for key, (v, _) in self._folders.items() if v == 2}
                    # A jail within this one needs a place that holds groups only, so processes go one level down.
                    hand_out(folder, given)
                    (folder / LEAF).mkdir()
            except OSError as fault:
                raise NoJailError(
                    f"no jail can be made here: {folder.parent}: {fault.strerror}; wanted a cgroup that this user may "
                    "write: run it as root, or name one with --cgroup"
                ) from None

    # -- limits -------------------------------------------------------------------------------------------------------

    def _limit(self, limits: Limits, devices: list[str], found: Mounts) -> None:
        if limits.memory_bytes is not None:
            self._memory(limits.memory_bytes)
        if limits.cores is not None:
            self._cores(limits.cores, found)
        if limits.cpus is not None:
            self._cpu(limits.cpus)
        self._disk(limits.disk_read_bytes_per_s, devices)

    def _memory(self, wanted: int) -> None:
        version, folder = self._folders["memory"]
        if version == 1:
            self._write(folder / "memory.limit_in_bytes", str(wanted), "memory")
            swap = folder / "memory.memsw.limit_in_bytes"
            if swap.exists():
                self._write(swap, str(wanted), "swap")
            else:
                self._write(folder / "memory.swappiness", "0", "swap")
            got = _number(folder / "memory.limit_in_bytes")
        else:
            self._write(folder / "memory.max", str(wanted), "memory")
            swap = folder / "memory.swap.max"
            if swap.exists():
                self._write(swap, "0", "swap")
            got = _number(folder / "memory.max")
        if got is None or not wanted - 65536 < got <= wanted:
            raise NoJailError(f"the kernel set a memory limit of {got} B, wanted {wanted} B: no jail can be made here")

    def _cpu(self, wanted: float) -> None:
        here = len(os.sched_getaffinity(0))
        if wanted > here:
            self.not_limited.append(f"processors: {here} are here, {wanted:g} were asked for")
            return
        if "cpu" not in self._folders:
            self.not_limited.append("processors: no cpu controller")
            return
        version, folder = self._folders["cpu"]
        quota = round(wanted * PERIOD_US)
        if version == 1:
            self._write(folder / "cpu.cfs_period_us", str(PERIOD_US), "processors")
            self._write(folder / "cpu.cfs_quota_us", str(quota), "processors")
            got = [_number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")]
        else:
            self._write(folder / "cpu.max", f"{quota} {PERIOD_US}", "processors")
            got = [int(word) if word.isdigit() else None for word in _read(folder / "cpu.max").split()]
        if got != [quota, PERIOD_US]:
            raise NoJailError(
                f"the kernel set a CPU share of {got}, wanted {[quota, PERIOD_US]} us: no jail can be made"
            )

    def _cores(self, wanted: str, found: Mounts) -> None:
        if "cores" not in self._folders:
            self.not_limited.append("cores: no cpuset controller")
            return
        version, folder = self._folders["cores"]
        if version == 1:  # a v1 group starts with no core and no memory node at all
            parent = found.own_v1["cpuset"]
            self._write(folder / "cpuset.mems", _read(parent / "cpuset.mems").strip(), "cores")
        self._write(folder / "cpuset.cpus", wanted, "cores")

    def _disk(self, wanted: int | None, devices: list[str]) -> None:
        if "disk" not in self._folders:
            if wanted is not None:
                self.not_limited.append("disk: no io controller")
            return
        version, folder = self._folders["disk"]
        # In v1 a group is not bound by the disk limits of the one above it: take them over.
        rates = dict(line.split() for line in _read(folder.parent / _READ_BPS).splitlines()) if version == 1 else {}
        limits = {device: int(rate) for device, rate in rates.items()}
        if wanted is not None:
            limits |= {device: min(wanted, limits.get(device, wanted)) for device in devices}
            if not devices:
                self.not_limited.append("disk: the files lie on no block device of their own (overlay, tmpfs, network)")
        if version == 1:
            # From Linux 6.10 on a disk's bytes are counted only once a limit was written for it; 0 limits nothing.
            for device in set(devices) - set(limits):
                with contextlib.suppress(OSError):
                    (folder / _READ_BPS).write_text(f"{device} 0")
        for device, rate in limits.items():
            text = f"{device} {rate}" if version == 1 else f"{device} rbps={rate}"
            name = _READ_BPS if version == 1 else "io.max"
            try:
                (folder / name).write_text(text)
                held = str(rate) in _read(folder / name)
            except OSError:
                held = False
            if not held:
                self.not_limited.append(f"disk: the kernel takes no limit for device {device}")

    def _write(self, path: Path, text: str, what: str) -> None:
        try:
            path.write_text(text)
        except OSError as fault:
            raise UserError(
                f"the limit of {what} cannot be set to {text} ({path}: {fault.strerror}); ask for one that the machine "
                "and any jail around this one allow"
            ) from None

    # -- processes ----------------------------------------------------------------------------------------------------

    def entrances(self) -> list[Path]:
        """The files into which a process writes 0 to be in the group."""
        unique = dict.fromkeys(self._folders.values())
        return [(folder / LEAF if version == 2 else folder) / "cgroup.procs" for version, folder in unique]

    def processes(self) -> list[int]:
        """Processes in the group and in groups beneath it."""
        found: set[int] = set()
        for _, folder in dict.fromkeys(self._folders.values()):
            for file in [folder / "cgroup.procs", *_beneath(folder)]:
                found |= {int(word) for word in _read(file).split() if word.isdigit()}
        return sorted(found - {0})

    def end(self, grace_s: float = 0.0) -> int:
        """End what still runs in the group (asked first, where there is a grace, then killed); returns how many."""
        running = self.processes()
        for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            if not wait_s:
                continue
            deadline = time.monotonic() + wait_s
            while (left := self.processes()) and time.monotonic() < deadline:
                allowed = [self._signal(pid, number) for pid in left]
                if not any(allowed):
                    break  # all are another user's: waiting does not end them
                time.sleep(0.02)
        return len(running)

    def _signal(self, pid: int, number: int) -> bool:
        """Send a signal to a process of the group; False where this user may not. Its number may have gone to a process
        elsewhere since it was read: the process is held first, then the group is asked again."""
        with contextlib.suppress(ProcessLookupError):
            handle = _held(pid)
            try:
                if pid in self.processes():
                    _send(handle, pid, number)
            except PermissionError:
                return False
            finally:
                if handle is not None:
                    os.close(handle)
        return True

    def remove(self) -> None:
        """End what still runs and remove the group; a folder that the kernel still holds is swept by the next jail."""
        self.end()
        tries = 1 if self.processes() else 100  # what could not be ended keeps the folders
        for _, folder in dict.fromkeys(self._folders.values()):
            remove(folder, tries)

    # -- counts -------------------------------------------------------------------------------------------------------

    def current_bytes(self) -> int | None:
        version, folder = self._folders["memory"]
        return _number(folder / ("memory.usage_in_bytes" if version == 1 else "memory.current"))

    def usage(self) -> Usage:
        """What the group and all beneath it have used so far."""
        version, folder = self._folders["memory"]
        stat = _table(folder / "memory.stat")
        page = os.sysconf("SC_PAGE_SIZE")
        total = "total_" if version == 1 else ""
        refaults = stat.get(f"{total}workingset_refault_file", stat.get("workingset_refault"))
        scanned = stat.get("pgscan")
        if version == 1:
            peak = _number(folder / "memory.max_usage_in_bytes")
            # Without swap both limits are the same, and the one for both is met first.
            hits: int | None = sum(_number(folder / f"memory.{kind}failcnt") or 0 for kind in ("", "memsw."))
            limit = _number(folder / "memory.limit_in_bytes")
            if not hits and peak is not None and limit is not None and peak >= 0.95 * limit:
                hits = None  # newer kernels no longer count it in v1
            ooms = sum(_table(file).get("oom_kill", 0) for file in folder.rglob("memory.oom_control"))
        else:
            peak = _number(folder / "memory.peak")
            events = _table(folder / "memory.events")
            hits, ooms = events.get("max"), events.get("oom_kill", 0)
        read, written = self._disk_bytes()
        cpu_s, throttled_s = self._cpu_seconds()
        return Usage(
            peak_bytes=peak,
            limit_hits=hits,
            oom_kills=ooms,
            refault_bytes=None if refaults is None else refaults * page,
            scanned_bytes=None if scanned is None else scanned * page,
            major_faults=stat.get(f"{total}pgmajfault"),
            read_bytes=read,
            written_bytes=written,
            cpu_s=cpu_s,
            throttled_s=throttled_s,
        )

    def _disk_bytes(self) -> tuple[int | None, int | None]:
        if "disk" not in self._folders:
            return None, None
        version, folder = self._folders["disk"]
        if version == 1:  # what goes through the page cache is written for the root group, whoever it is of
            lines = _read(folder / "blkio.throttle.io_service_bytes_recursive").splitlines()
            words = [[*line.split(), "", ""][:3] for line in lines]
            return sum(int(count) for _, kind, count in words if kind == "Read"), None
        read = written = 0
        for line in _read(folder / "io.stat").splitlines():
            counts = dict(word.split("=", 1) for word in line.split()[1:] if "=" in word)
            read += int(counts.get("rbytes", 0))
            written += int(counts.get("wbytes", 0))
        return read, written

    def _cpu_seconds(self) -> tuple[float | None, float | None]:
        if "cpu" not in self._folders:
            return None, None
        version, folder = self._folders["cpu"]
        stat = _table(folder / "cpu.stat")
        if version == 1:
            return None, stat.get("throttled_time", 0) / 1e9
        used = stat.get("usage_usec")
        return (None if used is None else used / 1e6), stat.get("throttled_usec", 0) / 1e6


def remove(folder: Path, tries: int = 100) -> bool:
    """Remove a group's folder and the groups beneath it; False when the kernel still holds one, or another user."""
    for _ in range(tries):
        for inner in sorted((f.parent for f in _beneath(folder)), key=lambda f: -len(f.parts)):
            with contextlib.suppress(OSError):
                inner.rmdir()
        try:
            folder.rmdir()
        except FileNotFoundError:
            return True
        except PermissionError:
            return False
        except OSError:  # a process that was killed is not quite gone
            time.sleep(0.02)
        else:
            return True
    return False


def _held(pid: int) -> int | None:
    """A handle of the process that has this number now; None where there are none (Linux before 5.3, some filters)."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except (AttributeError, OSError):
        return None


def _send(handle: int | None, pid: int, number: int) -> None:
    if handle is not None:
        with contextlib.suppress(PermissionError):  # a filter of system calls says the same: the other call tells
            signal.pidfd_send_signal(handle, number)
            return
    os.kill(pid, number)


def _sweep(roots: set[Path]) -> None:
    """End what jails that were killed themselves left running, and remove their groups."""
    for name in {left.name for root in roots for left in root.glob(f"{PREFIX}*")}:
        if maker.ended(name.removeprefix(PREFIX)):
            Group(name, {str(root): Place(1, root) for root in roots}, []).remove()


def _beneath(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("cgroup.procs") if file.parent != folder]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _table(path: Path) -> dict[str, int]:
    rows = (line.split() for line in _read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
