from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import MISSING, Mark, Series
from genmote.signals.readers import wfdb

NONE = {"16": -(1 << 15), "61": -(1 << 15), "160": -(1 << 15), "80": -128, "212": -2048, "24": -(1 << 23)}
NONE["32"] = -(1 << 31)


def packed(samples: list[int], format: str) -> bytes:
    """The samples as signal(5) lays them out, one after another."""
    if format == "212":
        out = bytearray()
        for first, second in zip(samples[::2], [*samples[1::2], 0][: len(samples[::2])], strict=True):
            out += struct.pack("<I", (first & 0xFFF) | (second & 0xF00) << 4 | (second & 0xFF) << 16)[:3]
        return bytes(out[:-1] if len(samples) % 2 else out)
    how = {
        "16": lambda v: struct.pack("<h", v),
        "61": lambda v: struct.pack(">h", v),
        "80": lambda v: struct.pack("B", v + 128),
        "160": lambda v: struct.pack("<H", v + 32768),
        "24": lambda v: struct.pack("<i", v)[:3],
        "32": lambda v: struct.pack("<i", v),
    }[format]
    return b"".join(how(v) for v in samples)


def write(folder: Path, signals: list[list[int]], format: str = "16", *, gain: str = "200", extra: str = "") -> Path:
    """A record of one file in which each signal has its samples in turn; first values and checksums are right."""
    flat = [sample for frame in zip(*signals, strict=True) for sample in frame]
    (folder / "r.dat").write_bytes(packed(flat, format))
    lines = [f"r {len(signals)} 100 {len(signals[0])}"]
    for n, samples in enumerate(signals):
        total = sum(samples) & 0xFFFF
        total -= (total >> 15) << 16
        lines.append(f"r.dat {format} {gain} 12 0 {samples[0]} {total} 0 lead {n + 1}")
    (folder / "r.hea").write_text("\n".join(lines) + "\n" + extra)
    return folder / "r.hea"


def one(path: Path, notes: list[str] | None = None, rows: int | None = None) -> Series:
    if rows is not None:
        found = reading.joined(list(reading.pieces(path, rows=rows, notes=notes)))
    else:
        (found,) = reading.read(path, notes=notes)
    assert isinstance(found, Series)
    return found


def integers(series: Series) -> list[list[int]]:
    """By channel."""
    assert series.grid is not None
    return series.grid.integers.T.tolist()


@pytest.mark.parametrize("format", NONE)
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_every_format_comes_back_whole(tmp_path: Path, format: str, channels: int, rows: int) -> None:
    draw, none = random.Random(channels), NONE[format]
    signals = [[draw.randint(none + 1, -none - 1) for _ in range(101)] for _ in range(channels)]
    signals[0][:3] = [none + 1, -none - 1, none]
    signals[-1][-1] = none
    notes: list[str] = []
    found = one(write(tmp_path, signals, format), notes, rows)
    assert integers(found) == [[MISSING if v == none else v for v in samples] for samples in signals]
    wanted = np.array(signals, float).T / 200
    wanted[wanted == none / 200] = np.nan
    assert np.array_equal(found.values, wanted.astype(np.float32), equal_nan=True)
    assert found.rate_hz == 100 and found.units == ("mV",) * channels and found.channels[0] == "lead 1"
    assert notes == []  # checksums and first values are those of the header
    assert integers(one(tmp_path / "r.dat")) == integers(found)


def test_gain_baseline_and_unit(tmp_path: Path) -> None:
    (tmp_path / "g.dat").write_bytes(packed([100, 30, 7, -50] * 2, "16"))
    lines = ["g 4", "g.dat 16 12.84(-1605)/mmHg 12 5", "g.dat 16 1e2/mV 12 10 30", "g.dat 16", "g.dat 16 -4/deg 0 0"]
    (tmp_path / "g.hea").write_text("# a comment\r\n" + "\r\n".join(lines) + "\r\n")
    notes: list[str] = []
    found = one(tmp_path / "g.hea", notes)
    wanted = [(100 + 1605) / 12.84, (30 - 10) / 100, 7 / 200, -50 / -4]
    assert np.allclose(found.values, [wanted] * 2, rtol=1e-7)
    assert found.units == ("mmHg", "mV", "mV", "deg") and found.channels[2] == "signal 3" and found.rate_hz == 250
    assert notes == [
        "g.hea: gives no rate; 250 Hz is taken, as WFDB does",
        "g.hea: signal 3 has no gain; 200 steps in a unit are taken, as WFDB does",
    ]


