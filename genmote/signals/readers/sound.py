"""Sound in FLAC, Ogg (Vorbis, Opus), AIFF, AU and CAF files; needs soundfile (the extra `signals`).

Samples of FLAC and of PCM in the others are whole numbers, exact, as those of a WAV file (`wav.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals._extra import library
from genmote.signals.kinds import Grid, Series

SUFFIXES = (".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".caf")
MAGIC = (b"fLaC", b"OggS", b".snd", b"caff")
BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "ULAW": 16, "ALAW": 16, "PCM_24": 24, "PCM_32": 32}
BLOCK = 1024  # samples that are lost, at most, before a place that cannot be decoded
UNKNOWN = 1 << 62  # more samples than that: their number is not told


def knows(path: Path, head: bytes) -> bool:
    return head[:4] in MAGIC or (head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"))


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Series]:
    soundfile = library("soundfile", path)
    try:
        opened = soundfile.SoundFile(str(path))
    except (soundfile.SoundFileError, OSError, TypeError) as fault:
        raise SignalError(f"{path}: cannot be decoded{_said(fault)}: wanted FLAC, Ogg, AIFF, AU or CAF") from None
    with opened as sound:
        bits, count = BITS.get(sound.subtype), 0
        names = ("sound",) if sound.channels == 1 else tuple(f"sound {n + 1}" for n in range(sound.channels))
        blocks = _blocks(path, sound, soundfile.SoundFileError, bits is not None, min(rows, BLOCK), notes)
        while held := list(islice(blocks, max(1, rows // BLOCK))):
            samples = np.concatenate(held)
            count += len(samples)
            units, grid = ("full scale",) * sound.channels, None
            if bits is not None:
                whole = samples.astype(np.int64) >> 32 - bits
                grid = Grid(whole, np.full(sound.channels, 2.0 ** (1 - bits)), np.zeros(sound.channels))
            values = samples if grid is None else grid.values()
            yield Series(path.stem, values, float(sound.samplerate), names, units, grid=grid)
        if not count:
            raise SignalError(f"{path}: none of its samples can be decoded: wanted some")


def _blocks(
    path: Path, sound: Any, error: type[Exception], whole: bool, size: int, notes: list[str]
) -> Iterator[NDArray[Any]]:
    """Samples (n, channels), as far as they can be decoded: of 32 bits, or floats."""
    count, why = 0, ""
    try:
        while len(block := sound.read(size, dtype="int32" if whole else "float32", always_2d=True)):
            yield block
            count += len(block)
    except error as fault:
        why = _said(fault)
    if why or count < sound.frames < UNKNOWN:
        of = f" of {sound.frames}" if sound.frames < UNKNOWN else ""
        notes.append(f"{path.name}: ends or is damaged after {count}{of} samples{why}; what is before is read")


def _said(fault: Exception) -> str:
    said = str(fault).partition(": ")[2] or str(fault)
    return f" ({said.strip(' .')})" if said.strip() else ""
