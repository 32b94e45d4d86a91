from __future__ import annotations

import csv
import os
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import Records
from genmote.signals.readers import syslog
from genmote.signals.templates import WILD


def seconds(*parts: int) -> float:
    return datetime(*parts, tzinfo=UTC).timestamp()  # type: ignore[arg-type,misc]


def write(path: Path, text: str | bytes, modified: tuple[int, ...] = (2026, 6, 1)) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.utime(path, (seconds(*modified), seconds(*modified)))
    return path


def read(path: Path, notes: list[str] | None = None) -> Records:
    (found,) = reading.read(path, notes=notes)
    assert isinstance(found, Records)
    return found


def rows(found: Records, *names: str) -> list[tuple[object, ...]]:
    columns = [found.column(name) for name in names]
    return [
        tuple(None if isinstance(v, float) and np.isnan(v) else v for v in row) for row in zip(*columns, strict=True)
    ]


FORMS = [
    # RFC 3164's own examples, then 5424's
    (
        "<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8",
        seconds(2025, 10, 11, 22, 14, 15),
        ("mymachine", "su", None, "auth", "crit", "'su root' failed for lonvick on /dev/pts/8"),
    ),
    (
        "<13>Feb  5 17:32:18 10.0.0.99 Use the BFG!",
        seconds(2026, 2, 5, 17, 32, 18),
        ("10.0.0.99", None, None, "user", "notice", "Use the BFG!"),
    ),
    (
        "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \ufeff'su root' failed for lonvick",
        seconds(2003, 10, 11, 22, 14, 15) + 0.003,
        ("mymachine.example.com", "su", None, "auth", "crit", "'su root' failed for lonvick"),
    ),
    (
        "<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time to make the do-nuts.",
        seconds(2003, 8, 24, 12, 14, 15) + 3e-6,
        ("192.0.2.1", "myproc", 8710, "local4", "notice", "%% It's time to make the do-nuts."),
    ),
    (
        '<165>1 2003-10-11T22:14:15.003Z m evntslog - ID47 [exampleSDID@32473 iut="3" eventID="1011"] An event',
        seconds(2003, 10, 11, 22, 14, 15) + 0.003,
        ("m", "evntslog", None, "local4", "notice", '[exampleSDID@32473 iut="3" eventID="1011"] An event'),
    ),
    (
        "<999>1 - - - - - - nothing known",
        float("nan"),
        (None, None, None, None, None, "nothing known"),
    ),
    (
        "2024-05-01T10:00:00.25+02:00 hub kernel: [  12.5] usb 1-1: new device",
        seconds(2024, 5, 1, 8) + 0.25,
        ("hub", "kernel", None, None, None, "[  12.5] usb 1-1: new device"),
    ),
    (
        "[Wed Oct 11 14:32:52.5 2000] [core:error] [pid 35708:tid 43286] [client 72.15.99.187:80] File is missing",
        seconds(2000, 10, 11, 14, 32, 52) + 0.5,
        (None, "core", 35708, None, "err", "[client 72.15.99.187:80] File is missing"),
    ),
    (
        "[Sun Dec 04 04:47:44 2005] [warn] child in error state 6",
        seconds(2005, 12, 4, 4, 47, 44),
        (None, None, None, None, "warning", "child in error state 6"),
    ),
    (
        "2015-07-29 17:41:44,747 - INFO  [QuorumPeer@774] - Notification time out: 3200",
        seconds(2015, 7, 29, 17, 41, 44) + 0.747,
        (None, None, None, None, "info", "[QuorumPeer@774] - Notification time out: 3200"),
    ),
    (
        "2016/09/28 04:30:30 Error reading a file",
        seconds(2016, 9, 28, 4, 30, 30),
        (None, None, None, None, None, "Error reading a file"),
    ),
    (
        "[2016-09-28 04:30:30+0100] 77 [debug] opened the door",
        seconds(2016, 9, 28, 3, 30, 30),
        (None, None, 77, None, "debug", "opened the door"),
    ),
    (
        "081109 203615 148 FATAL dfs.DataNode$Responder: block is gone",
        seconds(2008, 11, 9, 20, 36, 15),
        (None, "dfs.DataNode$Responder", 148, None, "crit", "block is gone"),
    ),
    (
        "1066036250.125 the cache is full",
        1066036250.125,
        (None, None, None, None, None, "the cache is full"),
    ),
]