def test_files_with_an_offset_and_one_that_is_shorter(tmp_path: Path) -> None:
    """As PhysioNet's challenges do: a MATLAB 4 file is format 16 behind 24 bytes."""
    head = struct.pack("<5i", 30, 2, 5, 0, 4) + b"val\0"
    (tmp_path / "m.mat").write_bytes(head + packed([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "16"))
    (tmp_path / "m.xyz").write_bytes(packed([11, 12, 13], "80"))
    header = "m 3 500/1000(3) 5 10:30:00 1/2/2003\nm.mat 16+24 1/NU 16 0 1 25 0 a\nm.mat 16+24 1/NU 16 0 2 30 0 b\n"
    (tmp_path / "m.hea").write_text(header + "m.xyz 80 1/NU 8 0 12 0 0 c\n")
    notes: list[str] = []
    found = one(tmp_path / "m.hea", notes)
    assert integers(found) == [[1, 3, 5], [2, 4, 6], [11, 12, 13]]
    assert found.labels == {"start": "10:30:00 1/2/2003"} and found.rate_hz == 500 and found.units == ("NU",) * 3
    assert notes == [
        "m.xyz: holds 3 samples of a signal, not 5; what is there is read",
        "m.hea: c begins with 11, not with 12",
    ]
    assert len(one(tmp_path / "m.mat")) == len(one(tmp_path / "m.xyz")) == 3
    (tmp_path / "m.hea").write_text(header.replace(" 5 10:", " 4 10:") + "m.xyz 80 1/NU 8 0 11 0 0 c\n")
    (tmp_path / "m.xyz").write_bytes(packed([11, 12, 13, 14], "80"))
    notes.clear()
    assert integers(one(tmp_path / "m.hea", notes))[2] == [11, 12, 13, 14]
    assert notes == [
        "m.mat: holds 5 samples of a signal, not 4; the rest is left out",
        "m.hea: the samples of a add up to 16, not to the header's checksum 25; the file or the header was changed",
        "m.hea: the samples of b add up to 20, not to the header's checksum 30; the file or the header was changed",
        "m.hea: the samples of c add up to 50, not to the header's checksum 0; the file or the header was changed",
    ]
    (tmp_path / "m.hea").write_text("m 3 500\nm.mat 16+24 1\nm.mat 16+24 1\nm.xyz 80 1\n")
    notes.clear()
    assert len(one(tmp_path / "m.hea", notes)) == 4
    assert notes == ["m.hea: its files hold 4 to 5 samples; the first are read"]


@pytest.mark.parametrize("rows", [1, 2, 5, 1000])
def test_rates_that_differ_and_signals_that_lie_late(tmp_path: Path, rows: int) -> None:
    draw, frames = random.Random(3), 21
    fast, slow, late = ([draw.randint(-2047, 2047) for _ in range(n * frames)] for n in (4, 1, 1))
    fast_late = [draw.randint(-2047, 2047) for _ in range(4 * frames)]
    flat: list[int] = []
    for n in range(frames):
        flat += [*fast[4 * n : 4 * n + 4], slow[n], late[n], *fast_late[4 * n : 4 * n + 4]]
    (tmp_path / "r.dat").write_bytes(packed(flat, "212"))
    lines = [f"r 4 125 {frames}"]
    for form, samples in (("212x4", fast), ("212", slow), ("212:3", late), ("212x4:2+0", fast_late)):
        lines.append(f"r.dat {form} 10/mV 12 0 {samples[0]} {sum(samples) % 65536} 0 {form}")
    (tmp_path / "r.hea").write_text("\n".join(lines))
    notes: list[str] = []
    found: dict[str, list[Series]] = {}
    for piece in reading.pieces(tmp_path / "r.hea", rows=rows, notes=notes):
        assert isinstance(piece, Series) and len(piece) <= rows
        found.setdefault(piece.name, []).append(piece)
    once, four = (reading.joined([*parts]) for parts in found.values())
    assert isinstance(once, Series) and isinstance(four, Series)
    assert integers(once) == [slow, late[3:] + [MISSING] * 3] and (once.name, once.rate_hz) == ("r 125 Hz", 125)
    assert integers(four) == [fast, fast_late[8:] + [MISSING] * 8] and (four.name, four.rate_hz) == ("r 500 Hz", 500)
    assert notes == ["r.hea: has signals at 125 and 500 Hz; they are read as a series for each rate"]


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, [[5, 6, 7, 8], [1, 2, 3, 4]])
    raw = bytearray((tmp_path / "r.dat").read_bytes())
    raw[11] ^= 1
    (tmp_path / "r.dat").write_bytes(raw)
    notes: list[str] = []
    assert integers(one(path, notes)) == [[5, 6, 7, 8], [1, 2, 259, 4]]
    told = "the samples of lead 2 add up to 266, not to the header's checksum 10; the file or the header was changed"
    assert notes == [f"r.hea: {told}"]
    (tmp_path / "r.dat").write_bytes(raw[:-3])
    notes.clear()
    assert integers(one(path, notes)) == [[5, 6, 7], [1, 2, 259]]
    assert notes == ["r.dat: holds 3 samples of a signal, not 4; what is there is read"]


