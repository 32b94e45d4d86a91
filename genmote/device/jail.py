"""A jail: a command runs within a board's memory, processors and disk rate, and what it took is told.

The limits are the kernel's own (control groups): a command that wants more memory is killed as it would be on the
board. What a jail cannot imitate is in :data:`NOT_IMITATED`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from genmote.device import pages
from genmote.device.cgroup import Group, Limits, Usage
from genmote.device.energy import Energy
from genmote.device.meter import Meter
from genmote.device.profile import Profile
from genmote.errors import NoJailError, UserError

NOT_IMITATED = ("clock rate and instruction set of the processors", "memory bandwidth", "latency of the disk")
_SAMPLE_S = 0.05
_GRACE_S = 2.0
_STAYED = 1_000_000  # bytes of cached files that make a run warmer than it may seem
_COPY_BYTES = (
    4 << 20
)  # what this process may grow by until it is copied: other threads, counts that the kernel sums up late
_DEATHSIG = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Dropped:
    """What was done to the page cache before the command ran."""

    files: int = 0
    was_cached_bytes: int = 0
    stayed_bytes: int = 0
    unknown: int = 0


@dataclass(frozen=True)
class Report:
    """How a command fared in a jail."""

    status: int
    wall_s: float
    limits: Limits
    usage: Usage
    cgroup_versions: list[int]
    not_limited: list[str]
    dropped: Dropped
    peak_how: str
    peak_rss_bytes: int | None
    oom_killed: bool
    energy: Energy
    ended_processes: int = 0
    cpu_s: float = 0.0
    disks: list[str] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """The figures, flat, with their units in the keys."""
        usage = asdict(self.usage) | {"cpu_s": self.cpu_s}
        limits = {f"limit_{key}": value for key, value in asdict(self.limits).items()}
        rest = {
            "status": self.status,
            "oom_killed": self.oom_killed,
            "wall_s": self.wall_s,
            "peak_how": self.peak_how,
            "peak_rss_bytes": self.peak_rss_bytes,
            "ended_processes": self.ended_processes,
            "dropped_bytes": self.dropped.was_cached_bytes - self.dropped.stayed_bytes,
            "stayed_cached_bytes": self.dropped.stayed_bytes,
            "cgroup_versions": self.cgroup_versions,
            "not_limited": self.not_limited,
            "disks": self.disks,
        }
        return rest | usage | limits | self.energy.values()


def run(
    command: Sequence[str],
    limits: Limits,
    *,
    drop: Iterable[Path] = (),
    disk_of: Iterable[Path] = (),
    inside: str | None = None,
    told: Callable[[str], None] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    env: dict[str, str] | None = None,
    profile: Profile | None = None,
) -> Report:
    """Run `command` within `limits` and return how it fared; its own exit status is the report's.

    The page cache of the files `drop` is emptied first. The disk limit holds for the disks of these files, of the
    paths `disk_of`, and of the working folder. `inside` names the group beneath which the jail is made. `told` gets one
    line for each thing that is not as asked, before the command starts. `profile` models the energy where none can be
    measured. Bytes on the disk that the group does not count are those of the processes that were waited for.

    Raises NoJailError where no jail can be made, UserError for a command that cannot be run.
    """
    files = list(drop)
    disks, unknown = _disks([Path.cwd(), *files, *disk_of])
    group = Group.make(limits, disks, inside=inside)
    try:
        not_limited = list(group.not_limited)
        if limits.disk_read_bytes_per_s is not None:
            not_limited += [f"disk: {path} lies on no block device" for path in unknown if disks]
        dropped = drop_all(files)
        if told is not None:
            for line in not_limited:
                told(f"not limited here: {line}")
            # Where neither memory nor the disk is limited, a warm file changes nothing that is looked for.
            matters = limits.memory_bytes is not None or limits.disk_read_bytes_per_s is not None
            if matters and dropped.stayed_bytes >= _STAYED:
                told(
                    f"{dropped.stayed_bytes / 1e6:.0f} MB of the command's files stay in the page cache, other "
                    "programs have them mapped: they are neither charged nor read from the disk, so this run may be "
                    "warmer than the board; end those programs first for a cold one"
                )
            if matters and dropped.unknown:
                told(f"{dropped.unknown} files of another user: whether their pages went cannot be seen")
        return _within(group, command, limits, not_limited, dropped, disks, stdout, stderr, env, profile)
    finally:
        group.remove()


def _within(
    group: Group,
    command: Sequence[str],
    limits: Limits,
    not_limited: list[str],
    dropped: Dropped,
    disks: list[str],
    stdout: int | IO[Any] | None,
    stderr: int | IO[Any] | None,
    env: dict[str, str] | None,
    profile: Profile | None,
) -> Report:
    with Meter(profile=profile) as meter:
        own = memory_bytes(os.getpid(), "VmRSS")
        process = _start(group, command, stdout, stderr, env)
        watch = _Watch(group)
        try:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        except BaseException:  # Ctrl-C, SIGTERM: the command is asked to end, then killed
            group.end(_GRACE_S)
            watch.stop()
            process.wait()
            raise
        watch.stop()
        _, waited, rusage = os.wait4(process.pid, 0)
    reading = meter.reading
    process.returncode = os.waitstatus_to_exitcode(waited)
    ended = group.end(_GRACE_S)
    usage, peak_how = group.usage(), "kernel"
    if usage.peak_bytes is None:
        usage, peak_how = replace(usage, peak_bytes=watch.peak_bytes), "sampled"
    if usage.read_bytes is None:
        usage = replace(usage, read_bytes=reading.read_bytes)
    if usage.written_bytes is None:
        usage = replace(usage, written_bytes=reading.written_bytes)
    status = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return Report(
        status=status,
        wall_s=reading.wall_s,
        limits=limits,
        usage=usage,
        cgroup_versions=group.versions,
        not_limited=not_limited,
        dropped=dropped,
        peak_how=peak_how,
        peak_rss_bytes=_largest(rusage.ru_maxrss * 1024, own, watch.peak_rss_bytes, watch.looks),
        oom_killed=process.returncode == -signal.SIGKILL and bool(usage.oom_kills),
        energy=reading.energy,
        ended_processes=ended,
        cpu_s=usage.cpu_s if usage.cpu_s is not None else rusage.ru_utime + rusage.ru_stime,
        disks=disks,
    )


def _largest(waited: int, own: int, seen: int, looks: int) -> int | None:
    """The most memory that one process had resident, None where that cannot be known.

    `waited`: the kernel's figure for the processes that were waited for. It begins with what the command's process was
    before it became the command: a copy of this one, which has `own` bytes, so that it tells nothing below these.
    `seen`: the largest of what was looked at every now and then, which is near the truth only after several `looks`: at
    the first a command may not have touched its memory yet.
    """
    if waited > own + _COPY_BYTES:
        return max(waited, seen)
    return (seen or None) if looks >= 2 else None


def _start(
    group: Group,
    command: Sequence[str],
    stdout: int | IO[Any] | None,
    stderr: int | IO[Any] | None,
    env: dict[str, str] | None,
) -> subprocess.Popen[bytes]:
    """Start the command in the group: it is in before its first instruction, and it does not outlive this process."""
    libc = ctypes.CDLL(None)
    try:
        entrances = [os.open(path, os.O_WRONLY) for path in group.entrances()]
    except OSError as fault:
        raise NoJailError(f"no process may be put into {fault.filename} ({fault.strerror}): run it as root") from None

    def enter() -> None:  # between fork and exec: system calls only
        for entrance in entrances:
            os.write(entrance, b"0")
        libc.prctl(_DEATHSIG, signal.SIGKILL)

    try:
        return subprocess.Popen(list(command), preexec_fn=enter, stdout=stdout, stderr=stderr, env=env)
    except (FileNotFoundError, PermissionError) as fault:
        raise UserError(f"{command[0]}: {fault.strerror}: wanted a command that can be run") from None
    except subprocess.SubprocessError:
        raise NoJailError(
            "the command could not be put into its control group: run it as root, or name a group with --cgroup"
        ) from None
    finally:
        for entrance in entrances:
            os.close(entrance)


class _Watch:
    """Looks at the group's processes while they run: their high-water marks go with them when they end."""

    def __init__(self, group: Group) -> None:
        self.peak_rss_bytes = 0
        self.peak_bytes = 0
        self.looks = 0  # that found a process
        self._group = group
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self._group.current_bytes() or 0)
            found = [memory_bytes(pid, "VmHWM") for pid in self._group.processes()]
            self.peak_rss_bytes = max(self.peak_rss_bytes, *found, 0)
            self.looks += any(found)
            if self._over.wait(_SAMPLE_S):
                return

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def memory_bytes(pid: int, name: str) -> int:
    """What process `pid` has resident (VmRSS), or had at most (VmHWM), shared and mapped files included; 0 if gone."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def drop_all(files: Iterable[Path]) -> Dropped:
    """Empty the page cache of `files`. One that is gone by now has no pages; one that cannot be opened: UserError."""
    count = before = stayed = unknown = 0
    for path in files:
        before += pages.cached_bytes(path) or 0
        try:
            left = pages.drop(path)
        except FileNotFoundError:
            continue
        except OSError as fault:
            raise UserError(f"{path}: {fault.strerror}: wanted a file whose pages can be dropped") from None
        count += 1
        stayed += left or 0
        unknown += left is None
    return Dropped(count, before, stayed, unknown)


def _disks(paths: Iterable[Path], sys: Path = Path("/sys")) -> tuple[list[str], list[Path]]:
    """The whole disks ("254:0") on which `paths` lie, and the paths that lie on none."""
    disks: dict[str, None] = {}
    unknown: dict[Path, None] = {}
    for path in paths:
        try:
            number = path.stat().st_dev
        except OSError:
            continue
        entry = sys / f"dev/block/{os.major(number)}:{os.minor(number)}"
        if not entry.exists():
            unknown[path] = None
            continue
        folder = entry.resolve()
        if (folder / "partition").exists():  # a limit is set on the disk, not on a part of it
            folder = folder.parent
        with contextlib.suppress(OSError):
            disks[(folder / "dev").read_text().strip()] = None
    return list(disks), list(unknown)
