from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import MISSING, Records, Series
from genmote.signals.readers import gpx

HEAD = '<?xml version="1.0"?>\n<gpx version="1.1" xmlns="http://www.topografix.com/GPX/1/1">'


def point(n: int, *, ele: str | None = "100.5", time: str | None = "at") -> str:
    inside = f"<ele>{ele}</ele>" if ele is not None else ""
    if time is not None:
        inside += f"<time>{f'2024-05-01T10:{n // 60:02}:{n % 60:02}Z' if time == 'at' else time}</time>"
    return f'<trkpt lat="{45 + n / 1e6:.6f}" lon="-{14 + n / 1e6:.6f}">{inside}</trkpt>\n'


def segment(*points: str) -> str:
    return f"<trkseg>{''.join(points)}</trkseg>"


def write(folder: Path, *segments: str, name: str = "<name>walk</name>") -> Path:
    path = folder / "t.gpx"
    path.write_text(f"{HEAD}<trk>{name}{''.join(segments)}</trk></gpx>")
    return path


def series(found: object) -> Series:
    assert isinstance(found, Series) and found.grid is not None and found.times_s is not None
    return found


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_each_segment_is_a_series(tmp_path: Path, rows: int) -> None:
    first = [point(n, ele=None if n == 2 else f"{n}.25") for n in range(10)]
    path = write(tmp_path, segment(*first), segment(), segment(point(100), point(130)))
    path.write_text(path.read_text().replace("</gpx>", f"<trk><name>&lt;b&gt;</name>{segment(point(7))}</trk></gpx>"))
    found: dict[str, list[Series]] = {}
    notes: list[str] = []
    for piece in reading.pieces(path, rows=rows, notes=notes):
        assert len(piece) <= rows
        found.setdefault(piece.name, []).append(series(piece))
    assert list(found) == ["t 1", "t 2", "t 3"] and notes == []
    one, two, three = (series(reading.joined([*parts])) for parts in found.values())
    assert one.channels == ("latitude", "longitude", "elevation") and one.units == ("deg", "deg", "m")
    assert one.grid is not None and one.times_s is not None and one.rate_hz == 0
    wanted = [
        [45_000_000_000 + 1000 * n, -14_000_000_000 - 1000 * n, MISSING if n == 2 else n * 10**6 + 250_000]
        for n in range(10)
    ]
    assert one.grid.integers.tolist() == wanted
    assert one.values[3].tolist() == [np.float32(45.000003), np.float32(-14.000003), 3.25] and np.isnan(
        one.values[2, 2]
    )
    assert one.times_s.tolist() == [1_714_557_600.0 + n for n in range(10)]
    assert [s.labels["track"] for s in (one, two, three)] == ["walk", "walk", "<b>"] and two.duration_s == 30


def test_times_with_zones_and_fractions(tmp_path: Path) -> None:
    times = ["2024-05-01T10:00:00", "2024-05-01T12:00:01.5+02:00", " 2024-05-01T10:00:02.1234567Z "]
    (found,) = reading.read(write(tmp_path, segment(*(point(0, time=time) for time in times))))
    assert series(found).times_s is not None
    assert np.allclose(series(found).times_s - 1_714_557_600, [0, 1.5, 2.123456], rtol=0, atol=1e-6)  # type: ignore[operator]


def test_what_has_no_times_comes_as_rows(tmp_path: Path) -> None:
    parts = [
        segment(*(point(n, time=None) for n in range(5))),
        segment(point(5), point(6, time="2001-13-01T00:00:00Z")),
    ]
    notes: list[str] = []
    rows, timed = reading.read(write(tmp_path, *parts), notes=notes)
    assert isinstance(rows, Records) and [(f.name, f.type, f.unit) for f in rows.fields] == [
        ("latitude", "number", "deg"),
        ("longitude", "number", "deg"),
        ("elevation", "number", "m"),
    ]
    assert rows.column("latitude").tolist() == [45 + n / 1e6 for n in range(5)] and rows.labels == {"track": "walk"}
    assert len(series(timed)) == 1
    assert notes == [
        "t.gpx: 1 times are no date with a time; taken as absent",
        "t.gpx: 1 segments have no time for most points, so no rate either; they come as rows",
        "t.gpx: 1 points have no time, though others of their segment have; left out",
    ]


