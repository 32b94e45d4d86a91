from __future__ import annotations

import datetime
import tracemalloc
from pathlib import Path

import edfio
import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import Mark, Records, Series
from genmote.signals.readers import edf

DRAW = np.random.default_rng(0)
BEGAN = datetime.datetime(2002, 3, 2, 12, 30, 15, tzinfo=datetime.UTC)
ECG = DRAW.integers(-2048, 2048, 2500).astype(np.int16)
TEMPERATURE = DRAW.integers(0, 1000, 10).astype(np.int16)


def signal(whole: np.ndarray, rate: float, label: str = "ECG", unit: str = "uV", **ranges: object) -> edfio.EdfSignal:
    wide = {"physical_range": (-512, 511.75), "digital_range": (-2048, 2047)} | ranges
    return edfio.EdfSignal.from_digital(whole, rate, label=label, physical_dimension=unit, **wide)


def write(path: Path, signals: list[edfio.EdfSignal], **more: object) -> Path:
    """A file by edfio."""
    about = edfio.Recording(startdate=BEGAN.date())
    edfio.Edf(signals, recording=about, starttime=BEGAN.time(), **more).write(path)
    return path


def both(path: Path) -> Path:
    notes = [edfio.EdfAnnotation(1.5, 2.0, "arousal"), edfio.EdfAnnotation(4.0, None, "lights off")]
    cool = signal(TEMPERATURE, 1, "Temp", "degC", physical_range=(50, 0), digital_range=(0, 1000))
    patient = edfio.Patient(code="P7", sex="F")
    return write(path, [signal(ECG, 250), cool], annotations=notes, patient=patient, data_record_duration=1)


def one(path: Path, notes: list[str] | None = None) -> Series:
    (found,) = reading.read(path, notes=notes)
    assert isinstance(found, Series)
    return found


def test_each_rate_is_a_series_and_all_comes_back(tmp_path: Path) -> None:
    notes: list[str] = []
    slow, fast = reading.read(both(tmp_path / "night.edf"), notes=notes)
    assert isinstance(slow, Series) and isinstance(fast, Series) and fast.grid is not None and slow.grid is not None
    assert (slow.name, slow.rate_hz, slow.channels, slow.units) == ("night 1 Hz", 1.0, ("Temp",), ("°C",))
    assert (fast.name, fast.rate_hz, fast.channels, fast.units) == ("night 250 Hz", 250.0, ("ECG",), ("µV",))
    assert (fast.grid.integers[:, 0] == ECG).all() and fast.grid.step.tolist() == [0.25]
    assert fast.values[:, 0].tolist() == (ECG * 0.25).tolist()
    assert np.allclose(slow.values[:, 0], 50 - TEMPERATURE * 0.05, atol=1e-5)  # a range that falls
    assert (slow.grid.step > 0).all() and (slow.grid.integers[:, 0] == -TEMPERATURE).all()
    assert fast.marks == (Mark(375, 875, "arousal"), Mark(1000, 1001, "lights off"))
    assert slow.marks == (Mark(2, 4, "arousal"), Mark(4, 5, "lights off"))
    assert fast.start_s == slow.start_s == BEGAN.timestamp()
    assert fast.labels == {"patient": "P7 F X X"}
    assert notes == ["night.edf: has signals at 1 and 250 Hz; they are read as a series for each rate"]


@pytest.mark.parametrize("rows", [100, 300, 1000])
def test_pieces_are_small_and_become_one(tmp_path: Path, rows: int) -> None:
    path = both(tmp_path / "a.edf")
    parts = list(reading.pieces(path, rows=rows))
    assert all(len(part) <= rows for part in parts) and len(parts) > 2
    for whole, again in zip(reading.read(path), reading.joined_all(parts), strict=True):
        assert isinstance(whole, Series) and isinstance(again, Series)
        assert (whole.values == again.values).all() and whole.marks == again.marks and whole.start_s == again.start_s
    later = parts[-1]
    assert isinstance(later, Series) and later.start_s == BEGAN.timestamp() + (2500 - len(later)) / 250


