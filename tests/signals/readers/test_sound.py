from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import Series
from genmote.signals.readers import sound

soundfile = pytest.importorskip("soundfile", reason="wants the extra: pip install 'genmote[signals]'")

DRAW = np.random.default_rng(2)


def one(path: Path, notes: list[str] | None = None) -> Series:
    (found,) = reading.read(path, notes=notes)
    assert isinstance(found, Series)
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "kind", "bits"),
    [
        ("a.flac", "PCM_S8", 8), ("a.flac", "PCM_16", 16), ("a.flac", "PCM_24", 24), ("a.aiff", "PCM_16", 16),
        ("a.aiff", "PCM_U8", 8), ("a.au", "PCM_24", 24), ("a.caf", "PCM_32", 32),
    ],
)  # fmt: skip
def test_whole_numbers_come_back(tmp_path: Path, name: str, kind: str, bits: int, channels: int) -> None:
    most = 2 ** (bits - 1)
    whole = DRAW.integers(-most, most, (5000, channels))
    soundfile.write(tmp_path / name, (whole << 32 - bits).astype(np.int32), 8000, subtype=kind)
    notes: list[str] = []
    found = one(tmp_path / name, notes)
    assert found.rate_hz == 8000 and found.grid is not None and notes == []
    assert (found.grid.integers == whole).all() and np.allclose(found.values, whole / most, atol=1e-6)
    assert found.channels == (("sound",) if channels == 1 else ("sound 1", "sound 2", "sound 3"))
    for rows in (700, 2100):
        parts = list(reading.pieces(tmp_path / name, rows=rows))
        assert all(len(part) <= rows for part in parts) and sum(map(len, parts)) == 5000


@pytest.mark.parametrize(("name", "form"), [("a.ogg", {}), ("a.opus", {"format": "OGG", "subtype": "OPUS"})])
def test_what_was_made_smaller_with_loss_is_floats(tmp_path: Path, name: str, form: dict[str, str]) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48000) / 24000)
    soundfile.write(tmp_path / name, tone, 24000, **form)
    found = one(tmp_path / name)
    assert found.grid is None and found.rate_hz == 24000 and abs(len(found) - 48000) < 3000
    heard = np.abs(np.fft.rfft(found.values[4800:28800, 0]))
    assert heard.argmax() == 440 and abs(heard.max() / 12000 - 0.5) < 0.05


def test_a_cut_or_damaged_file_is_read_as_far_as_it_goes_and_told(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    whole = DRAW.integers(-(2**15), 2**15, (50_000, 1))
    soundfile.write(path, whole.astype(np.int16), 8000)
    raw = path.read_bytes()
    broken = bytearray(raw)
    broken[len(raw) // 2] ^= 255
    for damaged in (raw[: len(raw) // 2], bytes(broken)):
        path.write_bytes(damaged)
        notes: list[str] = []
        found = one(path, notes)
        assert 20_000 < len(found) <= 25_000 and found.grid is not None
        assert (found.grid.integers == whole[: len(found)]).all()
        (note,) = notes
        assert note.startswith(f"a.flac: ends or is damaged after {len(found)} of 50000 samples")


def test_what_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(5000), 8000)
    raw = path.read_bytes()
    path.write_bytes(raw[:30])
    with pytest.raises(SignalError, match=r"a\.flac: cannot be decoded.*: wanted FLAC, Ogg, AIFF, AU or CAF"):
        reading.read(path)
    soundfile.write(path, DRAW.normal(0, 0.1, 5000), 8000)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SignalError, match=r"a\.flac: none of its samples can be decoded: wanted some"):
        reading.read(path)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(
        SignalError, match=r"a\.flac: to be read it needs soundfile: run pip install 'genmote\[signals\]'"
    ):
        reading.read(path)


def test_which_files_it_takes(tmp_path: Path) -> None:
    assert sound.knows(tmp_path / "a", b"fLaC\0\0\0") and sound.knows(tmp_path / "a.au", b".snd\0\0\0")
    assert not sound.knows(tmp_path / "a.flac", b"1,2,3\n")
    assert not sound.knows(tmp_path / "a.wav", b"RIFF\0\0\0\0WAVE")


def test_real_speech_is_what_its_wav_is(data: Callable[[str], Path], tmp_path: Path) -> None:
    wav = data("fsdd_test/0_george_0.wav")
    samples, rate = soundfile.read(wav, dtype="int16")
    soundfile.write(tmp_path / "a.flac", samples, rate)
    found, wanted = one(tmp_path / "a.flac"), one(wav)
    assert found.grid is not None and wanted.grid is not None
    assert (found.grid.integers == wanted.grid.integers).all() and (found.values == wanted.values).all()
    assert found.rate_hz == wanted.rate_hz and found.channels == wanted.channels and found.units == wanted.units
