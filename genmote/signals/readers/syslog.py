"""Log lines: syslog, auth.log, Apache's error log, and other text whose lines begin with a time.

C. Lonvick, "The BSD syslog Protocol", RFC 3164 (2001), with and without a priority; R. Gerhards, "The Syslog Protocol",
RFC 5424 (2009), structured data staying in the message; Apache's error log of 2.2 and 2.4; the times of rsyslog, log4j
and others. A file is read twice: its templates are mined first, so that each has one text from the first line on.

Rows: the host, the program and its pid, facility and severity by RFC 5424's names, and of what is said of somebody's
login the `event`, the `user` and the `source` address; the `template` of the message's first line (`templates.py`: its
parameters are what the message has in the template's places), and the whole `message`.
"""

from __future__ import annotations

import calendar
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from genmote.errors import SignalError
from genmote.signals.kinds import Field, Records
from genmote.signals.logins import login
from genmote.signals.readers import zeek
from genmote.signals.reading import suffix
from genmote.signals.templates import REST, Miner

SUFFIXES = (".log", ".syslog")
LONGEST = 1 << 16  # bytes of a line, and characters of a message: what is beyond is left out
WORD = re.compile(r"[^\W\d_]{3,}")

FACILITIES = (
    "kern user mail daemon auth syslog lpr news uucp cron authpriv ftp ntp audit alert clock "
    "local0 local1 local2 local3 local4 local5 local6 local7"
).split()
SEVERITIES = "emerg alert crit err warning notice info debug".split()
LEVELS = {name: name for name in SEVERITIES} | {
    "emergency": "emerg", "critical": "crit", "fatal": "crit", "severe": "crit", "error": "err", "warn": "warning",
    "information": "info", "fine": "debug", "trace": "debug", **{f"trace{n}": "debug" for n in range(1, 9)},
}  # fmt: skip
MONTHS = {name: n for n, name in enumerate(calendar.month_abbr) if name}

PRIORITY = r"(?:<(?P<priority>\d{1,3})>)?"
ISO = r"(?P<year>\d{4})[-/](?P<month>\d\d)[-/](?P<day>\d\d)"
CLOCK = r"(?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)(?:[.,](?P<part>\d{1,9}))?"
ZONE = r"(?:\s?(?P<zone>Z|[+-]\d\d:?\d\d))?"
NAMED = r"(?P<name>[A-Z][a-z]{2}) +(?P<day>\d{1,2})"
TAG = r"(?P<program>[^\s:\[\]<>]{1,64})(?:\[(?P<pid>\d+)\])?: ?"
LEVEL = "|".join(sorted(LEVELS, key=len, reverse=True))
SAID = (
    rf"(?:(?P<pid>\d+)\s+)?(?:(?P<loud>{LEVEL.upper()})\b[\s:]*|[\[<](?i:(?P<level>{LEVEL}))[\]>][\s:]*|"
    rf"(?P<calm>{LEVEL.title()})(?:\s{{2,}}|\t))"
)

# The first that fits a line is its form; the last three are of any program, and want words after the time.
FORMS = [
    re.compile(form, re.DOTALL)
    for form in (
        rf"<(?P<priority>\d{{1,3}})>1 (?:{ISO}T{CLOCK}{ZONE}|-) (?P<host>\S+) (?P<program>\S+) (?P<pid>\S+) \S+ "
        r"(?:- ?|(?=\[))\ufeff?(?P<message>.*)",
        rf"{PRIORITY}{NAMED} (?:(?P<year>\d{{4}}) )?{CLOCK} (?P<host>\S+) (?:{TAG})?(?P<message>.*)",
        rf"{PRIORITY}{ISO}T{CLOCK}{ZONE} (?P<host>[^\s\[\]]+) {TAG}(?P<message>.*)",
        rf"\[(?:[A-Z][a-z]{{2}} )?{NAMED} {CLOCK} (?P<year>\d{{4}})\] "
        r"(?:\[(?:(?P<program>\w+):)?(?P<level>[a-z0-9]+)\] )?(?:\[pid (?P<pid>\d+)[^\]]*\] )?(?P<message>.*)",
        rf"\[?{ISO}[T ]{CLOCK}{ZONE}\]?[\s,:-]+(?:{SAID})?(?P<message>.*)",
        r"(?P<short>\d\d)(?P<month>\d\d)(?P<day>\d\d) (?P<h>\d\d)(?P<m>\d\d)(?P<s>\d\d) +"
        rf"{SAID}(?:{TAG.replace('pid', 'other')})?(?P<message>.*)",
        r"\[?(?P<epoch>\d{9,10}(?:\.\d{1,9})?)\]?[\s:]+" rf"(?:{SAID})?(?P<message>.*)",
    )
]
ANY_PROGRAM = 4

