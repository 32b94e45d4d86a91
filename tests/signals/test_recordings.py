"""Recordings by name, from a stand-in package index."""

from __future__ import annotations

import hashlib
import os
import pickle
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import home
from genmote.errors import PullError, SignalError, SpecError, UserError
from genmote.signals import recordings
from genmote.signals.kinds import Frames, Records, Series
from tests.models.test_store import make_wheel
from tests.signals.test_numpy_pickle import npy

CSV = b"timer,hr\n" + b"".join(b"%d,%d\n" % (20 * n, n % 7) for n in range(100))
ARRAYS = {"X": [np.ones((4, 2)), np.zeros((3, 2))], "y": np.array([1, 0])}
READ = {
    "csv": 'values = ["hr"]\ntimes = "timer"\ntime_unit_s = 0.001\nchannels = ["light"]\nunits = ["counts"]\n',
    "pickle": 'values = ["X"]\nlabels = "y"\nnames = ["a", "b"]\nrate_hz = 50\n'
    'channels = ["x", "y"]\nunits = ["g", "g"]\n',
}


@pytest.fixture
def index(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts a recording's description and package into an index of its own."""
    wheels, samples = tmp_path / "wheels", tmp_path / "samples"
    wheels.mkdir()
    samples.mkdir()
    monkeypatch.setattr(recordings, "SAMPLES", samples)
    for name in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))

    def put(reader: str, content: bytes, read: str | None = None) -> None:
        make_wheel(wheels, "carrier", "1.0", "carrier/data", content)
        head = f'title = "T"\nlicence = "MIT"\nsize_bytes = {len(content)}\nreader = "{reader}"\n'
        head += f'sha256 = "{hashlib.sha256(content).hexdigest()}"\n' + (READ[reader] if read is None else read)
        part = '\n[[parts]]\npackage = "carrier"\nversion = "1.0"\nmember = "carrier/data"\n'
        (samples / "mine.toml").write_text(head + part)
        recordings.sample.cache_clear()

    yield put
    recordings.sample.cache_clear()


def test_shipped_samples_are_sound() -> None:
    assert recordings.names() == ["ecg", "heart", "office", "photo", "ride", "watch"]
    for name in recordings.names():
        about = recordings.sample(name)
        assert len(about.sha256) == 64 and about.licence and about.title and about.parts[0].version