@pytest.mark.parametrize(("line", "when", "wanted"), FORMS, ids=[line[:24] for line, _, _ in FORMS])
def test_each_form(tmp_path: Path, line: str, when: float, wanted: tuple[object, ...]) -> None:
    path = write(tmp_path / "messages", line + "\r\n")
    assert syslog.knows(path, path.read_bytes())
    found = read(path)
    assert found.times_s is not None and np.allclose(found.times_s, [when], rtol=0, atol=1e-5, equal_nan=True)
    assert rows(found, "host", "program", "pid", "facility", "severity", "message") == [wanted]


def test_the_year_is_of_the_files_date_and_new_year_is_passed(tmp_path: Path) -> None:
    lines = [
        "Dec 31 23:59:58 h p: a",
        "Jan  1 00:00:01 h p: b",
        "Dec 31 23:59:59 h p: late",
        "Jan  1 00:00:02 h p: c",
        "Jun  7 00:00:00 h p: d",
        "Jan  2 00:00:00 h p: e",
    ]
    notes: list[str] = []
    found = read(write(tmp_path / "a.log", "\n".join(lines), (2024, 1, 5)), notes)
    assert found.times_s is not None
    years = [datetime.fromtimestamp(float(t), UTC).year for t in found.times_s]
    assert years == [2022, 2023, 2022, 2023, 2023, 2024]
    assert (
        "a.log: 6 times without a year; 2022 to 2024, New Year being passed in it, taken, by the file's own date"
        in notes
    )
    assert "a.log: 6 times without a zone, taken as UTC" in notes
    assert "a.log: 1 lines dated before the one above; the file's order is kept" in notes
    # written in January, the last line of December
    found = read(write(tmp_path / "b.log", "Dec 30 00:00:00 h p: a", (2024, 1, 5)))
    assert found.times_s is not None and found.times_s[0] == seconds(2023, 12, 30)
    # copied in 2026, but 29 February is of 2024
    found = read(write(tmp_path / "c.log", "Feb 29 00:00:00 h p: a\nMar  1 00:00:00 h p: b", (2026, 4, 1)))
    assert found.times_s is not None and found.times_s.tolist() == [seconds(2024, 2, 29), seconds(2024, 3, 1)]


def test_lines_without_a_time_are_joined_and_told(tmp_path: Path) -> None:
    text = (
        "no time yet\n2024-01-01 00:00:00 ERROR it broke\n  at Main.run\n\n  at Main\n2024-02-31 00:00:00 no such day\n"
    )
    notes: list[str] = []
    found = read(write(tmp_path / "a.log", text + "2024-01-01 00:00:01 ERROR it broke\n"), notes)
    assert rows(found, "severity", "template", "message") == [
        ("err", "it broke", "it broke\n  at Main.run\n\n  at Main\n2024-02-31 00:00:00 no such day"),
        ("err", "it broke", "it broke"),
    ]
    assert "a.log: 4 lines without a time, joined to the line before" in notes
    assert "a.log: 1 lines before the first time, left out" in notes


def test_damaged_bytes_and_long_lines_are_told(tmp_path: Path) -> None:
    first = b"2024-01-01 00:00:00 caf\xe9 is \xff open\n\0\0\0\0002024-01-01 00:00:01 power is back\n"
    long = b"2024-01-01 00:00:02 " + b"x" * (3 * syslog.LONGEST) + b"\n2024-01-01 00:00:03 done\n"
    notes: list[str] = []
    found = read(write(tmp_path / "a.log", first + long), notes)
    messages = found.column("message").tolist()
    assert messages[:2] == ["caf\ufffd is \ufffd open", "power is back"]
    assert messages[2] == "x" * (syslog.LONGEST - 20) and messages[3] == "done"
    assert found.column("template")[2] == WILD
    assert "a.log: 2 lines with bytes that are no UTF-8 text, replaced" in notes
    assert "a.log: 1 lines or messages beyond 65536 characters, cut there" in notes
    assert "a.log: 1 messages that fit none of as many templates as are kept; theirs is <*>" in notes
    tail = "2024-01-01 00:00:00 trace of a fault\n" + "  at a place\n" * 20000
    notes.clear()
    (message,) = read(write(tmp_path / "b.log", tail), notes).column("message").tolist()
    assert syslog.LONGEST - 20 < len(message) <= syslog.LONGEST
    assert any("lines or messages beyond" in note for note in notes)