def test_comments_are_labels(tmp_path: Path) -> None:
    extra = (
        "# <age>: 28  <sex>: M  <Height>: 170\n#Dx: 426783006,59118001\n# 69 F 1085 x1\n#Asystole\n\n# Therapy:\n"
        "# Admission date: 29-Sep-90\n# Admission date: 2-Oct-90\n#Produced by xform, beginning at 0:0\n# smoker: n/ä\n"
    )
    found = one(write(tmp_path, [[1, 2]], extra=extra))
    assert found.labels == {
        "age": "28; 69",
        "sex": "M; F",
        "height": "170",
        "dx": "426783006,59118001",
        "admission date": "29-Sep-90; 2-Oct-90",
        "comment": "69 F 1085 x1; Asystole; Produced by xform, beginning at 0:0",
        "smoker": "n/ä",
    }
    (tmp_path / "r.hea").write_bytes((tmp_path / "r.hea").read_text().encode("latin-1"))
    assert one(tmp_path / "r.hea").labels["smoker"] == "n/ä"


def word(code: int, low: int) -> bytes:
    return struct.pack("<H", code << 10 | low)


def note(code: int, low: int, text: bytes) -> bytes:
    return word(code, low) + word(63, len(text)) + text + b"\0" * (len(text) % 2)


@pytest.mark.parametrize("rows", [10, 64, 5000])
def test_marks_of_beats_and_rhythms(tmp_path: Path, rows: int) -> None:
    path = write(tmp_path, [list(range(3000))])
    long = word(59, 0) + struct.pack("<HH", 0, 1500)  # the high half first
    back = word(59, 0) + struct.pack("<HH", *divmod((1 << 32) - 20, 1 << 16))
    (tmp_path / "r.atr").write_bytes(
        note(28, 18, b"(N\0")
        + word(1, 59)
        + word(62, 1)  # the channel
        + word(61, 3)  # a subtype
        + word(5, 293)
        + note(22, 10, b"odd")
        + long
        + word(60, 1)
        + note(28, 0, b"(AFIB")
        + back
        + word(8, 0)
        + word(45, 100)
        + word(28, 10)
        + word(1, 1023)
        + word(1, 1023)
        + word(0, 0)
        + word(1, 1)
    )
    notes: list[str] = []
    assert one(path, notes, rows).marks == (
        Mark(18, 1880, "(N"),
        Mark(77, 78, "N"),
        Mark(370, 371, "V"),
        Mark(380, 381, '" odd'),
        Mark(1860, 1861, "A"),
        Mark(1880, 3000, "(AFIB"),
        Mark(1960, 1961, "code 45"),
        Mark(1970, 1971, "+"),
        Mark(2993, 2994, "N"),
    )
    assert notes == ["r.atr: 1 marks lie outside the record; left out"]


def test_marks_with_their_own_clock_and_codes(tmp_path: Path) -> None:
    path = write(tmp_path, [list(range(3000))])
    defined = note(22, 0, b"## time resolution: 1000") + note(22, 0, b"## annotation type definitions")
    defined += note(22, 0, b"42 z a sigh") + note(22, 0, b"## end of definitions")
    (tmp_path / "r.qrs").write_bytes(defined + word(42, 500) + word(1, 5))
    notes: list[str] = []
    assert one(path, notes).marks == (Mark(50, 51, "z"), Mark(50, 51, "N"))  # 0.505 s at 100 Hz
    assert notes == ["r.qrs: has no end mark; its marks are read as far as they go"]
    (tmp_path / "r.atr").write_bytes(b"")  # what the record's makers say comes before what a detector found
    notes.clear()
    assert one(path, notes).marks == ()
    assert notes == ["r.atr: cannot be read, is empty or over 16777216 bytes; its marks are left out"]