def test_what_is_odd_is_told(tmp_path: Path) -> None:
    odd = [
        point(0),
        point(5),
        point(3),
        '<trkpt lat="91" lon="0"/>',
        '<trkpt lon="0"/>',
        '<trkpt lat="nan" lon="1"/>',
        '<trkpt lat="x" lon="1"/>',
        point(6, ele="high"),
        point(7, ele="1e300"),
        point(8, ele="-0.1234567891"),
        point(9, time="1970-01-01T00:00:00Z"),
        "<wpt lat='1' lon='2'><name>home</name></wpt><rtept lat='1' lon='2'/>",
        f"<other>{point(20)}</other>",
        point(30).replace("<ele>", "<extensions><ele>7</ele></extensions><ele>"),
    ]
    notes: list[str] = []
    (found,) = reading.read(write(tmp_path, segment(*odd)), notes=notes)
    table = series(found)
    assert table.times_s is not None and table.grid is not None
    assert (table.times_s - 1_714_557_600).tolist() == [0, 3, 5, 6, 7, 8, 30]
    heights = [100_500_000, 100_500_000, 100_500_000, MISSING, MISSING, -123_457, 100_500_000]
    assert table.grid.integers[:, 2].tolist() == heights
    assert sorted(notes) == [
        "t.gpx: 1 points have more decimals than 1e-09 deg or 1e-06 m; rounded to those",
        "t.gpx: 1 points have no time, though others of their segment have; left out",
        "t.gpx: 1 times lie before 1980-01-06, when GPS began; taken as absent",
        "t.gpx: 1 times went back; the points were brought into order",
        "t.gpx: 2 elevations are no number of metres; taken as absent",
        "t.gpx: 2 waypoints or points of routes are not of a track; left out",
        "t.gpx: 4 points have no latitude within 90 and longitude within 180 deg; left out",
    ]
    notes.clear()
    parts = list(reading.pieces(write(tmp_path, segment(*map(point, [0, 5, 3, 9, 8, 10]))), rows=2, notes=notes))
    assert [series(part).times_s.tolist()[-1] - 1_714_557_600 for part in parts] == [5, 9, 10]  # type: ignore[union-attr]
    assert notes == ["t.gpx: 2 points are older than what was already given; left out"]


def test_a_file_that_was_cut_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = write(tmp_path, segment(*map(point, range(20))))
    path.write_bytes(path.read_bytes()[:1000])
    notes: list[str] = []
    (found,) = reading.read(path, notes=notes)
    whole = path.read_text().count("</trkpt>")
    assert len(found) == whole > 5
    assert len(notes) == 1 and notes[0].startswith("t.gpx: damaged, ") and "; what comes before is read" in notes[0]


def test_other_encodings(tmp_path: Path) -> None:
    text = write(tmp_path, segment(point(0)), name="<name>Čerčan</name>").read_text()
    (tmp_path / "u.gpx").write_bytes(text.replace('"1.0"?', '"1.0" encoding="UTF-16"?').encode("utf-16"))
    (found,) = reading.read(tmp_path / "u.gpx")
    assert series(found).labels == {"track": "Čerčan"}
    (tmp_path / "v.gpx").write_text(text.replace('"1.0"?', '"1.0" encoding="klingon"?'))
    with pytest.raises(SignalError, match=r"v\.gpx: has no points of a track \(damaged, unknown encoding.*\): wanted"):
        reading.read(tmp_path / "v.gpx")


LAUGHS = '<!DOCTYPE gpx [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE gpx SYSTEM "file:///etc/hostname">'


@pytest.mark.parametrize("doctype", [LAUGHS, OUTSIDE])
def test_entities_are_refused(tmp_path: Path, doctype: str) -> None:
    (tmp_path / "t.gpx").write_text(f'<?xml version="1.0"?>{doctype}<gpx><trk><name>&b;</name></trk></gpx>')
    with pytest.raises(SignalError, match=r"t\.gpx: declares a document type: GPX has none, remove it"):
        reading.read(tmp_path / "t.gpx")


def test_an_entity_that_nobody_defined(tmp_path: Path) -> None:
    path = write(tmp_path, segment(point(0)), name="<name>&nbsp;</name>")
    with pytest.raises(SignalError, match=r"t\.gpx: has no points of a track \(damaged, undefined entity.*\): wanted"):
        reading.read(path)


def test_what_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "t.gpx"
    path.write_text("<kml><Placemark/></kml>")
    with pytest.raises(SignalError, match=r"t\.gpx: begins with <kml>: wanted <gpx>"):
        reading.read(path)
    path.write_text(HEAD + '<wpt lat="1" lon="2"/></gpx>')
    with pytest.raises(SignalError, match=r"t\.gpx: has no points of a track \(it has none\): wanted <trkpt> with lat"):
        reading.read(path)
    path.write_text(HEAD + "<a>" * 200)
    with pytest.raises(SignalError, match=r"t\.gpx: has more than 100 elements in each other: wanted GPX"):
        reading.read(path)
    path.write_text(HEAD + '<trk><trkseg><trkpt lat="' + " " * 3_000_000 + '1" lon="2"/></trkseg></trk></gpx>')
    with pytest.raises(SignalError, match=r"t\.gpx: line 2: a tag of more than 1048576 bytes: wanted GPX"):
        reading.read(path)
    assert not gpx.knows(tmp_path / "a.xml", b"<html>") and gpx.knows(tmp_path / "a.xml", HEAD.encode())


