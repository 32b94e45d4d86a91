"""Whether the process that signed a name has ended: what cannot be seen has not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from genmote.device import maker


def signed_by_an_ended_process() -> str:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    _, born, numbering = maker.sign().split("-")
    return f"{process.pid}-{born}-{numbering}"


def failing(fault: OSError, what: str) -> Callable[..., str]:
    read = Path.read_text

    def read_text(self: Path, *args: str, **named: str) -> str:
        if str(self).endswith(what):
            raise fault
        return read(self, *args, **named)

    return read_text


def test_a_living_process_has_not_ended_and_another_with_its_number_is_not_it() -> None:
    pid, born, numbering = maker.sign().split("-")
    assert (pid, born.isdigit(), numbering.isdigit()) == (str(os.getpid()), True, True)
    assert not maker.ended(f"{maker.sign()}-a1b2c3")
    assert maker.ended(f"{pid}-{int(born) - 1}-{numbering}-a1b2c3")


def test_a_process_that_is_gone_has_ended() -> None:
    assert maker.ended(signed_by_an_ended_process())


def test_a_process_that_ended_and_was_not_waited_for_has_ended() -> None:
    with subprocess.Popen(["sleep", "97"]) as process:
        born = maker._born(str(process.pid))
        signed = f"{process.pid}-{born}-{maker._numbering()}"
        assert not maker.ended(signed)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert maker.ended(signed)


@pytest.mark.parametrize("born", ["None", "", "-1", "x"])
def test_a_name_without_a_start_tells_of_nothing(born: str) -> None:
    ended = signed_by_an_ended_process().split("-")
    assert not maker.ended(f"{ended[0]}-{born}-{ended[2]}-a1b2c3")


@pytest.mark.parametrize("name", ["", "7", "7-8", "x-8-9"])
def test_a_name_that_is_not_ours_tells_of_nothing(name: str) -> None:
    assert not maker.ended(name)


def test_one_that_cannot_be_looked_at_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    signed = f"{os.getppid()}-17-{maker._numbering()}"
    assert maker.ended(signed)  # another one has that number now
    for fault in (PermissionError(13, "Permission denied"), OSError(24, "Too many open files"), OSError(5, "I/O")):
        with monkeypatch.context() as other:
            other.setattr(Path, "read_text", failing(fault, f"/{os.getppid()}/stat"))
            assert not maker.ended(signed)
    for fault in (FileNotFoundError(2, "No such file"), ProcessLookupError(3, "No such process")):
        with monkeypatch.context() as other:
            other.setattr(Path, "read_text", failing(fault, f"/{os.getppid()}/stat"))
            assert maker.ended(signed)


@pytest.mark.parametrize("link", ["99999999", None])
def test_where_proc_has_other_numbers_no_start_is_told_and_nothing_has_ended(
    monkeypatch: pytest.MonkeyPatch, link: str | None
) -> None:
    signed = signed_by_an_ended_process()

    def readlink(path: str) -> str:
        if link is None:
            raise FileNotFoundError(path)
        return link

    monkeypatch.setattr(os, "readlink", readlink)
    assert maker.sign() == f"{os.getpid()}--{maker._numbering()}"
    assert not maker.ended(signed)


def test_a_kernel_without_namespaces_of_processes_has_one_numbering(monkeypatch: pytest.MonkeyPatch) -> None:
    stat = os.stat

    def without(path: str, *args: object, **named: object) -> os.stat_result:
        if str(path) == "/proc/self/ns/pid":
            raise FileNotFoundError(2, "No such file or directory", path)
        return stat(path, *args, **named)

    monkeypatch.setattr(os, "stat", without)
    assert maker.sign().split("-")[2] == "0"
    assert maker.ended(signed_by_an_ended_process()) and not maker.ended(maker.sign())
