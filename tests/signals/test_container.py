"""Compressed signals: what goes in comes out, damage is named, and pieces are enough."""

from __future__ import annotations

import struct
import wave
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import container, modality, reading, writing
from genmote.signals._planes import varint
from genmote.signals.kinds import MISSING, Grid, Mark, Records, Series

DRAW = np.random.default_rng(11)


def series(integers: np.ndarray, **more: object) -> Series:
    channels = integers.shape[1]
    grid = Grid(integers.astype(np.int64), np.full(channels, 0.25), np.arange(channels, dtype=np.float64))
    names = tuple(f"c{n}" for n in range(channels))
    settings = {"rate_hz": 50.0, **more}
    return Series("s", grid.values(), settings.pop("rate_hz"), names, ("V",) * channels, grid=grid, **settings)  # type: ignore[arg-type]


def again(path: Path, *signals: Series, **settings: object) -> list[Series]:
    container.write(path, signals, **settings)  # type: ignore[arg-type]
    found: list[Series] = []
    for piece in container.read(path):
        new = not found or found[-1].name != piece.name
        found.append(piece) if new else found.append(reading.joined([found.pop(), piece]))  # type: ignore[arg-type]
    return found


def check(a: Series, b: Series) -> None:
    assert a.grid is not None and b.grid is not None
    assert np.array_equal(a.grid.integers, b.grid.integers) and np.array_equal(a.values, b.values, equal_nan=True)
    assert (a.name, a.rate_hz, a.channels, a.units, a.labels, a.marks) == (
        b.name,
        b.rate_hz,
        b.channels,
        b.units,
        b.labels,
        b.marks,
    )
    assert (a.times_s is None) == (b.times_s is None) and a.start_s == b.start_s
    if a.times_s is not None and b.times_s is not None:
        assert np.array_equal(a.times_s, b.times_s)


CASES = {
    "plain": DRAW.integers(-100, 100, (300, 2)),
    "constant": np.full((50, 3), 7),
    "one row": np.array([[5, -5]]),
    "no row": np.zeros((0, 2), np.int64),
    "all missing": np.full((40, 2), MISSING),
    "some missing": np.where(DRAW.random((200, 2)) < 0.2, MISSING, DRAW.integers(-9, 9, (200, 2))),
    "missing first": np.array([[MISSING], [MISSING], [4], [MISSING], [5]]),
    "multiples": DRAW.integers(-50, 50, (200, 1)) * 256 + 3,
    "few values": DRAW.choice([-(10**9), 0, 17, 10**12], (300, 2)),
    "wide": DRAW.integers(-(2**62), 2**62, (30, 2)),
    "extremes": DRAW.choice([MISSING + 1, 2**63 - 1, 0], (30, 1)),
    "many channels": DRAW.integers(0, 3, (20, 70)),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_lost(name: str, tmp_path: Path) -> None:
    whole = series(
        CASES[name], labels={"who": "Å"}, start_s=0.25, marks=(Mark(0, 1, "start"),) if len(CASES[name]) else ()
    )
    if not len(whole):
        assert again(tmp_path / "a.gmsc", whole) == []
        return
    (found,) = again(tmp_path / "a.gmsc", whole)
    check(found, whole)


def test_times_of_their_own_come_back_to_the_bit(tmp_path: Path) -> None:
    times = 1.7e9 + np.cumsum(DRAW.exponential(1.0, 400))
    times[7] = np.nan
    whole = series(DRAW.integers(0, 50, (400, 1)), rate_hz=0.0, times_s=times)
    (found,) = again(tmp_path / "a.gmsc", whole)
    assert found.times_s is not None and found.times_s.tobytes() == times.tobytes()


def test_blocks_pieces_and_several_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "BLOCK_SAMPLES", 100)
    marks = tuple(Mark(n, n + 1, str(n)) for n in range(0, 240, 20))
    one, two = series(DRAW.integers(-99, 99, (240, 2)), marks=marks), series(DRAW.integers(-9, 9, (130, 1)))
    two = Series("t", two.values, 50.0, two.channels, two.units, grid=two.grid)
    made = container.write(tmp_path / "a.gmsc", [one.part(0, 70), one.part(70, 240), two], threads=3)
    assert (made.series, made.samples, made.bytes) == (2, 610, (tmp_path / "a.gmsc").stat().st_size)
    pieces = list(container.read(tmp_path / "a.gmsc"))
    assert max(map(len, pieces)) <= 100 and {piece.name for piece in pieces} == {"s", "t"}
    check(reading.joined([p for p in pieces if p.name == "s"]), one)  # type: ignore[arg-type]
    check(reading.joined([p for p in pieces if p.name == "t"]), two)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [0.5, 0.013])