def test_memory_stays_with_the_window(tmp_path: Path) -> None:
    path = tmp_path / "t.gpx"
    one = "".join(point(n) for n in range(1000)) + f"<!-- {'x' * 9000} --><trkpt><note>{'y' * 900_000}</note></trkpt>"
    path.write_text(f"{HEAD}<trk>{segment(*[one] * 20)}</trk></gpx>")
    assert path.stat().st_size > 18_000_000
    tracemalloc.start()
    assert sum(len(piece) for piece in gpx.pieces(path, 500, [])) == 1000 + 19  # times go back: only the last second
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("seed", range(20))
def test_damage_ends_in_no_traceback(tmp_path: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    raw = bytearray(write(tmp_path, segment(*map(point, range(9)))).read_bytes())
    for at in draw.integers(0, len(raw), 5):
        raw[at] = draw.integers(0, 256)
    (tmp_path / "t.gpx").write_bytes(raw)
    try:
        reading.read(tmp_path / "t.gpx", reader="gpx")
    except SignalError as fault:
        assert "t.gpx" in str(fault)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("Mojstrovka", [Records]),  # all its times are of 1901
        ("around-visnjan-with-car", [Series]),
        ("cerknicko-jezero", [Series] * 7),
        ("cerknicko-without-times", [Records] * 7),
        ("korita-zbevnica", [Records, Series, Series]),
    ],
)
def test_real_tracks(data: Callable[[str], Path], name: str, kinds: list[type]) -> None:
    path = data(f"gpx_tracks/{name}.gpx")
    found = reading.read(path)
    assert [type(signal) for signal in found] == kinds
    space = "{" + ElementTree.parse(path).getroot().tag[1:].partition("}")[0] + "}"
    segments = [s for s in ElementTree.parse(path).iter(f"{space}trkseg") if len(s)]
    for signal, told in zip(found, segments, strict=True):
        points = told.findall(f"{space}trkpt")
        places = [(float(p.get("lat", "")), float(p.get("lon", ""))) for p in points]
        heights = [float(p.findtext(f"{space}ele", "nan")) for p in points]
        if isinstance(signal, Series):
            assert signal.grid is not None and signal.times_s is not None
            mine = signal.grid.integers * signal.grid.step
            times = [datetime.fromisoformat(p.findtext(f"{space}time", "")).timestamp() for p in points]
            assert signal.times_s.tolist() == times
        else:
            assert isinstance(signal, Records)
            mine = np.stack([*signal.columns], axis=1)
        assert np.abs(mine[:, :2] - places).max() <= 1e-9 and np.abs(mine[:, 2] - heights).max() <= 1e-6


GARMIN = 'xmlns:g="http://www.garmin.com/xmlschemas/TrackPointExtension/v1"'


def watched(n: int, **told: str) -> str:
    """A point with what a watch tells beside."""
    inside = "".join(f"<g:{name}>{text}</g:{name}>" for name, text in told.items() if name != "power")
    power = f"<power>{told['power']}</power>" if "power" in told else ""
    beside = f"<extensions>{power}<g:TrackPointExtension {GARMIN}>{inside}</g:TrackPointExtension></extensions>"
    return point(n).replace("</trkpt>", f"{beside}</trkpt>")


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_what_a_watch_measures_beside(tmp_path: Path, rows: int) -> None:
    first = [watched(0, hr="121", atemp="29.5", power="250"), watched(1, hr="122", atemp="x"), watched(2, hr="2e6")]
    second = [point(10), watched(11, hr="99", cad="80"), watched(12, cad="81.23456")]
    third = [watched(20, cad="80"), watched(21, cad="81.23456")]
    notes: list[str] = []
    parts: dict[str, list[Series]] = {}
    for piece in reading.pieces(
        write(tmp_path, *(segment(*each) for each in (first, second, third))), rows=rows, notes=notes
    ):
        parts.setdefault(piece.name, []).append(series(piece))
    one, two, three = (series(reading.joined([*each])) for each in parts.values())
    assert one.channels == ("latitude", "longitude", "elevation", "heart rate", "temperature", "power")
    assert one.units[3:] == ("1/min", "°C", "W")
    expected = np.array([[121, 29.5, 250], [122, np.nan, np.nan], [np.nan, np.nan, np.nan]], np.float32)
    assert np.array_equal(one.values[:, 3:], expected, equal_nan=True)
    assert two.channels == ("latitude", "longitude", "elevation")
    assert three.channels[3:] == ("cadence",) and three.values[:, 3].tolist() == [80, np.float32(81.235)]
    assert [note.removeprefix("t.gpx: ") for note in notes] == [
        "2 sensors tell no number below a million; taken as absent",
        "2 points tell more than the first of their segment, such as a heart rate; that is left out",
        "1 points have sensors with more than 3 decimals; rounded",
    ]


def test_rows_without_times_have_what_a_watch_measures_too(tmp_path: Path) -> None:
    path = write(tmp_path, segment(*(watched(n, hr=str(100 + n)) for n in range(3))))
    path.write_text("".join(part.partition("</time>")[2] or part for part in path.read_text().split("<time>")))
    (found,) = reading.read(path)
    assert isinstance(found, Records) and found.column("heart rate").tolist() == [100, 101, 102]
