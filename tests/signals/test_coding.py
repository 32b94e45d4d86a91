"""What every codec does: found by the registry, each with the signals of `codecs/drawn.py`."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmote.errors import SignalError, SpecError
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.signals import coding
from genmote.signals.header import END, START
from genmote.signals.kinds import Frames, Records, Series, Signal

_spec = importlib.util.spec_from_file_location("drawn", Path(__file__).parent / "codecs" / "drawn.py")
assert _spec is not None and _spec.loader is not None
drawn = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(drawn)

each = pytest.mark.parametrize(("name", "draw", "given_"), drawn.EACH)


def fitted(name: str, draw: Any, given_: dict[str, Any]) -> coding.Codec:
    return coding.fit(name, [draw(0), draw(1)], **given_)


def same(a: Signal, b: Signal) -> bool:
    """Whether two signals hold the same, to the bit."""
    if type(a) is not type(b) or a.name != b.name or a.labels != b.labels or len(a) != len(b):
        return False
    if isinstance(a, Series) and isinstance(b, Series):
        return np.array_equal(a.values, b.values, equal_nan=True) and a.channels == b.channels
    if isinstance(a, Records) and isinstance(b, Records):
        pairs = zip(a.columns, b.columns, strict=True)
        return a.fields == b.fields and all(repr(x.tolist()) == repr(y.tolist()) for x, y in pairs)
    assert isinstance(a, Frames) and isinstance(b, Frames)
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a.frames, b.frames, strict=True))


def test_every_codec_is_tested() -> None:
    assert sorted(drawn.CASES) == coding.names()


@pytest.mark.parametrize("name", coding.names())
def test_each_codec_has_what_the_page_says(name: str) -> None:
    member = coding.codec(name)
    assert member.KIND in (Series, Records, Frames) and member.SETTINGS.__doc__
    assert all(field.metadata.get("help") for field in fields(member.SETTINGS))
    assert "labels" in {field.name for field in fields(member.SETTINGS)}


@each
@pytest.mark.parametrize("seed", range(4))
def test_tokens_lie_in_the_vocabulary_behind_the_header(name: str, draw: Any, given_: Any, seed: int) -> None:
    codec, signal = fitted(name, draw, given_), draw(seed)
    header, tokens = codec.header(signal), codec.encode(signal)
    assert header.dtype == tokens.dtype == np.int32 and header[0] == START
    assert (header < codec.head.size).all() and (tokens >= codec.head.size).all() and (tokens < codec.vocabulary).all()


@each
@pytest.mark.parametrize("seed", range(4))
def test_a_state_is_the_whole_codec(name: str, draw: Any, given_: Any, seed: int, tmp_path: Path) -> None:
    """Through a model file, whose floats and lists are not those of Python."""
    codec, signal = fitted(name, draw, given_), draw(seed)
    path = tmp_path / "codec.gguf"
    write_gguf(path, {f"genmote.codec.{key}": value for key, value in codec.state().items()}, [])
    kept = ModelFile.open(path).metadata
    again = coding.from_state({key.removeprefix("genmote.codec."): value for key, value in kept.items()})
    assert again.vocabulary == codec.vocabulary and again.error() == codec.error()
    tokens = codec.encode(signal)
    assert np.array_equal(again.encode(signal), tokens) and np.array_equal(again.header(signal), codec.header(signal))
    about = coding.about(signal)
    assert same(codec.decode(tokens, about), again.decode(tokens, about))


@each
def test_a_damaged_state_is_refused_or_a_codec(name: str, draw: Any, given_: Any) -> None:
    state = fitted(name, draw, given_).state()
    for key in state:
        for value in (None, "x", -3, 2**40, math.nan, np.array([1e9, -5.0, math.nan]), ["x"], []):
            damaged = {**state, key: value}
            if value is None:
                del damaged[key]
            try:
                codec = coding.from_state(damaged)
                codec.decode(codec.encode(draw(0)), coding.about(draw(0)))
            except SignalError:
                continue
    with pytest.raises(SignalError, match=r"a codec without head.size|a codec without settings\.\w+: wanted all that"):
        coding.from_state({"name": name, "version": 1})


@each
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_tokens_decode(name: str, draw: Any, given_: Any, data: Any) -> None:
    """As a model writes them: no error, and what has no place is told."""
    codec, signal = fitted(name, draw, given_), draw(0)
    tokens = np.array(data.draw(st.lists(st.integers(-2, codec.vocabulary + 1), max_size=80)), np.int32)
    notes: list[str] = []
    found = codec.decode(tokens[tokens != END], coding.about(signal), notes)
    assert isinstance(found, codec.KIND)
    if ((tokens >= codec.vocabulary) | (tokens < 0)).any():
        assert any("have no place behind a header" in note for note in notes)


@each
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_damage_costs_what_it_hits(name: str, draw: Any, given_: Any, data: Any) -> None:
    codec, signal = fitted(name, draw, given_), draw(0)
    tokens = codec.encode(signal)
    at = data.draw(st.integers(0, len(tokens) - 1))
    what = data.draw(st.sampled_from(["lost", "cut", "other"]))
    other = data.draw(st.integers(codec.head.size, codec.vocabulary - 1))
    damaged = {"lost": np.delete(tokens, at), "cut": tokens[:at], "other": tokens.copy()}[what]
    if what == "other":
        damaged[at] = other
    assert isinstance(codec.decode(damaged, coding.about(signal)), codec.KIND)


@each
def test_end_and_header_may_stand_around_tokens(name: str, draw: Any, given_: Any) -> None:
    codec, signal = fitted(name, draw, given_), draw(0)
    tokens, header = codec.encode(signal), codec.header(signal)
    about = coding.about(signal)
    sequence = np.concatenate([header, tokens, [END], tokens[:1]]).astype(np.int32)
    assert same(codec.decode(sequence, about), codec.decode(tokens, about))
    said = codec.decode(sequence)  # by what the header alone says
    assert len(said) == len(codec.decode(tokens, about)) and said.name == "signal"


def test_errors() -> None:
    signal = drawn.waves(0)
    with pytest.raises(SignalError, match=r"no codec is called 'bin', did you mean bins\?"):
        coding.fit("bin", [signal])
    with pytest.raises(SignalError, match="codec bins: no signal to be fitted on; give at least one"):
        coding.fit("bins", [])
    with pytest.raises(SpecError, match=r"codec bins: bin is no setting, did you mean bins\?"):
        coding.fit("bins", [signal], bin=3)
    records = Records("r", (), ())
    with pytest.raises(SignalError, match="r: is Records, codec bins takes Series; give such, or choose another codec"):
        coding.fit("bins", [records])
    codec = coding.fit("bins", [signal])
    for verb in (codec.header, codec.encode):
        with pytest.raises(
            SignalError, match="r: is Records, codec bins takes Series; give such, or choose another codec"
        ):
            verb(records)


def test_a_state_that_is_none() -> None:
    state = coding.fit("bins", [drawn.waves(0)]).state()
    with pytest.raises(SignalError, match="a codec of version 2: this genmote reads 1; use a newer one"):
        coding.from_state({**state, "version": 2})
    with pytest.raises(SignalError, match="a codec with name=3: wanted one of bins"):
        coding.from_state({**state, "name": 3})
    with pytest.raises(SignalError, match=r"a codec without settings\.bins: wanted all that its fit wrote; write"):
        coding.from_state({key: value for key, value in state.items() if key != "settings.bins"})
    with pytest.raises(SignalError, match=r"a codec with settings\.spacing='even': wanted what its fit wrote; write"):
        coding.from_state({**state, "settings.spacing": "even"})
    with pytest.raises(
        SignalError, match="a codec with settings.bins=1, wanted 2 to 65536; write the model file again"
    ):
        coding.from_state({**state, "settings.bins": 1})
    with pytest.raises(SignalError, match="a codec whose names differ in number: wanted a unit for each channel"):
        coding.from_state({**state, "head.units": ["g"]})
    with pytest.raises(
        SignalError, match="a codec of 3 channels with ranges of 3 and whole numbers of 1: wanted one each"
    ):
        coding.from_state({**state, "low": np.array([1])})
    with pytest.raises(SignalError, match=r"a codec with edges of shape \(257, 3\) and levels of \(3, 256\): wanted"):
        coding.from_state({**state, "scale.edges.shape": [257, 3]})