LOGINS = [
    ("Failed password for root from 10.0.0.7 port 4711 ssh2", "failed", "root", "10.0.0.7"),
    ("Failed password for invalid user a b from 1.1.1.1 from ::1 port 2 ssh2", "failed", "a b from 1.1.1.1", "::1"),
    ("Accepted publickey for ann from 10.0.0.7 port 4711 ssh2: RSA", "accepted", "ann", "10.0.0.7"),
    ("Accepted keyboard-interactive/pam for ann from 10.0.0.7 port 4711 ssh2", "accepted", "ann", "10.0.0.7"),
    ("Invalid user  from 10.0.0.7", "invalid user", None, "10.0.0.7"),
    ("Invalid user eve from 10.0.0.7 port 99", "invalid user", "eve", "10.0.0.7"),
    ("input_userauth_request: invalid user eve [preauth]", "invalid user", "eve", None),
    ("pam_unix(sshd:auth): authentication failure; uid=0 ruser= rhost=10.1.1.1  user=bob", "failed", "bob", "10.1.1.1"),
    (
        "authentication failure; logname= uid=0 tty=NODEVssh ruser= rhost=h.example.org ",
        "failed",
        None,
        "h.example.org",
    ),
    (
        "message repeated 5 times: [ Failed password for root from 10.0.0.7 port 7 ssh2]",
        "failed",
        "root",
        "10.0.0.7",
    ),
    ("pam_unix(cron:session): session opened for user root(uid=0) by (uid=0)", "session opened", "root", None),
    ("session closed for user cyrus", "session closed", "cyrus", None),
    ("     ann : TTY=pts/0 ; PWD=/home/ann ; USER=root ; COMMAND=/bin/ls", "sudo", "ann", None),
    ("ann : 3 incorrect password attempts ; TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/bin/ls", "failed", "ann", None),
    ("ann : user NOT in sudoers ; TTY=pts/0 ; PWD=/ ; USER=root ; COMMAND=/bin/ls", "failed", "ann", None),
    ("[client 72.15.99.187:8080] File does not exist", None, None, "72.15.99.187"),
    ("the door is open", None, None, None),
]


def test_what_is_said_of_logins(tmp_path: Path) -> None:
    text = "".join(f"Mar  1 00:00:00 h p[1]: {message}\n" for message, *_ in LOGINS)
    found = read(write(tmp_path / "auth.log", text))
    assert rows(found, "message", "event", "user", "source") == [tuple(row) for row in LOGINS]


def test_a_template_is_one_text_from_the_first_line_on_in_windows(tmp_path: Path) -> None:
    names = ["ann", "bob", "eve", "kim"]
    text = "".join(f"2024-01-01 00:00:00 door {n} was opened by {names[n % 4]} at night\n" for n in range(100))
    path = write(tmp_path / "a.log", text)
    parts = list(reading.pieces(path, rows=30))
    assert [len(part) for part in parts] == [30, 30, 30, 10]
    whole = read(path)
    assert {t for part in parts for t in part.column("template")} == {"door <*> was opened by <*> at night"}  # type: ignore[union-attr]
    assert whole.column("message").tolist() == [line[20:] for line in text.splitlines()]


def test_memory_is_bounded_by_the_window(tmp_path: Path) -> None:
    line = "2024-01-01 00:00:00 INFO the pump of line {} ran for {} s " + "without a fault " * 10 + "\n"
    path = write(tmp_path / "a.log", "".join(line.format(n % 7, n) for n in range(3000)))
    tracemalloc.start()
    try:
        assert sum(len(part) for part in reading.pieces(path, rows=50)) == 3000
        assert tracemalloc.get_traced_memory()[1] < 250_000 < path.stat().st_size // 2
    finally:
        tracemalloc.stop()


