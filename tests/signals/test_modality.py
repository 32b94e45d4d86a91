"""Each modality has what its file says, and a sample of it that fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genmote import registry
from genmote.errors import GenmoteError, SignalError, SpecError
from genmote.signals import modality, reading, recordings, synthetic
from genmote.signals.kinds import Frames, Records, Series
from genmote.spec import from_toml

# The table of the vision that the product follows: every kind of data that one of its six domains names, and those of
# its first challenge.
WANTED = (
    *("flows", "error-log", "link-quality"),  # mobile networks: traffic, logs, multimedia (audio and image)
    *("lidar", "radar", "gps", "control"),
    *("motion", "voice", "facial-expression", "gaze"),
    *("image", "audio", "force-torque"),
    *("ecg", "blood-pressure", "steps", "calories", "food-intake"),
    *("authentication", "attack", "breach-report"),
    *("heart-rate", "spo2", "home-temperature", "humidity", "occupancy", "pulse", "smart-home"),
)
# Of real samples: the least and the most that such a thing measures, and how many there are.
WITHIN = {
    "ecg": (-1, 2, 7500),
    "gps": (0, 60, 5159),
    "heart-rate": (60, 200, 5159),
    "home-temperature": (18, 25, 509),
    "humidity": (15, 45, 509),
    "image": (0, 255, 1),
    "motion": (-40, 40, 244_102),
    "occupancy": (0, 2100, 509),
    "pulse": (0, 1023, 15000),
}


def test_every_kind_of_data_is_there() -> None:
    assert set(WANTED) <= set(modality.names())
    domains = {domain for name in modality.names() for domain in modality.load(name).domains}
    assert domains >= {
        "mobile networks",
        "autonomous vehicles",
        "metaverse",
        "robotics",
        "health care",
        "cybersecurity",
    }


@pytest.mark.parametrize("name", modality.names())
def test_what_it_names_is_there(name: str) -> None:
    found = modality.load(name)
    assert set(found.readers) <= set(registry.names(reading.READERS))
    assert found.title and found.domains


@pytest.mark.parametrize("name", [name for name in modality.names() if modality.load(name).synthetic])
def test_a_synthetic_sample_fits_and_says_what_it_is(name: str) -> None:
    about = modality.load(name)
    (found,) = about.sample()
    assert type(found).__name__.lower() == about.kind and found.name.startswith("synthetic ")
    channels = [f.name for f in found.fields] if isinstance(found, Records) else list(found.channels)
    units = [f.unit for f in found.fields] if isinstance(found, Records) else list(found.units)
    assert channels == list(about.channels) and units == list(about.units)
    (again,), (other,) = about.sample(), about.sample(seed=1)
    assert same(found, again) and not same(found, other)
    if isinstance(found, Series):
        assert found.grid is not None and np.isfinite(found.values).all() and len(found) >= 500
        assert (found.values.std(axis=0) > 0).all()
    if isinstance(found, Records):
        assert found.times_s is not None and (np.diff(found.times_s) >= 0).all() and len(found) >= 50


def same(a: object, b: object) -> bool:
    if isinstance(a, Series) and isinstance(b, Series):
        return np.array_equal(a.values, b.values)
    if isinstance(a, Records) and isinstance(b, Records):
        return all(np.array_equal(x, y) for x, y in zip(a.columns, b.columns, strict=True))
    assert isinstance(a, Frames) and isinstance(b, Frames)
    return all(np.array_equal(x, y) for x, y in zip(a.frames, b.frames, strict=True))


REAL = [name for name in modality.names() if modality.load(name).recording]


@pytest.mark.parametrize("name", REAL)
def test_what_is_recorded_fits(name: str) -> None:
    """Its description does, without fetching it: the channels that are of it, and their units."""
    about = modality.load(name)
    assert about.recording is not None
    sample = recordings.sample(about.recording)
    told = dict(zip(sample.channels, sample.units, strict=True))
    assert sample.kind == about.kind
    recorded = {channel: told[channel] for channel in about.recorded or sample.channels}
    usual = dict(zip(about.channels, about.units, strict=True))
    assert recorded.items() <= usual.items()


def test_the_page_tells_which_are_real() -> None:
    page = (Path(__file__).parents[2] / "docs" / "signals.md").read_text("utf-8")
    assert f"Of {len(REAL)} of\nthe {len(modality.names())} that is a real recording" in page
    for name in recordings.names():
        of = ", ".join(one for one in REAL if modality.load(one).recording == name)
        assert f"| `{name}` | {of} |" in page and recordings.sample(name).parts[0].package in page


@pytest.mark.parametrize("name", REAL)
def test_a_real_sample(name: str) -> None:
    """Fetched as a user's is, where there is a package index."""
    about = modality.load(name)
    try:
        found = about.sample()
    except GenmoteError as fault:
        if isinstance(fault, SignalError) and "pip install" not in str(fault):  # what was fetched is not as it is told
            raise
        pytest.skip(f"the recording {about.recording} is not here: {fault}")
    for one in found:
        assert type(one).__name__.lower() == about.kind and not one.name.startswith("synthetic") and len(one)
        if isinstance(one, Series):
            assert np.isfinite(one.values).all() and (one.values.std(axis=0) > 0).all()
            assert set(one.channels) <= set(about.channels)
    low, high, samples = WITHIN[name]
    values = np.concatenate([np.ravel(one.values if isinstance(one, Series) else one.frames[0]) for one in found])  # type: ignore[union-attr]
    assert low <= values.min() and values.max() <= high and sum(map(len, found)) == samples


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match=r"no modality is called 'eeg', did you mean ecg\?; known: attack, .*voice$"):
        modality.load("eeg")
    with pytest.raises(SignalError, match=r"no synthetic signal is called 'eeg'; known: attack, authentication"):
        synthetic.draw("eeg")
    path = tmp_path / "m.toml"
    path.write_text(
        'title = "x"\nkind = "series"\nchannels = ["a"]\nunits = []\ndomains = ["home"]\ncodec = "bins"\n', "utf-8"
    )
    with pytest.raises(SpecError, match=r"channels and units differ in number.*wanted either a recording or a synth"):
        from_toml(modality.Modality, path)
    path.write_text(
        'title = "x"\nkind = "series"\nchannels = ["a"]\nunits = [""]\ndomains = ["home"]\ncodec = "bins"\n'
        'synthetic = "gaze"\nrecorded = ["a"]\n',
        "utf-8",
    )
    with pytest.raises(SpecError, match="recorded names channels of a recording, and there is none"):
        from_toml(modality.Modality, path)
