"""What the device tests share: real control groups, where this machine lets us make them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genmote.device.cgroup import Group, Limits
from genmote.errors import NoJailError


def left_over() -> list[Path]:
    """Folders of jails that are still there although this process, or one that has ended, made them."""
    found: list[Path] = []
    for root in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")):
        with contextlib.suppress(OSError):
            found += [path for path in root.rglob("genmote-jail-*") if path.is_dir()]
    makers = {path: int(path.name.removeprefix("genmote-jail-").partition("-")[0]) for path in found}
    return sorted(p for p, pid in makers.items() if pid == os.getpid() or not Path(f"/proc/{pid}").exists())


@pytest.fixture
def cgroups() -> Iterator[None]:
    """Real control groups; afterwards none may be left over."""
    try:
        Group.make(Limits(memory_bytes=32 << 20), []).remove()
    except NoJailError as fault:
        pytest.skip(f"no control groups here: {fault}")
    before = left_over()
    yield
    assert [path for path in left_over() if path not in before] == []


@pytest.fixture
def python() -> Callable[[str], list[str]]:
    """A command that runs a few lines of Python, without site packages: it starts in 20 ms."""
    return lambda program: [sys.executable, "-I", "-S", "-c", program]