def test_whatever_is_cut_or_changed_is_records_or_one_clear_error(tmp_path: Path) -> None:
    whole = "\n".join(line for line, _, _ in FORMS).encode()
    draw = np.random.default_rng(3)
    damaged = [whole[:n] for n in range(1, len(whole), 7)]
    for _ in range(150):
        raw = bytearray(whole)
        for at in draw.integers(0, len(raw), 12):
            raw[at] = draw.integers(0, 256)
        damaged.append(bytes(raw))
    for raw in damaged:
        path = write(tmp_path / "a.log", raw)
        try:
            found = reading.read(path, reader="syslog")
            assert len(found) == 1
        except SignalError as fault:
            assert "a.log: none of its" in str(fault)


def test_hostile_lines_take_no_long_time(tmp_path: Path) -> None:
    hostile = ["Invalid user " + " from x" * 9000, "authentication failure; " + "rhost= user= " * 5000]
    hostile += ["a : " + "TTY= " * 10000, "1,1-a:" * 10000, "/%" * 600 + " " + "a-" * 1000, ":" * 4000, "1." * 2000]
    path = write(tmp_path / "a.log", "".join(f"Mar  1 00:00:00 h p[1]: {message}\n" for message in hostile))
    start = time.process_time()
    assert len(read(path)) == len(hostile)
    assert time.process_time() - start < 10


def test_what_it_does_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.log", "hello\nworld\n")
    with pytest.raises(
        SignalError, match=r"a\.log: none of its 2 lines begins with a time that is known: wanted a log"
    ):
        reading.read(path, reader="syslog")
    for text in (
        "2024-01-01 00:00:00,21.5,40\n2024-01-01 00:01:00,21.6,41\n",  # a table
        "1066036250 21.5 40\n1066036260 21.5 40\n",
        "time,temperature\n2024-01-01 00:00:00,21.5\n",
        "hello\nworld\n",
    ):
        assert not syslog.knows(path, text.encode())
    assert not syslog.knows(path, "2024-01-01 00:00:00 some words here".encode("utf-16"))


@pytest.mark.parametrize(
    ("system", "columns"),
    [
        ("Apache", {"message": "Content"}),
        ("HDFS", {"message": "Content", "program": "Component", "pid": "Pid"}),
        ("Linux", {"message": "Content", "host": "Level"}),
        ("OpenSSH", {"message": "Content", "pid": "Pid", "host": "Component"}),
        ("Windows", {"message": "Content"}),
        ("Zookeeper", {"message": "Content"}),
    ],
)
def test_real_logs(data: Callable[[str], Path], system: str, columns: dict[str, str]) -> None:
    """Every line's fields are those that the data set's own table has; times rise but for what is told."""
    found = read(data(f"loghub_2k/{system}/{system}_2k.log"))
    with open(data(f"loghub_2k/{system}/{system}_2k.log_structured.csv"), encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(found) == len(table) == 2000
    for ours, theirs in columns.items():
        got = [str(int(v)) if isinstance(v, float) else v for v in found.column(ours).tolist()]
        for a, row in zip(got, table, strict=True):
            # Windows and Zookeeper name a component in a manner of their own before what is said
            assert a.strip() == row[theirs].strip() or (ours == "message" and a.strip().endswith(row[theirs].strip()))
    clock = {"HDFS": "%H%M%S", "Apache": "%a %b %d %H:%M:%S %Y", "Zookeeper": "%H:%M:%S,%f"}.get(system, "%H:%M:%S")
    assert found.times_s is not None
    for when, row in zip(found.times_s.tolist(), table, strict=True):
        said = datetime.strptime(row["Time"].zfill(6), clock)
        assert when % 86400 == pytest.approx(
            (said - datetime(said.year, said.month, said.day)).total_seconds(), abs=1e-6
        )


@pytest.mark.parametrize("name", ["app.log", "app.log.1", "app.LOG.12", "app.log-20260102"])
def test_old_logs_are_logs(tmp_path: Path, name: str) -> None:
    """Also where their lines could be rows of a table, too."""
    path = tmp_path / name
    path.write_text("".join(f"Jan  2 03:04:{n:02d} host meter: 1 2 3 {n}\n" for n in range(30)), "utf-8")
    assert reading.reader_of(path) is syslog