@pytest.mark.parametrize("seed", range(40))
def test_noise_for_marks_and_headers_ends_in_no_traceback(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = write(tmp_path, [list(range(50))], "16" if seed % 2 else "212")
    (tmp_path / "r.atr").write_bytes(draw.randbytes(600))
    one(path)
    text = list(path.read_text())
    for _ in range(4):
        text[draw.randrange(len(text))] = draw.choice("0123456789x+:/()- \n#eE.\0é²")
    path.write_text("".join(text))
    try:
        list(reading.pieces(path, reader="wfdb", rows=20))
    except SignalError as fault:
        assert "r.hea" in str(fault)


def header(folder: Path, *lines: str) -> Path:
    (folder / "r.dat").write_bytes(bytes(100))
    (folder / "r.hea").write_text("\n".join(lines))
    return folder / "r.hea"


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["# only this"], r"r\.hea: has no record line: wanted name, number of signals, rate"),
        (["r/3 2 360 900"], r"r\.hea: is a record of 3 segments: open the header of each segment instead"),
        (["r two 360"], r"line 1, 'r two 360': wanted name, number of signals \(1 or more\), rate in Hz, samples"),
        (["r"], r"line 1, 'r': wanted name, number"),
        (["r 0 360 10"], r"line 1, 'r 0 360 10': wanted name, number"),
        (["r 1 nan 10", "r.dat 16"], r"line 1, 'r 1 nan 10': wanted name, number"),
        (["r 1 -5 10", "r.dat 16"], r"line 1, 'r 1 -5 10': wanted name, number"),
        (["r 1 100 ten", "r.dat 16"], r"line 1, 'r 1 100 ten': wanted name, number"),
        (["r 2 100", "r.dat 16"], r"r\.hea: describes 1 signals: wanted 2, as its first line says"),
        (["r 1 100", "r.dat"], r"line 2, 'r\.dat': wanted file, format, gain, bits, zero, first value, checksum"),
        (["r 1 100", "r.dat 16 1/mV 12 x"], r"line 2, 'r\.dat 16 1/mV 12 x': wanted file, format"),
        (["r 1 100", "r.dat 16 mV"], r"line 2, 'r\.dat 16 mV': wanted file, format"),
        (["r 1 100", "r.dat 310 1"], r"samples of format 310: wanted one of 16, .*; convert it with xform of WFDB"),
        (["r 1 100", "../r.dat 16"], r"samples in '\.\./r\.dat': wanted the name of a file beside the header"),
        (["r 1 100", "- 16"], r"samples in '-': wanted the name of a file"),
        (["r 2 100", "r.dat 16", "r.dat 80"], r"line 3: r\.dat in format 80, but 16\+0 before: wanted one format"),
        (["r 1 100", "r.dat 16x9999999"], r"9999999 samples of signal 1 in a frame: wanted 1 to 1048576"),
        (["r 1 100", "r.dat 16x0"], r"0 samples of signal 1 in a frame: wanted 1 to"),
        (["r 1 100", "r.dat 16 1e300/mV"], r"a gain of 1e300/mV: wanted a number of steps in a unit, such as 200"),
        (["r 1 100", "r.dat 16 1(9999999999)/mV"], r"a baseline of 9999999999: wanted a sample of the file's"),
        (["r 1 100", "~ 0 1/mV"], r"r\.hea: none of its signals has samples: wanted at least one"),
        (["r 1 100", "absent.dat 16"], r"r\.hea: its samples absent\.dat are absent: wanted them beside it"),
        (["r 1 100", "r.dat 16+100"], r"r\.hea: its files hold no whole frame of samples: wanted at least one"),
        (["r 1 100", "r.dat 16", "#" * (1 << 20)], r"r\.hea: is longer than 1048576 bytes: wanted a WFDB header"),
    ],
)
def test_what_a_header_may_not_say(tmp_path: Path, lines: list[str], match: str) -> None:
    with pytest.raises(SignalError, match=match):
        reading.read(header(tmp_path, *lines), reader="wfdb")


def test_lines_and_signals_that_are_left_out(tmp_path: Path) -> None:
    notes: list[str] = []
    found = one(header(tmp_path, "r 2 100", "~ 0 1/mV 0 0 0 0 0 gone", "r.dat 16 1/V", "r.dat 16 1/V"), notes)
    assert found.channels == ("signal 1",) and found.units == ("V",) and len(found) == 50
    assert notes == [
        "r.hea: line 4 and those after it belong to no signal; left out",
        "r.hea: gone has no samples; left out",
    ]


