from __future__ import annotations

from pathlib import Path

import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import Records
from genmote.signals.readers import audit


def words(text: str) -> str:
    return text.replace(" ", "\0").encode().hex().upper()


EVENT = """\
type=SYSCALL msg=audit({t}.242:{n}): arch=c000003e syscall=59 success=yes exit=0 a0=7ffd19c5592c a1=90 ppid=26 pid={p} \
auid=4294967295 uid=500 tty=pts0 ses=1 comm="cat" exe="/bin/cat" key="sshd_config"
type=EXECVE msg=audit({t}.242:{n}): argc=2 a0="cat" a1={file}
type=CWD msg=audit({t}.242:{n}):  cwd="/home/sheila"
type=PROCTITLE msg=audit({t}.242:{n}): proctitle={title}
node=gate type=USER_AUTH msg=audit({t}.600:{m}): pid={p} uid=0 auid=1000 msg='op=PAM:authentication acct="root" \
exe="/usr/bin/su" hostname=? addr=10.0.0.7 terminal=pts/0 res=failed'\x1dUID="root" AUID="sheila"
type=AVC msg=audit({t}.700:{m}): avc:  denied  {{ read write }} for  pid={p} comm="httpd" name={file} dev=dm-0 ino=7
"""


def log(count: int = 40) -> str:
    return "".join(
        EVENT.format(
            t=1_364_481_363 + n, n=2 * n, m=2 * n + 1, p=3000 + n, title=words(f"cat /tmp/{n}"), file=words("a b")
        )
        for n in range(count)
    )


def put(tmp_path: Path, text: str, name: str = "audit.log") -> Path:
    (tmp_path / name).write_text(text, "utf-8")
    return tmp_path / name


def one(path: Path, notes: list[str] | None = None) -> Records:
    (found,) = reading.read(path, notes=notes)
    assert isinstance(found, Records)
    return found


def test_all_that_the_lines_say(tmp_path: Path) -> None:
    notes: list[str] = []
    found = one(put(tmp_path, log()), notes)
    assert reading.reader_of(tmp_path / "audit.log") is audit and len(found) == 240
    assert notes == ["audit.log: 120 rows have the time of the row before"]
    assert found.times_s is not None and found.times_s[6:12].tolist() == [
        *[1_364_481_364.242] * 4, 1_364_481_364.6, 1_364_481_364.7,
    ]  # fmt: skip

    def row(n: int) -> dict[str, object]:
        there = {field.name: column[6 * 5 + n] for field, column in zip(found.fields, found.columns, strict=True)}
        return {name: cell for name, cell in there.items() if cell is not None and cell == cell}

    assert row(0) == {
        "type": "SYSCALL", "serial": 10, "arch": "0xc000003e", "syscall": 59, "success": "yes", "exit": 0,
        "a0": "0x7ffd19c5592c", "a1": "0x90", "ppid": 26, "pid": 3005, "uid": 500, "tty": "pts0", "ses": 1,
        "comm": "cat", "exe": "/bin/cat", "key": "sshd_config",
    }  # fmt: skip
    assert row(1) == {"type": "EXECVE", "serial": 10, "argc": 2, "command": "cat a b"}
    assert row(2) == {"type": "CWD", "serial": 10, "cwd": "/home/sheila"}
    assert row(3) == {"type": "PROCTITLE", "serial": 10, "proctitle": "cat /tmp/5"}
    assert row(4) == {
        "node": "gate", "type": "USER_AUTH", "serial": 11, "pid": 3005, "uid": 0, "auid": 1000,
        "op": "PAM:authentication", "acct": "root", "exe": "/usr/bin/su", "addr": "10.0.0.7", "terminal": "pts/0",
        "res": "failed", "UID": "root", "AUID": "sheila",
    }  # fmt: skip
    assert row(5) == {
        "type": "AVC", "serial": 11, "avc": "denied", "permissions": "read write", "pid": 3005, "comm": "httpd",
        "name": "a b", "dev": "dm-0", "ino": 7,
    }  # fmt: skip
    assert {field.type for field in found.fields if field.name in ("serial", "pid", "syscall", "exit")} == {"integer"}
    parts = list(reading.pieces(tmp_path / "audit.log", rows=100))
    assert [len(part) for part in parts] == [100, 100, 40]


def test_what_ausearch_writes_between_the_events(tmp_path: Path) -> None:
    text = log(5).replace("type=SYSCALL", "----\ntime->Thu Mar 28 14:36:03 2013\ntype=SYSCALL")
    notes: list[str] = []
    assert len(one(put(tmp_path, text, "audit.log.1"), notes)) == 30
    assert not any("left out" in note for note in notes)


def test_damaged_lines(tmp_path: Path) -> None:
    lines = log().split("\n")
    lines[7], lines[50] = "\0\0\0", lines[50][:14]
    notes: list[str] = []
    assert len(one(put(tmp_path, "\n".join(lines)), notes)) == 238
    said = "line 8 '\\x00\\x00\\x00', line 51 'type=CWD msg=a'"
    assert f"audit.log: 2 lines that are none of an audit log are left out: {said}" in notes
    for text, message in (
        (
            "\n".join(lines[:9] + ["words"] * 99),
            r"audit\.log, line \d+: \d+ of \d+ lines are none of an audit log; wanted",
        ),
        ("----\n", r"audit\.log: has no line of an audit log: wanted some, such as type=SYSCALL msg=audit\(TIME:N\)"),
    ):
        with pytest.raises(SignalError, match=message):
            reading.read(put(tmp_path, text), reader="audit")


def test_other_logs_are_none(tmp_path: Path) -> None:
    for line in ("Jan  2 03:04:05 host audit: type=1400 audit(1.0:2): x", "type=SYSCALL", "2024-01-01 type=A msg=b"):
        assert not audit.knows(tmp_path / "audit.log", line.encode())
