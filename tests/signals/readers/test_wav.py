from __future__ import annotations

import struct
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import Series


def write(path: Path, whole: np.ndarray, rate: int, width: int) -> Path:
    """A WAV file by Python's own library."""
    raw = (whole + 128).astype(np.uint8).tobytes() if width == 1 else whole.astype("<i4").tobytes()
    if width in (2, 3):
        raw = whole.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    with wave.open(str(path), "wb") as out:
        out.setnchannels(whole.shape[1])
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(raw)
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_numbers_come_back(tmp_path: Path, width: int, channels: int) -> None:
    most = 2 ** (8 * width - 1)
    draw = np.random.default_rng(width)
    whole = draw.integers(-most, most, (1000, channels))
    (found,) = reading.read(write(tmp_path / "a.wav", whole, 8000, width))
    assert isinstance(found, Series) and found.rate_hz == 8000 and found.grid is not None
    assert (found.grid.integers == whole).all()
    assert np.allclose(found.values, whole / most, atol=1e-6)
    parts = list(reading.pieces(tmp_path / "a.wav", rows=300))
    assert [len(part) for part in parts] == [300, 300, 300, 100]


def test_floats(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=500).astype("<f4")
    body = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, 100, 400, 4, 32) + struct.pack("<4sI", b"data", 2000)
    body += values.tobytes()
    (tmp_path / "f.wav").write_bytes(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body)
    (found,) = reading.read(tmp_path / "f.wav")
    assert isinstance(found, Series) and found.grid is None and (found.values[:, 0] == values).all()


def test_a_cut_file_is_read_as_far_as_it_goes_and_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.arange(1000)[:, None], 8000, 2)
    path.write_bytes(path.read_bytes()[:-501])
    notes: list[str] = []
    (found,) = reading.read(path, notes=notes)
    assert len(found) == 749 and notes == ["a.wav ends 501 bytes early; what is there is read"]


def test_what_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    whole = write(path, np.arange(100)[:, None], 8000, 2).read_bytes()
    path.write_bytes(whole[:30])
    with pytest.raises(SignalError, match=r"a\.wav: a format of 10 bytes: wanted 16 or more"):
        reading.read(path)
    path.write_bytes(whole[:40])
    with pytest.raises(SignalError, match=r"a\.wav: has no samples: wanted a whole WAV file"):
        reading.read(path)
    path.write_bytes(whole[:12])
    with pytest.raises(SignalError, match=r"a\.wav: has no format: wanted a whole WAV file"):
        reading.read(path)
    path.write_bytes(whole[:20] + struct.pack("<H", 85) + whole[22:])  # MP3 in a WAV
    with pytest.raises(
        SignalError, match=r"samples of kind 85 with 16 bits, 1 channels, 8000 Hz: .* convert it to PCM"
    ):
        reading.read(path)


def test_real_speech(data: Callable[[str], Path]) -> None:
    (found,) = reading.read(data("fsdd_test/0_george_0.wav"))
    assert isinstance(found, Series) and found.rate_hz == 8000 and 0.2 < found.duration_s < 1 and found.grid is not None