def test_companions(tmp_path: Path) -> None:
    (tmp_path / "r.dat").write_bytes(bytes(100))
    with pytest.raises(SignalError, match=r"r\.dat: its header r\.hea cannot be read \(No such file or directory\)"):
        reading.read(tmp_path / "r.dat")
    header(tmp_path, "r 1 100", "s.dat 16")
    (tmp_path / "s.dat").write_bytes(bytes(100))
    with pytest.raises(SignalError, match=r"r\.dat: its header r\.hea names s\.dat instead: open that header"):
        reading.read(tmp_path / "r.dat")
    assert not wfdb.knows(tmp_path / "t.dat", b"1,2,3\n4,5,6\n")  # a table that happens to be called so
    assert not wfdb.knows(tmp_path / "t.mat", b"MATLAB 5.0 MAT-file" + bytes(200))
    assert not wfdb.knows(tmp_path / "t.hea", b"<html>\nx</html>")


def test_memory_stays_with_the_window(tmp_path: Path) -> None:
    import tracemalloc

    (tmp_path / "r.dat").write_bytes(bytes(7_200_000))
    (tmp_path / "r.hea").write_text("r 12 500\n" + "r.dat 16 200\n" * 12)
    tracemalloc.start()
    assert sum(len(piece.values) for piece in wfdb.pieces(tmp_path / "r.hea", 1000, [])) == 300_000
    assert tracemalloc.get_traced_memory()[1] < 1_500_000
    tracemalloc.stop()


def slow_212(raw: bytes, at: int) -> int:
    """Sample `at` of a file in format 212, by the bits of signal(5)."""
    low, high = divmod(at, 2)[1], at // 2 * 3
    value = raw[high + 2] | raw[high + 1] >> 4 << 8 if low else raw[high] | (raw[high + 1] & 15) << 8
    return value - 4096 if value >= 2048 else value


def test_an_arrhythmia_record(data: Callable[[str], Path]) -> None:
    notes: list[str] = []
    path = data("wfdb_samples/100.hea")
    found = one(path, notes)
    assert notes == [] and found.channels == ("MLII", "V5") and found.rate_hz == 360 and len(found) == 650_000
    raw = path.with_suffix(".dat").read_bytes()
    for at in (0, 1, 2, 65_535, 65_536, 400_001, 649_999):
        assert [row[at] for row in integers(found)] == [slow_212(raw, 2 * at), slow_212(raw, 2 * at + 1)]
    assert found.values[0].tolist() == pytest.approx([(995 - 1024) / 200, (1011 - 1024) / 200])
    assert found.labels["age"] == "69" and found.labels["sex"] == "M"
    kinds = [mark.label for mark in found.marks]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"N": 2239, "A": 33, "V": 1, "(N": 1}
    assert found.marks[0] == Mark(18, 650_000, "(N") and found.marks[1] == Mark(77, 78, "N")


def test_records_of_intensive_care_and_of_the_challenges(data: Callable[[str], Path]) -> None:
    """The headers' own checksums say that every sample is right: no note but that of the rates."""
    notes: list[str] = []
    slow, fast = reading.read(data("wfdb_samples/03700181.dat"), notes=notes)
    assert isinstance(slow, Series) and isinstance(fast, Series) and len(fast) == 4 * len(slow) == 300_000
    assert slow.channels == ("ABP", "RESP") and slow.units == ("mmHg", "mV") and np.isnan(slow.values[-4:, 1]).all()
    assert slow.values[0, 0] == pytest.approx((-943 + 1605) / 12.84)
    assert notes == ["03700181.hea: has signals at 125 and 500 Hz; they are read as a series for each rate"]
    notes.clear()
    challenge = one(data("wfdb_samples/a103l.mat"), notes)
    assert challenge.values.shape == (82_500, 3) and challenge.labels == {"comment": "Asystole; False alarm"}
    gappy = one(data("wfdb_samples/v102s.hea"), notes)
    assert np.isnan(gappy.values).sum(axis=0).tolist() == [3, 2, 17, 1]
    two_files = one(data("wfdb_samples/s0010_re.hea"), notes)
    assert two_files.values.shape == (38_400, 15) and two_files.labels["age"] == "81" and notes == []
    with pytest.raises(SignalError, match=r"12726\.hea: its samples 12726\.dat are absent"):
        reading.read(data("wfdb_samples/12726.hea"))


def test_every_twelve_lead_record_has_its_checksum(data: Callable[[str], Path]) -> None:
    paths = sorted(data("ptbxl500/records100").rglob("*.hea"))[::10]
    notes: list[str] = []
    for path in paths:
        found = one(path, notes)
        raw = struct.unpack(f"<{12 * 1000}h", path.with_suffix(".dat").read_bytes())
        assert integers(found) == [list(raw[n::12]) for n in range(12)]
    assert len(paths) > 30 and notes == []