def test_no_sample_is_off_by_more_than_was_said(error: float, tmp_path: Path) -> None:
    values = DRAW.normal(0, 40, (500, 2)).astype(np.float32)
    values[::17] = np.nan
    whole = Series("f", values, 10.0, ("a", "b"), ("V", "V"))
    (found,) = again(tmp_path / "a.gmsc", whole, max_error=error)
    there = np.isfinite(values)
    assert np.array_equal(np.isfinite(found.values), there)
    assert np.abs(found.values[there].astype(float) - values[there]).max() <= error + 1e-5
    coarse = series(CASES["some missing"])
    (close,) = again(tmp_path / "b.gmsc", coarse, max_error=error)
    assert np.nanmax(np.abs(close.values - coarse.values)) <= error + 1e-6


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.gmsc"
    whole = series(DRAW.integers(-100, 100, (60, 2)))
    container.write(path, [whole])
    good = path.read_bytes()
    for at in range(len(good)):
        broken = bytearray(good)
        broken[at] ^= 1 << int(DRAW.integers(8))
        path.write_bytes(bytes(broken))
        with pytest.raises(SignalError, match=r"a\.gmsc"):
            list(container.read(path))
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(SignalError, match=r"is no compressed signal|ends in the middle|damaged"):
            list(container.read(path))


def test_messages(tmp_path: Path) -> None:
    path = tmp_path / "a.gmsc"
    with pytest.raises(SignalError, match=r"absent: cannot be read \(No such file or directory\): wanted a compressed"):
        list(container.read(tmp_path / "absent"))
    path.write_bytes(b"RIFF1234")
    with pytest.raises(SignalError, match="is no compressed signal: wanted a file that genmote signal compress wrote"):
        list(container.read(path))
    path.write_bytes(b"GMSC\x09")
    with pytest.raises(SignalError, match="has version 9, this genmote reads 1: update it"):
        list(container.read(path))
    floats = Series("f", np.zeros((3, 1), np.float32), 1.0, ("a",), ("V",))
    target = tmp_path / "new.gmsc"
    with pytest.raises(SignalError, match=r"f: its samples are no whole numbers of a step.*--max-error"):
        container.write(target, [floats])
    with pytest.raises(SignalError, match="r: is records, only series are compressed so far"):
        container.write(target, [Records("r", (), ())])
    with pytest.raises(SignalError, match="there is no series to compress"):
        container.write(target, [])
    with pytest.raises(SignalError, match="f: has infinite samples, which no step reaches; take them out"):
        container.write(target, [Series("f", np.full((3, 1), np.inf, np.float32), 1.0, ("a",), ("",))], max_error=1)
    with pytest.raises(SignalError, match="f: max-error 1e-20 is too little for samples of that size; raise it"):
        container.write(target, [Series("f", np.full((3, 1), 9, np.float32), 1.0, ("a",), ("",))], max_error=1e-20)
    assert not target.exists()


def test_written_as_a_table(tmp_path: Path) -> None:
    whole = Series(
        "s",
        np.zeros((3, 2), np.float32),
        2.0,
        ("a", "b"),
        ("V", ""),
        grid=Grid(np.array([[1, -5], [MISSING, 0], [-12, 7]]), np.array([0.01, 3.0]), np.array([0.0, 1.0])),
    )
    ((path, rows),) = writing.write(tmp_path / "a.csv", [whole.part(0, 2), whole.part(2, 3)])
    assert rows == 3
    assert path.read_text("utf-8") == "time (s),a (V),b\n0,0.01,-14\n0.5,,1\n1,-0.12,22\n"