def test_a_long_file_takes_little_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.edf", [signal(np.tile(ECG, 1000), 250)])
    assert path.stat().st_size > 5_000_000
    tracemalloc.start()
    try:
        assert sum(len(part) for part in reading.pieces(path, rows=5000)) == 2_500_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_bdf_of_24_bits(tmp_path: Path) -> None:
    whole = DRAW.integers(-(1 << 23), 1 << 23, 1000).astype(np.int32)
    wide = {"physical_range": (-262144, 262143), "digital_range": (-(1 << 23), (1 << 23) - 1)}
    made = edfio.BdfSignal.from_digital(whole, 100, label="Fz", physical_dimension="uV", **wide)
    edfio.Bdf([made]).write(tmp_path / "a.bdf")
    found = one(tmp_path / "a.bdf")
    assert found.grid is not None and (found.grid.integers[:, 0] == whole).all() and found.start_s is None


def test_annotations_alone_are_records(tmp_path: Path) -> None:
    said = [edfio.EdfAnnotation(30.0 * n, 30.0, f"Sleep stage {n % 3}") for n in range(9)]
    (found,) = reading.read(write(tmp_path / "stages.edf", [], annotations=said))
    assert isinstance(found, Records) and found.times_s is not None
    assert found.column("annotation").tolist() == [f"Sleep stage {n % 3}" for n in range(9)]
    assert found.column("duration").tolist() == [30.0] * 9
    assert found.times_s.tolist() == [BEGAN.timestamp() + 30 * n for n in range(9)]
    assert [len(part) for part in reading.pieces(tmp_path / "stages.edf", rows=4)] == [4, 4, 1]


def interrupted(path: Path) -> Path:
    """Ten records of a second, of which the last four come 100 s late: the onsets in the texts are set by hand."""
    raw = bytearray(
        write(path, [signal(ECG, 250)], annotations=[edfio.EdfAnnotation(108.0, None, "x" * 9)]).read_bytes()
    )
    raw[192:197] = b"EDF+D"
    begin, size = int(raw[184:192]), (len(raw) - int(raw[184:192])) // 10
    for n in range(10):
        at = begin + n * size + 500
        text = raw[at : at + size - 500].rstrip(b"\0").split(b"\0")
        text[0] = b"+%d\x14\x14" % (n if n < 6 else 100 + n)
        raw[at : at + size - 500] = b"\0".join(text).ljust(size - 500, b"\0")
    path.write_bytes(raw)
    return path


def test_a_gap_begins_another_recording(tmp_path: Path) -> None:
    notes: list[str] = []
    first, second = reading.read(interrupted(tmp_path / "a.edf"), notes=notes)
    assert isinstance(first, Series) and isinstance(second, Series) and second.start_s is not None
    assert (first.name, len(first), second.name, len(second)) == ("a", 1500, "a (2)", 1000)
    assert second.start_s == BEGAN.timestamp() + 106 and second.marks == (Mark(500, 501, "x" * 9),)
    assert first.grid is not None and second.grid is not None and first.marks == ()
    assert (np.concatenate([first.grid.integers, second.grid.integers])[:, 0] == ECG).all()
    assert notes == ["a.edf: has 1 gaps; another recording begins after each"]


