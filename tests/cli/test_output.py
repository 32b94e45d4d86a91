from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genmote.cli._output import Bar, Output, check_place, columns, note, save, size
from genmote.errors import UserError


def test_result_is_text_or_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"path": Path("/a"), "nan": float("nan"), "list": [float("inf"), 1.5], "inner": {"x": Path("b")}}
    Output().result(values, "text")
    assert capsys.readouterr().out == "text\n"
    quiet = Output(json=True)
    quiet.say("not shown")
    quiet.result(values, "text")
    assert json.loads(capsys.readouterr().out) == {"path": "/a", "nan": None, "list": [None, 1.5], "inner": {"x": "b"}}


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (98362432, "98.4 MB"), (999_999, "1000.0 kB"), (3e12, "3000.0 GB")],
)
def test_sizes(count: float, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize("terminal", [True, False])
def test_a_note_on_a_terminal_stands_on_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: terminal)
    out = Output()
    note("before")
    out.say("the text ", end="")
    note("the governor waits")
    note("the governor goes on")
    out.say("of the", end="")
    out.say("\n", end="")
    note("after")
    told = capsys.readouterr()
    assert told.out == "the text of the\n"
    between = "\n" if terminal else ""
    assert told.err == f"before\n{between}the governor waits\nthe governor goes on\nafter\n"


SAYS = (
    "from genmote.cli._output import Output, note; out = Output(); out.say('the text', end=''); note('governor'); "
    "out.say(' goes on')"
)


def test_a_note_in_the_same_pipe_or_file_as_the_text_stands_on_a_line_of_its_own(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SAYS]
    together = b"the text\ngovernor\n goes on\n"
    assert subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True).stdout == together
    with (tmp_path / "both").open("wb") as both:
        subprocess.run(words, stdout=both, stderr=subprocess.STDOUT, check=True)
    assert (tmp_path / "both").read_bytes() == together
    ran = subprocess.run(words, capture_output=True, check=True)
    assert (ran.stdout, ran.stderr) == (b"the text goes on\n", b"governor\n"), "apart, neither is touched"


def test_a_note_on_the_terminal_that_a_piped_text_goes_to_stands_on_a_line_of_its_own() -> None:
    import pty

    here, there = pty.openpty()
    ran = subprocess.run([sys.executable, "-c", SAYS], stdout=subprocess.PIPE, stderr=there, check=True)
    os.close(there)
    assert ran.stdout == b"the text goes on\n" and os.read(here, 100) == b"\r\ngovernor\r\n"
    os.close(here)


def test_columns_are_aligned() -> None:
    assert columns([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc  d"


def test_progress_without_a_terminal_is_a_line_each_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(10_000))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    out = io.StringIO()
    with Bar(out) as bar:
        for done in range(0, 1001, 5):
            bar("model", done * 1000, 1_000_000)
        for _ in range(5):
            bar("waiting", 0, 0)
    lines = out.getvalue().splitlines()
    assert lines[0] == "model: 0% of 1.0 MB"
    assert re.fullmatch(r"model: 50% of 1.0 MB, (9\d|10\d) s left", lines[5])  # a call is a second, 200 in all
    assert (
        lines[9].startswith("model: 90% of 1.0 MB, ")
        and lines[10] == "model: 100% of 1.0 MB"
        and lines[11:] == ["waiting"]
    )


def test_what_is_quick_leaves_no_plain_lines() -> None:
    out = io.StringIO()
    with Bar(out) as bar:
        for done in range(101):
            bar("model", done, 100)
    assert out.getvalue() == ""


def test_what_is_over_when_it_could_first_be_shown_leaves_no_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    out = io.StringIO()
    with Bar(out, late=True) as bar:
        bar("model", 0, 2)  # within its first second
        bar("model", 2, 2)
    assert out.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_one_line_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out = Terminal()
    with Bar(out) as bar:
        for done in (0, 500, 1000):
            bar("model", done * 1000, 1_000_000)
    drawn = out.getvalue().split("\r")
    assert drawn[-1].endswith("1.0 MB / 1.0 MB\n") and "#" in drawn[-1]
    assert all(len(line.rstrip("\n")) < 60 for line in drawn)


def test_a_narrow_terminal_gets_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()
    with Bar(out) as bar:
        bar("a-model-with-a-name", 1, 10)
    assert all(len(line.rstrip("\n")) < 20 for line in out.getvalue().split("\r"))


@pytest.mark.parametrize(("terminal", "shown"), [(False, "prompt: 0% of 9\n"), (True, r"\rprompt  \[\.+\] 0 / 9")])
def test_a_late_bar_shows_what_takes_over_a_second(terminal: bool, shown: str) -> None:
    out = Terminal() if terminal else io.StringIO()
    with Bar(out, unit_bytes=False, late=True) as bar:
        bar("quick", 0, 9)
        bar("quick", 9, 9)
        bar.close()
        time.sleep(1.1)
        assert out.getvalue() == ""  # it ended before its second was over
        bar("prompt", 0, 9)
        time.sleep(1.1)
        assert re.fullmatch(shown, out.getvalue())  # no further call came
        bar("prompt", 9, 9)
    assert ("9 / 9" if terminal else "100% of 9") in out.getvalue() and out.getvalue().endswith("\n")


def test_long_times_are_told_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 100_000, 60))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    out = io.StringIO()
    with Bar(out, unit_bytes=False) as bar:
        for done in range(11):
            bar("texts", done, 10)
    assert "texts: 20% of 10, 8 min left" in out.getvalue().splitlines()


def test_a_place_that_takes_no_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_place(tmp_path / "new.svg", "--svg")
    with pytest.raises(UserError, match=f"{tmp_path} is a folder: name a file in it with --svg"):
        check_place(tmp_path, "--svg")
    with pytest.raises(UserError, match="is no folder: make it first, or choose another --svg"):
        check_place(tmp_path / "no" / "new.svg", "--svg")
    with pytest.raises(
        UserError, match=r"new.svg cannot be written \(No such file or directory\): choose another --svg"
    ):
        save(tmp_path / "no" / "new.svg", "text", "--svg")  # the folder went in the meantime
    os.mkfifo(tmp_path / "pipe")
    for check in (check_place, lambda path, option: save(path, "text", option)):
        with pytest.raises(
            UserError, match=r"pipe cannot be written \(it is a pipe, not a file\): choose another --svg"
        ):
            check(tmp_path / "pipe", "--svg")
    (tmp_path / "link").symlink_to(tmp_path / "no" / "new.svg")
    with pytest.raises(UserError, match="link cannot be written, .*/no is no folder: make it first"):
        check_place(tmp_path / "link", "--svg")
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match="takes no new files: choose another --svg"):
        check_place(tmp_path / "new.svg", "--svg")