@pytest.mark.parametrize("width", [1, 2, 3])
def test_sound_comes_back_as_it_was(width: int, tmp_path: Path) -> None:
    most = 2 ** (8 * width - 1)
    whole = DRAW.integers(-most, most, (500, 1))
    raw = (whole + 128).astype(np.uint8) if width == 1 else whole.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :width]
    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setparams((1, width, 8000, 0, "NONE", ""))
        out.writeframes(raw.tobytes())
    container.write(tmp_path / "a.gmsc", reading.pieces(tmp_path / "a.wav"))
    writing.write(tmp_path / "b.wav", container.read(tmp_path / "a.gmsc"))
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "a.wav").read_bytes()


def test_recordings_of_one_name_and_form_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the steps of one change between its pieces; as a table each is a file of its own."""
    monkeypatch.setattr(container, "BLOCK_SAMPLES", 40)
    one, two = series(DRAW.integers(-99, 99, (100, 1))), series(DRAW.integers(-9, 9, (30, 1)))
    assert one.grid is not None
    coarse = replace(one.part(70, 100), grid=Grid(one.grid.integers[70:], 2 * one.grid.step, one.grid.zero))
    path = tmp_path / "a.gmsc"
    made = container.write(path, [one, two, one.part(0, 70), coarse, two.part(0, 10), two.part(10, 30)])
    assert made.series == 4
    found = reading.joined_all(container.read(path))
    assert [len(each) for each in found] == [100, 30, 100, 30]
    check(found[0], one)  # type: ignore[arg-type]
    check(found[3], two)  # type: ignore[arg-type]
    files = writing.write(tmp_path / "a.csv", container.read(path))
    assert [(file.name, rows) for file, rows in files] == [
        ("a.csv", 100),
        ("a-2.csv", 30),
        ("a-3.csv", 100),
        ("a-4.csv", 30),
    ]


def test_marks_that_touch_and_marks_of_no_length_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "BLOCK_SAMPLES", 50)
    marks = (
        Mark(0, 50, "walk"),
        Mark(20, 140, "sit"),
        Mark(50, 50, "turn"),
        Mark(50, 120, "walk"),
        Mark(140, 140, "off"),
    )
    whole = series(DRAW.integers(-99, 99, (140, 1)), marks=marks)
    container.write(tmp_path / "a.gmsc", [whole])
    pieces = list(container.read(tmp_path / "a.gmsc"))
    assert [piece.continues for piece in pieces] == [False, True, True]
    assert pieces[0].marks == (Mark(0, 50, "walk"), Mark(20, 50, "sit", goes_on=True))
    (found,) = reading.joined_all(pieces)
    check(found, whole)  # type: ignore[arg-type]


def test_what_a_sound_cannot_hold(tmp_path: Path) -> None:
    (found,) = modality.load("blood-pressure").sample()
    assert isinstance(found, Series)
    with pytest.raises(
        SignalError, match=r"synthetic blood pressure: is no sound of 8, 16, 24 or 32 bits at a whole rate"
    ):
        writing.write(tmp_path / "a.wav", [found])
    hole = Series(
        "h",
        np.zeros((1, 1), np.float32),
        8.0,
        ("a",),
        ("",),
        grid=Grid(np.array([[MISSING]]), np.array([2.0**-7]), np.zeros(1)),
    )
    with pytest.raises(SignalError, match=r"h: has missing samples, which a \.wav file cannot tell"):
        writing.write(tmp_path / "a.wav", [hole])
    with pytest.raises(SignalError, match="there is no series to write"):
        writing.write(tmp_path / "a.csv", [])
    assert not list(tmp_path.iterdir())


def test_a_start_of_zero_and_one_far_away_come_back(tmp_path: Path) -> None:
    for start in (0.0, 1.7e9):
        whole = series(CASES["plain"], start_s=start)
        (found,) = again(tmp_path / "a.gmsc", whole)
        check(found, whole)
    ((path, _),) = writing.write(tmp_path / "a.csv", container.read(tmp_path / "a.gmsc"))
    lines = path.read_text("utf-8").splitlines()
    assert lines[1].startswith("1700000000,") and lines[2].startswith("1700000000.02,")


def test_near_is_never_larger_than_exact_where_it_cannot_be_nearer(tmp_path: Path) -> None:
    whole = series(np.cumsum(DRAW.integers(-9, 10, (2000, 1)), axis=0))  # steps of 0.25
    exact = container.write(tmp_path / "a.gmsc", [whole]).bytes
    assert container.write(tmp_path / "b.gmsc", [whole], max_error=0.2).bytes == exact
    (found,) = again(tmp_path / "c.gmsc", whole, max_error=0.8)
    assert (tmp_path / "c.gmsc").stat().st_size < 0.9 * exact
    assert 0.5 < np.abs(found.values - whole.values).max() <= 0.8


def test_what_cannot_be_near_enough(tmp_path: Path) -> None:
    large = Series("l", np.array([[1e8 + 8 * n] for n in range(40)], np.float32), 1.0, ("a",), ("",))
    with pytest.raises(
        SignalError, match=r"l: samples of that size come back off by 8, for want of bits \(max-error 5\)"
    ):
        container.write(tmp_path / "a.gmsc", [large], max_error=5)
    for wrong in (-1.0, float("nan"), 1e308):
        with pytest.raises(SignalError, match="use 0 \\(exact\\) or more, such as 0.01"):
            container.write(tmp_path / "a.gmsc", [large], max_error=wrong)


def chunked(*chunks: tuple[bytes, bytes]) -> bytes:
    """A file with sound checksums, whatever is in it."""
    whole = bytearray(b"GMSC\x01")
    for kind, body in chunks:
        whole += kind + varint(len(body)) + body + struct.pack("<I", zlib.crc32(kind + body))
    return bytes(whole)


HEAD = zlib.compress(b'{"name":"s","rate":1,"channels":["a"],"units":"V","step":1}')
MARK = zlib.compress(b'[[1e999,2,"a"]]')
BLOCK_START = varint(3) + bytes(4)
HOSTILE = {
    "rows": [(b"S", HEAD), (b"B", varint(1 << 21) + bytes(4) + b"\x01\x00\x01\x00\x00")],
    "a bomb": [(b"S", zlib.compress(b'{"name":"' + b" " * (1 << 26) + b'"}'))],
    "deep": [(b"S", zlib.compress(b"[" * 200_000))],
    "labels": [(b"S", zlib.compress(b'{"name":"s","rate":1,"channels":["a"],"step":1,"labels":[1]}'))],
    "no rate": [(b"S", zlib.compress(b'{"name":"s","channels":["a"],"step":1}'))],
    "steps": [(b"S", zlib.compress(b'{"name":"s","rate":1,"channels":["a"],"step":[1,2]}'))],
    "a base": [(b"S", HEAD), (b"B", BLOCK_START + b"\x00" + b"\xff" * 9 + b"\x7f\x00")],
    "endless": [(b"S", HEAD), (b"B", BLOCK_START + b"\x00" + b"\xff" * 400)],
    "a mark": [(b"S", HEAD), (b"B", BLOCK_START + b"\x00\x00" + bytes([len(MARK)]) + MARK)],
    "no series": [(b"B", BLOCK_START)],
    "a letter": [(b"S", HEAD), (b"X", b"")],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_lies_with_a_sound_checksum(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gmsc"
    path.write_bytes(chunked(*HOSTILE[name], (b"E", b"")))
    with pytest.raises(SignalError, match=r"a\.gmsc: block \d is damaged \("):
        list(container.read(path))


def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    whole = series(CASES["plain"])
    odd = Series("b\udcff", whole.values, 1.0, whole.channels, whole.units, grid=whole.grid)
    container.write(tmp_path / "a.gmsc", [odd], source="b\udcff.csv")
    assert [piece.name for piece in container.read(tmp_path / "a.gmsc")] == ["b?"]


def test_full_scale_does_not_turn_round(tmp_path: Path) -> None:
    loud = Series("l", np.array([[0], [0.5], [1], [-1]], np.float32), 8000.0, ("a",), ("",))
    container.write(tmp_path / "a.gmsc", [loud], max_error=2.0**-16)
    with pytest.raises(SignalError, match=r"l: has samples beyond full scale, which no \.wav holds; write it as \.csv"):
        writing.write(tmp_path / "a.wav", container.read(tmp_path / "a.gmsc"))
    ((path, _),) = writing.write(tmp_path / "a.csv", container.read(tmp_path / "a.gmsc"))
    assert [float(line.split(",")[1]) for line in path.read_text().splitlines()[1:]] == [0, 0.5, 1, -1]