def test_what_is_repaired_is_told(tmp_path: Path) -> None:
    path = both(tmp_path / "a.edf")
    raw = path.read_bytes()
    size = (len(raw) - int(raw[184:192])) // 10

    def told(changed: bytes) -> tuple[list[str], Series]:
        path.write_bytes(changed)
        notes: list[str] = []
        *_, found = reading.read(path, notes=notes)
        assert isinstance(found, Series)
        return [note for note in notes if "a series for each rate" not in note], found

    notes, found = told(raw[:-1])
    assert notes == ["a.edf ends early, after 9 of 10 data records; what is there is read"] and len(found) == 2250
    notes, found = told(raw[:236] + b"-1      " + raw[244:])
    assert notes == ["a.edf: does not say how many data records it has; 10 are there"] and len(found) == 2500
    notes, found = told(raw[:236] + b"8       " + raw[244:] + b"abc")
    assert notes == [f"a.edf: goes on for {2 * size + 3} bytes after its 8 data records; left out"]
    assert len(found) == 2000
    notes, found = told(raw[:88] + b" " * 80 + b"41.13.02" + raw[176:])
    assert notes == ["a.edf: began at '41.13.0212.30.15', which is no time; unknown"] and found.start_s is None
    notes, found = told(raw.replace(b"arousal\x14", b"arousal\x01"))
    assert notes == ["a.edf: 1 annotations that cannot be read are left out: data record 2"]
    assert [mark.label for mark in found.marks] == ["lights off"]
    notes, found = told(raw.replace(b"-512    ", b"511.75  "))
    assert notes == ["a.edf: ECG has no range; its whole numbers are read as they are"]
    assert (found.values[:, 0] == ECG).all()


def test_an_annotation_where_there_is_no_sample(tmp_path: Path) -> None:
    said = [edfio.EdfAnnotation(8.0, None, "in"), edfio.EdfAnnotation(99.0, None, "out")]
    path = write(tmp_path / "a.edf", [signal(ECG, 250)], annotations=said)
    notes: list[str] = []
    assert one(path, notes).marks == (Mark(2000, 2001, "in"),)
    assert notes == ["a.edf: 1 annotations begin where there is no sample; left out"]


def test_names_that_come_twice(tmp_path: Path) -> None:
    assert one(write(tmp_path / "a.edf", [signal(ECG, 250)] * 3)).channels == ("ECG", "ECG 2", "ECG 3")


def test_what_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = both(tmp_path / "a.edf")
    raw = path.read_bytes()

    def refused(changed: bytes, match: str) -> None:
        path.write_bytes(changed)
        with pytest.raises(SignalError, match=match):
            reading.read(path, reader="edf")

    refused(raw[:100], r"a\.edf: begins with b'0       ' in 100 bytes: wanted an EDF or BDF header of 256")
    refused(b"GIF89a  " + raw[8:], r"a\.edf: begins with b'GIF89a  ' in \d+ bytes: wanted an EDF")
    refused(raw[:600], r"a\.edf: ends in its header: wanted 1024 bytes for 3 signals")
    refused(raw[:252] + b"many" + raw[256:], r"a\.edf, byte 252: got 'many' for signals: wanted a whole number from 1")
    refused(raw[:184] + b"1000    " + raw[192:], r"a\.edf: has a header of 1000 bytes for 3 signals: wanted 1024")
    refused(raw[:1024], r"a\.edf: has 0 bytes of samples: wanted at least a data record of \d+")
    refused(raw[:244] + b"0       " + raw[252:], r"a\.edf: has data records of 0 s: wanted more, as there are signals")
    refused(
        raw[:244] + b"nan     " + raw[252:], r"a\.edf, byte 244: got 'nan' for seconds of a data record: wanted a n"
    )
    refused(raw[:236] + b"0       " + raw[244:], r"a\.edf: says that it has no data records: wanted some")
    refused(
        raw.replace(b"-512    ", b"-5 uV   "), r"a\.edf, byte \d+: got '-5 uV' for physical range of ECG: wanted a n"
    )
    path.write_bytes(raw)
    monkeypatch.setattr(edf, "MOST", 1)
    refused(raw, r"a\.edf: has more than 1 annotations: wanted a recording")
    monkeypatch.setattr(edf, "LARGEST", 100)
    refused(raw, r"a\.edf: has data records of \d+ bytes: wanted 1 to 100")


def test_only_what_says_so_is_edf(tmp_path: Path) -> None:
    raw = both(tmp_path / "a.edf").read_bytes()
    assert edf.knows(tmp_path / "a", raw[:4096]) and not edf.knows(tmp_path / "a.edf", b"0,1,2\n" * 99)