FIELDS = (
    Field("host", "category"),
    Field("program", "category"),
    Field("pid", "integer"),
    Field("facility", "category"),
    Field("severity", "category"),
    Field("event", "category"),
    Field("user", "category"),
    Field("source", "category"),
    Field("template", "category"),
    Field("message", "text"),
)
Row = dict[str, str | None]


def knows(path: Path, head: bytes) -> bool:
    """Whether the first line or every other begins with a time before words; any, in a file that is called a log."""
    if zeek.knows(path, head):
        return False  # its lines begin with a time, too
    lines = [line for line in head.decode("utf-8-sig", "replace").splitlines() if line.strip()]
    fits = [_speaks(line) for line in lines[:20]]
    if suffix(path) in SUFFIXES:
        return any(fits)
    return any(fits[:1]) or 2 * sum(fits) >= max(1, len(fits))


def _speaks(line: str) -> bool:
    form, found = _form(line)
    return found is not None and (form < ANY_PROGRAM or len(WORD.findall(found["message"])) >= 2)


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Records]:
    tally: Counter[str] = Counter()
    years, miner = _Years(), Miner()
    for _, row in _entries(path, years, tally):
        tally["entries"] += 1
        tally["rest"] += miner.add(_first_line(row))[0] == REST
    if not tally["entries"]:
        raise SignalError(
            f"{path}: none of its {tally['lines']} lines begins with a time that is known: wanted a log such as "
            "'Jan  2 03:04:05 host program[7]: message' or '2026-01-02T03:04:05Z message'"
        )
    _tell(path, tally, years, notes)
    years = _Years(years.first(datetime.fromtimestamp(path.stat().st_mtime, UTC)))
    batch: list[tuple[float, Row]] = []
    for entry in _entries(path, years, Counter()):
        batch.append(entry)
        if len(batch) == rows:
            yield _records(path, batch, miner)
            batch = []
    if batch:
        yield _records(path, batch, miner)


def _tell(path: Path, tally: Counter[str], years: _Years, notes: list[str]) -> None:
    if tally["yearless"]:
        last = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        first = years.first(last)
        span = f"{first}" if not years.turns else f"{first} to {first + years.turns}, New Year being passed in it,"
        notes.append(f"{path.name}: {tally['yearless']} times without a year; {span} taken, by the file's own date")
    for key, text in (
        ("zoneless", "times without a zone, taken as UTC"),
        ("untimed", "lines say that they have no time; NaN"),
        ("joined", "lines without a time, joined to the line before"),
        ("early", "lines before the first time, left out"),
        ("bytes", "lines with bytes that are no UTF-8 text, replaced"),
        ("long", f"lines or messages beyond {LONGEST} characters, cut there"),
        ("back", "lines dated before the one above; the file's order is kept"),
        ("rest", "messages that fit none of as many templates as are kept; theirs is <*>"),
    ):
        if tally[key]:
            notes.append(f"{path.name}: {tally[key]} {text}")


class _Years:
    """The year of times that have none: the last line's is the one the file was written in, less one a New Year before.

    RFC 3164's times have a month and a day. A step back by more than a month is a New Year, and a step on by more than
    eleven is a late line of the year before.
    """

    def __init__(self, start: int = 2000) -> None:  # a leap year, while none is known
        self.year = self.start = start
        self.at = 0  # month and day of the line before, in days of months of 31
        self.leaps: set[int] = set()  # turns in which there was a 29 February

    @property
    def turns(self) -> int:
        return self.year - self.start

    def of(self, month: int, day: int) -> int:
        now = 31 * month + day
        if self.at and now < self.at - 31:
            self.year += 1
        elif self.at and now > self.at + 341 and self.turns:
            self.year -= 1
        self.at = now
        if (month, day) == (2, 29):
            self.leaps.add(self.turns)
        return self.year

    def first(self, modified: datetime) -> int:
        """The first line's year, so that the last is not after the file was written and each 29 February exists."""
        last = modified.year - (self.at > 31 * modified.month + modified.day + 1)
        first = last - self.turns
        fitting = (year for year in range(first, first - 8, -1) if all(calendar.isleap(year + n) for n in self.leaps))
        return next(fitting, first)


