"""Each modality has what its file says, and a sample of it that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genmote import registry
from genmote.errors import SignalError, SpecError
from genmote.signals import modality, reading, synthetic
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


@pytest.mark.parametrize("name", [name for name in modality.names() if modality.load(name).recording])
def test_a_real_sample_fits(name: str, recording: Callable[[str], list[Series]]) -> None:
    about = modality.load(name)
    assert about.recording is not None
    found = recording(about.recording)[0]
    assert (found.channels, found.units) == (about.channels, about.units)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match=r"no modality is called 'eeg', did you mean ecg\?; see genmote signal"):
        modality.load("eeg")
    with pytest.raises(SignalError, match=r"no synthetic signal is called 'eeg'; known: attack, authentication"):
        synthetic.draw("eeg")
    path = tmp_path / "m.toml"
    path.write_text(
        'title = "x"\nkind = "series"\nchannels = ["a"]\nunits = []\ndomains = ["home"]\ncodec = "bins"\n', "utf-8"
    )
    with pytest.raises(SpecError, match=r"channels and units differ in number.*wanted either a recording or a synth"):
        from_toml(modality.Modality, path)