def test_a_csv_recording_is_fetched_once_and_read(index: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    index("csv", CSV)
    assert recordings.find("mine") is None
    (series,) = recordings.series("mine")
    assert series.values.shape == (100, 1) and series.values.dtype == np.float32 and series.values[9, 0] == 2
    assert (series.rate_hz, series.channels, series.units) == (pytest.approx(50), ("light",), ("counts",))
    assert recordings.find("mine") == home.cache_dir() / "samples" / "mine.csv"
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert recordings.resolve("mine") == recordings.find("mine")


@pytest.mark.parametrize(
    "content",
    [
        CSV.replace(b"hr", b"pulse"),
        CSV.replace(b"timer", b"place"),
        b"timer,hr\n" + b"".join(b"%d,%d\n" % (n * n, n) for n in range(100)),
        b"timer,hr\n" + b"".join(b"%d,beat %d\n" % (n, n) for n in range(100)),
        b"timer,hr\n0,1\n",
    ],
)
def test_a_csv_file_that_holds_something_else(index: Callable[..., None], content: bytes) -> None:
    index("csv", content)
    with pytest.raises(
        SignalError,
        match=r"mine\.csv does not hold what its description says: wanted series with 'hr' and times 'timer' that",
    ):
        recordings.read("mine")


def test_a_recording_of_many_channels_keeps_its_whole_numbers_and_its_start(index: Callable[..., None]) -> None:
    rows = [f"2026-01-01 00:{n:02}:00,{n}.5,{n % 3},{2 * n}" for n in range(60)]
    read = 'values = ["b", "t"]\nchannels = ["light", "warmth"]\nunits = ["lux", "K"]\n'
    index("csv", "\n".join(["time,t,a,b", *rows]).encode(), read)
    (found,) = recordings.series("mine")
    assert (found.name, found.channels, found.units) == ("mine", ("light", "warmth"), ("lux", "K"))
    assert (found.rate_hz, found.start_s) == (pytest.approx(1 / 60), 1_767_225_600.0)
    assert found.values[7].tolist() == [14, 7.5] and found.grid is not None
    assert np.array_equal(found.grid.values(), found.values)
    one = recordings.picked(found, ["warmth"])
    assert isinstance(one, Series) and one.grid is not None and one.units == ("K",)
    assert np.array_equal(one.grid.values(), found.values[:, 1:])
    with pytest.raises(SignalError, match="mine has no channel 'sound': it has light, warmth"):
        recordings.picked(found, ["sound"])


def test_any_reader_may_be_named(index: Callable[..., None], tmp_path: Path) -> None:
    """Sound, pictures, and rows of a table."""
    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(np.arange(400, dtype="<i2").tobytes())
    index("wav", (tmp_path / "a.wav").read_bytes(), 'channels = ["voice"]\nunits = ["full scale"]\n')
    (sound,) = recordings.series("mine")
    assert (sound.name, sound.rate_hz, sound.channels, len(sound)) == ("mine", 8000, ("voice",), 400)

    rows = b"what,who,cost\n" + b"".join(b"in,u%d,%d\n" % (n % 3, n) for n in range(60))
    read = 'kind = "records"\nvalues = ["cost", "who"]\nchannels = ["price", "user"]\nunits = ["EUR", ""]\n'
    index("csv", rows, read)
    (table,) = recordings.read("mine")
    assert isinstance(table, Records) and [(one.name, one.unit) for one in table.fields] == [
        ("price", "EUR"),
        ("user", ""),
    ]
    assert table.column("price").tolist() == [*range(60)] and table.column("user")[:3].tolist() == ["u0", "u1", "u2"]
    with pytest.raises(SignalError, match="the recording mine is of records, wanted one of series"):
        recordings.series("mine")

    pytest.importorskip("PIL")
    index("image", b"P5 3 2 255\n" + bytes(range(6)), 'kind = "frames"\nchannels = ["light"]\nunits = ["counts"]\n')
    (picture,) = recordings.read("mine")
    assert isinstance(picture, Frames) and (picture.channels, picture.units) == (("light",), ("counts",))
    assert picture.frames[0][:, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("read", "wanted"),
    [
        ('channels = ["a", "b", "c"]\nunits = ["", "", ""]\n', "wanted series with 3 channels"),
        ('kind = "records"\nchannels = ["a", "b"]\nunits = ["", ""]\n', "wanted records with 2 channels"),
    ],
)
def test_a_file_of_another_kind_or_width(index: Callable[..., None], read: str, wanted: str) -> None:
    index("csv", b"x,y\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(50)), read)
    with pytest.raises(SignalError, match=rf"mine\.csv does not hold what its description says: {wanted}"):
        recordings.read("mine")


def test_a_compiled_package_is_fetched_for_any_machine(index: Callable[..., None], tmp_path: Path) -> None:
    """Its wheel is built for another Python and another processor than these."""
    index("csv", CSV)
    wheel = next((tmp_path / "wheels").iterdir())
    wheel.rename(wheel.with_name("carrier-1.0-cp39-cp39-manylinux_2_17_s390x.whl"))
    with pytest.raises(PullError, match="pip could not fetch carrier==1.0"):
        recordings.read("mine")
    path = tmp_path / "samples" / "mine.toml"
    path.write_text(path.read_text() + 'built_for = "cp39-manylinux_2_17_s390x"\n')
    recordings.sample.cache_clear()
    (series,) = recordings.series("mine")
    assert len(series) == 100


def dumped(tmp_path: Path, value: Any) -> bytes:
    return npy(tmp_path / "written.npy", pickle.dumps(value)).read_bytes()


def test_a_pickled_recording(index: Callable[..., None], tmp_path: Path) -> None:
    index("pickle", dumped(tmp_path, ARRAYS))
    one, two = recordings.series("mine")
    assert (one.name, two.name, one.rate_hz) == ("b", "a", 50.0)
    assert np.array_equal(one.values, np.ones((4, 2))) and one.values.dtype == np.float32


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        {"X": ARRAYS["X"]},
        {**ARRAYS, "y": np.array([1])},
        {**ARRAYS, "y": np.array([1, 2])},
        {**ARRAYS, "X": [np.ones((4, 3)), np.ones((4, 2))]},
        {**ARRAYS, "X": [np.ones(4), np.ones((4, 2))]},
    ],
)
def test_a_pickle_that_holds_something_else(index: Callable[..., None], tmp_path: Path, value: Any) -> None:
    index("pickle", dumped(tmp_path, value))
    with pytest.raises(
        SignalError, match=r"mine\.pickle does not hold what its description says: wanted a list 'X' of"
    ):
        recordings.read("mine")


def test_a_damaged_file_is_fetched_again(index: Callable[..., None]) -> None:
    index("csv", CSV)
    recordings.resolve("mine").write_bytes(b"cut")
    assert recordings.resolve("mine").read_bytes() == CSV


def test_an_altered_package_is_refused(index: Callable[..., None], tmp_path: Path) -> None:
    index("csv", CSV)
    make_wheel(tmp_path / "wheels", "carrier", "1.0", "carrier/data", CSV[:-2] + b"9\n")
    with pytest.raises(PullError, match="nothing was kept"):
        recordings.read("mine")
    assert recordings.find("mine") is None


def test_an_unknown_name_points_at_known_ones() -> None:
    with pytest.raises(UserError, match=r"no recording is called 'hart', did you mean heart\?; known: ecg, heart"):
        recordings.read("hart")


@pytest.mark.parametrize(
    ("reader", "read", "message"),
    [
        ("csv", READ["csv"].replace('units = ["counts"]', "units = []"), "channels and units differ in number"),
        ("csv", READ["csv"].replace('["hr"]', '["hr", "timer"]'), "values and channels differ in number, wanted a"),
        ("pickle", READ["pickle"].replace('labels = "y"', ""), "a pickle needs rate_hz, one of values, labels and"),
        ("csw", READ["csv"], "reader is 'csw', wanted one of arrow, audit, csv"),
    ],
)
def test_a_faulty_description_names_its_file(index: Callable[..., None], reader: str, read: str, message: str) -> None:
    index(reader, CSV, read)
    with pytest.raises(SpecError, match=rf"mine\.toml: .*{message}"):
        recordings.read("mine")


def test_a_series_knows_its_length() -> None:
    assert Series("s", np.zeros((75, 1), np.float32), 50.0, ("x",), ("g",)).duration_s == 1.5