def _entries(path: Path, years: _Years, tally: Counter[str]) -> Iterator[tuple[float, Row]]:
    """Time and fields of each message, lines without a time joined to the one before."""
    held: tuple[float, Row] | None = None
    text: list[str] = []
    size, latest = 0, -np.inf
    for line in _lines(path, tally):
        _, found = _form(line)
        time = None if found is None else _time(found.groupdict(), years, tally)
        if time is None or found is None:
            if held is None:
                tally["early"] += bool(line.strip())
            elif size + len(line) >= LONGEST:
                tally["long"] += 1
            else:
                text.append(line)
                size += len(line) + 1
                tally["joined"] += 1
            continue
        if held is not None:
            yield held[0], held[1] | {"message": "\n".join(text)}
        held, text = (time, found.groupdict()), [found["message"]]
        size = len(text[0])
        tally["back"] += time < latest
        latest = time
    if held is not None:
        yield held[0], held[1] | {"message": "\n".join(text)}


def _lines(path: Path, tally: Counter[str]) -> Iterator[str]:
    with open(path, "rb") as file:
        while raw := file.readline(LONGEST):
            if len(raw) == LONGEST and not raw.endswith(b"\n"):
                tally["long"] += 1
                while (more := file.readline(LONGEST)) and not more.endswith(b"\n"):
                    pass
            tally["lines"] += 1
            raw = raw.rstrip(b"\r\n")
            clean = raw.strip(b"\0")  # what a power cut leaves
            try:
                line = clean.decode()
                tally["bytes"] += clean != raw
            except UnicodeDecodeError:
                line = clean.decode("utf-8", "replace")
                tally["bytes"] += 1
            yield line.removeprefix("\ufeff")


def _form(line: str) -> tuple[int, re.Match[str] | None]:
    for n, form in enumerate(FORMS):
        if found := form.match(line):
            return n, found
    return len(FORMS), None


def _time(row: Row, years: _Years, tally: Counter[str]) -> float | None:
    """Seconds since 1970; None where there is no such day or time of day."""
    if epoch := row.get("epoch"):
        return float(epoch)
    if row["h"] is None:
        tally["untimed"] += 1
        return float("nan")
    month = MONTHS.get(row.get("name") or "") or int(row.get("month") or 0)
    day, hour, minute, second = (int(row[key] or 0) for key in ("day", "h", "m", "s"))
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        return None
    if short := row.get("short"):
        year = 2000 + int(short)
    elif row["year"] is not None:
        year = int(row["year"])
    else:
        year = years.of(month, day)
        tally["yearless"] += 1
    midnight = _midnight(year, month, day)
    if midnight is None:
        return None
    part = row.get("part")
    time = midnight + 3600 * hour + 60 * minute + second + (float(f"0.{part}") if part else 0.0)
    zone = row.get("zone")
    tally["zoneless"] += zone is None
    if zone and zone != "Z":
        away = 60 * (60 * int(zone[1:3]) + int(zone[-2:]))
        time -= -away if zone[0] == "-" else away
    return time


@lru_cache(maxsize=64)
def _midnight(year: int, month: int, day: int) -> int | None:
    try:
        return 86400 * (date(year, month, day).toordinal() - date(1970, 1, 1).toordinal())
    except ValueError:
        return None


def _first_line(row: Row) -> str:
    return (row["message"] or "").partition("\n")[0]


def _records(path: Path, batch: list[tuple[float, Row]], miner: Miner) -> Records:
    rows = [_fields(row, miner) for _, row in batch]
    pids = np.array([row["pid"] for row in rows], np.float64)
    columns = [
        pids if field.name == "pid" else np.array([*(row[field.name] for row in rows), None], object)[:-1]
        for field in FIELDS
    ]
    return Records(path.stem, FIELDS, tuple(columns), np.array([time for time, _ in batch]))


def _fields(row: Row, miner: Miner) -> dict[str, str | float | None]:
    message = row["message"] or ""
    number, _ = miner.match(_first_line(row)) or (REST, ())
    level = row.get("level") or row.get("loud") or row.get("calm")
    facility, severity = None, LEVELS.get(level.lower()) if level else None
    priority = row.get("priority")
    if priority is not None and int(priority) < 8 * len(FACILITIES):
        facility, severity = FACILITIES[int(priority) // 8], SEVERITIES[int(priority) % 8]
    pid = row.get("pid")
    event, user, source = login(_first_line(row))
    return {
        "host": _named(row.get("host")),
        "program": _named(row.get("program")),
        "pid": float(pid) if pid is not None and pid.isdecimal() else np.nan,
        "facility": facility,
        "severity": severity,
        "event": event,
        "user": user,
        "source": source,
        "template": miner.template(number),
        "message": message,
    }


def _named(word: str | None) -> str | None:
    return None if word == "-" else word
