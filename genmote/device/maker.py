"""Who made a jail's group: a process signs its name, and another one tells whether that process has ended."""

from __future__ import annotations

import os
from pathlib import Path

_ENDED = (FileNotFoundError, ProcessLookupError)


def sign() -> str:
    """This process in a group's name: its number, when it started (numbers come again), and whose numbering it is.
    Nothing stands for the start where it cannot be told: no other process ever takes this one for ended."""
    born = _born("self") if _own_numbers() else None
    return f"{os.getpid()}-{born or ''}-{_numbering()}"


def ended(signed: str) -> bool:
    """Whether the process that signed so has ended, as far as that can be seen: in doubt it has not."""
    pid, born, numbering, *_ = [*signed.split("-"), "", ""]
    # A container numbers its processes by itself: whether one of another container runs cannot be seen here.
    if not (pid.isdigit() and born.isdigit()) or numbering != _numbering() or not _own_numbers():
        return False
    try:
        return _born(pid) not in (born, None)
    except _ENDED:
        return True


def _own_numbers() -> bool:
    """Whether /proc has the numbers by which processes are called here: after `unshare --pid` it may have others."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def _born(pid: str) -> str | None:
    """When the process started, in the kernel's ticks; None where that is not told. Raises FileNotFoundError or
    ProcessLookupError when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except _ENDED:
        raise
    except OSError:
        return None
    if fields[:1] in (["Z"], ["X"]):
        raise ProcessLookupError
    return fields[19] if len(fields) > 19 else None


def _numbering() -> str:
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except FileNotFoundError:  # a kernel without namespaces of processes: all have one numbering
        return "0"
