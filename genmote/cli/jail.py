"""Run a command within a board's memory, processors and disk rate, and tell what it took.

    genmote jail --device pi-zero-2w -- genmote generate smollm2-135m --prompt "Hello"
    genmote jail --memory 150MB --cpus 1 --disk 40MB/s -- python3 program.py

The limits are control groups of Linux (v1 or v2), so a command that wants more memory is killed as on the board. A
cgroup is charged for a file's pages by their first reader, so the page cache of model files among the command's words
(and of --drop) is emptied first. The jail's report goes to standard error, the exit status is the command's. With
--json the report is the one object on standard output, and the command's own output goes to standard error.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from genmote.cli._output import Output, note, size
from genmote.errors import ModelNameError, SpecError, UserError
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.device.cgroup import Limits
    from genmote.device.jail import Report
    from genmote.device.profile import Profile

LEAST_DISK = 10_000  # bytes a second: no command comes to its end with fewer


@dataclass(frozen=True, kw_only=True)
class Settings:
    command: tuple[str, ...] = setting("the command and its arguments, after --", positional=True)
    device: str | None = setting("a device's name (see genmote devices) or profile file: its limits", default=None)
    memory: str | None = setting("memory, such as 150MB or 512MiB; nothing is swapped", default=None)
    cpus: float | None = setting("processors' worth of time, in periods of 10 ms", default=None)
    cores: str | None = setting("the cores that may be used, such as 0-1", default=None)
    disk: str | None = setting("most read from the disk, such as 40MB/s", default=None)
    drop: tuple[Path, ...] = setting("a file whose page cache is emptied first; may be repeated", default=())
    cgroup: str | None = setting("the control group beneath which the jail is made (default: this one's)", default=None)


def run(settings: Settings, out: Output) -> int:
    from genmote import home
    from genmote.device import jail, profile

    device = None if settings.device is None else profile.runnable(settings.device)
    limits = _limits(settings, device)
    if settings.device is not None:
        note(f"jail: not imitated: {'; '.join(jail.NOT_IMITATED)}")
    report = jail.run(
        settings.command,
        limits,
        drop=_files(settings),
        disk_of=[home.models_dir(), Path(sys.executable)],
        inside=settings.cgroup,
        told=lambda line: note(f"jail: {line}"),
        stdout=sys.stderr if out.json else None,
        profile=device,
    )
    told = _text(report)
    if out.json:
        out.result(report.values() | {"command": settings.command, "device": settings.device}, "")
    else:
        note(told)
    if report.oom_killed:
        whose = (
            f"the limit of {size(limits.memory_bytes)} (or a jail around this one)"
            if limits.memory_bytes is not None
            else "the limit of a group around it"
        )
        note(f"jail: killed: the command wanted more memory than {whose} allows")
    return report.status


def _limits(settings: Settings, device: Profile | None) -> Limits:
    from genmote.device.cgroup import Limits
    from genmote.device.sizes import meant, parse_bytes, parse_rate

    memory = None if settings.memory is None else parse_bytes(settings.memory, what="memory")
    disk = None if settings.disk is None else parse_rate(settings.disk, what="disk")
    if disk is not None and disk < LEAST_DISK:
        hint = meant(disk).replace("MB", "MB/s")
        raise UserError(f"--disk {settings.disk}: {disk} bytes a second{hint}, wanted at least 10kB/s")
    cpus = settings.cpus
    if device is not None:
        memory = device.usable_bytes if memory is None else memory
        cpus = float(device.compute.cores) if cpus is None else cpus
        disk = round(device.storage.read_mb_s * 1e6) if disk is None else disk
    if memory is None and cpus is None and disk is None and settings.cores is None:
        raise SpecError("a jail without limits: give --device, --memory, --cpus, --cores or --disk")
    found = Limits(memory, cpus, disk, settings.cores)
    found.check()
    return found


def _files(settings: Settings) -> list[Path]:
    """Files whose pages are dropped: --drop, those that the command's words name, and what a load of them reads."""
    from genmote.cli._model import scaled
    from genmote.models import store

    for path in settings.drop:
        if not path.is_file():
            raise UserError(f"--drop {path}: wanted a file whose pages can be dropped")
    words = [*settings.command[1:], *(word.partition("=")[2] for word in settings.command[1:])]
    named = [*map(os.fspath, settings.drop), *words, *(scaled(word)[0] for word in words)]
    found = dict.fromkeys(settings.drop)
    for name in filter(None, named):
        with contextlib.suppress(ModelNameError):  # a word that only looks like a model's name
            if (model := store.find(name)) is not None:
                found |= dict.fromkeys(store.files(model))
    return list(found)


def _text(report: Report) -> str:
    usage, limits = report.usage, report.limits

    def amount(count: int | None, of: int | None = None) -> str:
        told = "unknown" if count is None else size(count)
        return told if of is None else f"{told} of {size(of)}"

    how = "" if report.peak_how == "kernel" else f" ({report.peak_how})"
    # A group's memory holds cached files too: met at the limit, those go first, and nobody is killed.
    freed = " (cached files made room, nothing was killed)" if usage.limit_hits and not usage.oom_kills else ""
    parts = [
        f"status {report.status} in {report.wall_s:.2f} s",
        f"peak {amount(usage.peak_bytes, limits.memory_bytes)}{how}",
        f"largest process {amount(report.peak_rss_bytes)}",
        "limit met" if usage.limit_hits is None else f"limit met {usage.limit_hits} times{freed}",
        f"read again {amount(usage.refault_bytes)}",
        f"disk read {amount(usage.read_bytes)}, written {amount(usage.written_bytes)}",
        f"CPU {report.cpu_s:.2f} s",
        f"stood still {usage.throttled_s or 0:.2f} s",
        str(report.energy),
    ]
    if usage.oom_kills:
        parts.append(f"{usage.oom_kills} killed for memory")
    if report.ended_processes:
        parts.append(f"{report.ended_processes} processes left over were ended")
    return "jail: " + ", ".join(parts)
