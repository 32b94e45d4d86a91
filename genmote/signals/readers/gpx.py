"""Tracks of GPX files: latitude, longitude and elevation of each point, a series for each segment of a track.

Topografix, "GPX 1.1 Schema Documentation" (2004). What watches measure beside (Garmin, "TrackPointExtension v2" (2013):
heart rate, cadence, temperature; power as others write it) comes too, where a segment's first point has it. The text is
read as it streams by; a document type, with which XML would define entities or fetch others, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from xml.parsers import expat

import numpy as np

from genmote.errors import SignalError
from genmote.signals.kinds import MISSING, Field, Grid, Records, Series

SUFFIXES = (".gpx",)
CHUNK = 1 << 16
LONGEST = 1 << 20  # bytes of one tag
DEEPEST = 100  # elements in each other
GPS_BEGAN_S = 315_964_800.0  # 1980-01-06: an earlier time is that of a clock that was never set
HIGHEST_M = MOST = 1e6
CHANNELS, UNITS = ("latitude", "longitude", "elevation"), ("deg", "deg", "m")
SENSORS = {"hr": ("heart rate", "1/min"), "cad": ("cadence", "1/min"), "atemp": ("temperature", "°C")}
SENSORS["power"] = ("power", "W")
# 0.1 mm on the ground: finer than any receiver, coarse enough for float64.
STEP = np.array([1e-9, 1e-9, 1e-6, *[1e-3] * len(SENSORS)])
# Latitude, longitude, elevation, what each of the sensors tells, and seconds since 1970; NaN where absent.
Point = tuple[float, ...]


def knows(path: Path, head: bytes) -> bool:
    narrow = head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")  # UTF-16 is allowed
    return b"<gpx" in narrow or (path.suffix.lower() == ".gpx" and narrow[:1] == b"<")


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Series | Records]:
    walk, segments = _Walk(path), 0
    segment: _Segment | None = None
    with open(path, "rb") as file:
        going = True
        while going:
            chunk = file.read(CHUNK)
            going = walk.feed(chunk) and chunk != b""
            for track, point in walk.taken():
                if point is not None:
                    if segment is None:
                        segments += 1
                        segment = _Segment(f"{path.stem} {segments}", {"track": track} if track else {}, walk.told)
                    segment.points.append(point)
                    if len(segment.points) == rows:
                        yield from segment.piece()
                elif segment is not None:
                    yield from segment.piece()
                    segment = None
    if segment is not None:
        yield from segment.piece()
    if not segments:
        why = walk.damage or "it has none"
        raise SignalError(f"{path}: has no points of a track ({why}): wanted <trkpt> with lat and lon in <trkseg>")
    if walk.damage:
        notes.append(f"{path.name}: {walk.damage}; what comes before is read")
    notes += [f"{path.name}: {count} {text}" for text, count in walk.told.items()]


class _Segment:
    """The points of a segment that were not given yet."""

    def __init__(self, name: str, labels: dict[str, str], told: dict[str, int]) -> None:
        self.name, self.labels, self.told = name, labels, told
        self.points: list[Point] = []
        self.sensors: list[int] | None = None  # those of the first point
        self.timed: bool | None = None  # not known before the first piece
        self.last_s = -np.inf

    def _tell(self, text: str, count: int) -> None:
        if count:
            self.told[text] = self.told.get(text, 0) + count

    def piece(self) -> Iterator[Series | Records]:
        """What is waiting, where that is anything: a series by time, rows where most points have no time."""
        table = np.array(self.points).reshape(-1, len(STEP) + 1)
        self.points.clear()
        if self.sensors is None:
            self.sensors = [n for n in range(3, len(STEP)) if np.isfinite(table[0, n])]
        others = [n for n in range(3, len(STEP)) if n not in self.sensors]
        more = int(np.isfinite(table[:, others]).any(axis=1).sum())
        self._tell("points tell more than the first of their segment, such as a heart rate; that is left out", more)
        at = [0, 1, 2, *self.sensors]
        told = [(*CHANNELS, *(name for name, _ in SENSORS.values())), (*UNITS, *(unit for _, unit in SENSORS.values()))]
        channels, units = (tuple(all_of[n] for n in at) for all_of in told)
        times_s = table[:, -1]
        if self.timed is None:
            self.timed = 2 * int(np.isfinite(times_s).sum()) >= len(table)
            self._tell("segments have no time for most points, so no rate either; they come as rows", not self.timed)
        if not self.timed:
            if len(table):
                fields = tuple(Field(name, "number", unit) for name, unit in zip(channels, units, strict=True))
                yield Records(self.name, fields, tuple(table[:, n].copy() for n in at), labels=self.labels)
            return
        self._tell("points have no time, though others of their segment have; left out", int(np.isnan(times_s).sum()))
        table = table[np.isfinite(times_s)]
        late = table[:, -1] < self.last_s
        self._tell("points are older than what was already given; left out", int(late.sum()))
        table = table[~late]
        behind = int((np.diff(table[:, -1]) < 0).sum())
        self._tell("times went back; the points were brought into order", behind)
        table = table[np.argsort(table[:, -1], kind="stable")]
        if not len(table):
            return
        self.last_s = float(table[-1, -1])
        steps = table[:, at] / STEP[at]
        whole = np.where(np.isnan(steps), MISSING, np.round(np.nan_to_num(steps))).astype(np.int64)
        finer = np.abs(steps - np.round(steps)) > 1e-3
        text = f"points have more decimals than {STEP[0]:g} deg or {STEP[2]:g} m; rounded to those"
        self._tell(text, int(finer[:, :3].any(axis=1).sum()))
        self._tell("points have sensors with more than 3 decimals; rounded", int(finer[:, 3:].any(axis=1).sum()))
        grid = Grid(whole, STEP[at], np.zeros(len(at)))
        yield Series(self.name, grid.values(), 0.0, channels, units, table[:, -1].copy(), grid, self.labels)


class _Walk:
    """The events of a GPX file as its bytes come."""

    def __init__(self, path: Path) -> None:
        self.path, self.damage, self._track = path, "", ""
        self.told: dict[str, int] = {}  # what is left out or repaired, and how often
        self._events: list[tuple[str, Point | None]] = []  # the track, and the point or None where a segment ends
        self._open: list[str] = []
        self._attributes: dict[str, str] = {}
        self._texts: dict[str, str] = {}  # of the elements in the point or track that is open
        self._fed = 0
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._doctype

    def feed(self, chunk: bytes) -> bool:
        """Takes the next bytes, none at the end; False where the text is damaged and nothing more can be read."""
        try:
            self._parser.Parse(chunk, not chunk)
        except SignalError:
            raise
        except (expat.ExpatError, LookupError, ValueError) as fault:
            self.damage = f"damaged, {fault}"
            return False
        self._fed += len(chunk)
        if self._fed - self._parser.CurrentByteIndex > LONGEST:
            raise SignalError(
                f"{self.path}: line {self._parser.CurrentLineNumber}: a tag of more than {LONGEST} bytes: wanted GPX"
            )
        return True

    def taken(self) -> list[tuple[str, Point | None]]:
        events, self._events = self._events, []
        return events

    def _tell(self, text: str) -> None:
        self.told[text] = self.told.get(text, 0) + 1

    def _doctype(self, *_: object) -> None:
        raise SignalError(f"{self.path}: declares a document type: GPX has none, remove it")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(" ")[2]
        if not self._open and name != "gpx":
            raise SignalError(f"{self.path}: begins with <{name[:40]}>: wanted <gpx>")
        if len(self._open) == DEEPEST:
            raise SignalError(f"{self.path}: has more than {DEEPEST} elements in each other: wanted GPX")
        self._open.append(name)
        if name in ("trk", "trkpt"):
            self._attributes, self._texts = attributes, {}
            self._track = "" if name == "trk" else self._track

    def _characters(self, text: str) -> None:
        known = self._open[-2:] in (["trk", "name"], ["trkpt", "ele"], ["trkpt", "time"])
        # What is measured beside stands somewhere in a point's extensions.
        if known or (self._open and self._open[-1] in SENSORS and "trkpt" in self._open):
            self._texts[self._open[-1]] = (self._texts.get(self._open[-1], "") + text)[:200]

    def _end(self, name: str) -> None:
        name = self._open.pop()
        if name == "trkpt" and self._open[-1:] == ["trkseg"]:
            self._point()
        elif name == "trkseg":
            self._events.append((self._track, None))
        elif name == "name" and self._open[-1:] == ["trk"]:
            self._track = self._texts.get("name", "").strip()
        elif name in ("wpt", "rtept"):
            self._tell("waypoints or points of routes are not of a track; left out")

    def _point(self) -> None:
        latitude, longitude = (_number(self._attributes.get(key, "")) for key in ("lat", "lon"))
        if not (abs(latitude) <= 90 and abs(longitude) <= 180):
            self._tell("points have no latitude within 90 and longitude within 180 deg; left out")
            return
        elevation, time_s = np.nan, np.nan
        if "ele" in self._texts:
            elevation = _number(self._texts["ele"])
            if not abs(elevation) <= HIGHEST_M:
                elevation = np.nan
                self._tell("elevations are no number of metres; taken as absent")
        if "time" in self._texts:
            time_s = _seconds(self._texts["time"])
            if np.isnan(time_s):
                self._tell("times are no date with a time; taken as absent")
            elif time_s < GPS_BEGAN_S:
                time_s = np.nan
                self._tell("times lie before 1980-01-06, when GPS began; taken as absent")
        sensors = [_number(self._texts.get(name, "nan")) for name in SENSORS]
        if any(name in self._texts and not abs(one) < MOST for name, one in zip(SENSORS, sensors, strict=True)):
            sensors = [one if abs(one) < MOST else np.nan for one in sensors]
            self._tell("sensors tell no number below a million; taken as absent")
        self._events.append((self._track, (latitude, longitude, elevation, *sensors, time_s)))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _seconds(text: str) -> float:
    """Since 1970, of a time of ISO 8601, which is UTC where it does not say otherwise."""
    try:
        time = datetime.fromisoformat(text.strip())
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return np.nan
