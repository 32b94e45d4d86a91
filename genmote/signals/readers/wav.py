"""Sound in WAV files: whole numbers of 8, 16, 24 or 32 bits, or floats.

Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0" (1991), RIFF and the chunks `fmt `
and `data`; the extensible format's first two bytes of its GUID say what the samples are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from genmote.errors import SignalError
from genmote.signals.kinds import Grid, Series

SUFFIXES = (".wav", ".wave")
WHOLE, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
STREAMED = 0xFFFFFFFF  # the size of data whose writer did not know it


def knows(path: Path, head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WAVE"


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Series]:
    with open(path, "rb") as file:
        file.seek(0, 2)
        end = file.tell()
        at, form, data = 12, None, None
        while at + 8 <= end and data is None:
            file.seek(at)
            name, size = struct.unpack("<4sI", file.read(8))
            if name == b"fmt ":
                form = _form(path, file.read(min(size, 40)))
            elif name == b"data":
                data = (at + 8, size)
            at += 8 + size + size % 2
        if form is None or data is None:
            raise SignalError(f"{path}: has no {'format' if form is None else 'samples'}: wanted a whole WAV file")
        kind, channels, rate, bits = form
        start, size = data
        if size == STREAMED or start + size > end:
            if size != STREAMED:
                notes.append(f"{path.name} ends {start + size - end} bytes early; what is there is read")
            size = end - start
        width = bits // 8 * channels
        count = size // width
        names = ("sound",) if channels == 1 else tuple(f"sound {n + 1}" for n in range(channels))
        file.seek(start)
        for first in range(0, count, rows):
            raw = file.read(min(rows, count - first) * width)
            yield _series(path, raw, kind, channels, rate, bits, names)


def _form(path: Path, chunk: bytes) -> tuple[int, int, int, int]:
    """Kind of the samples, channels, samples a second, bits of a sample."""
    if len(chunk) < 16:
        raise SignalError(f"{path}: a format of {len(chunk)} bytes: wanted 16 or more")
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", chunk[:16])
    if kind == EXTENSIBLE and len(chunk) >= 26:
        kind = struct.unpack("<H", chunk[24:26])[0]
    fits = (kind == WHOLE and bits in (8, 16, 24, 32)) or (kind == FLOAT and bits in (32, 64))
    if not fits or not channels or not rate:
        raise SignalError(
            f"{path}: samples of kind {kind} with {bits} bits, {channels} channels, {rate} Hz: wanted whole numbers of "
            "8, 16, 24 or 32 bits or floats; convert it to PCM"
        )
    return kind, channels, rate, bits


def _series(path: Path, raw: bytes, kind: int, channels: int, rate: int, bits: int, names: tuple[str, ...]) -> Series:
    units = ("full scale",) * channels
    if kind == FLOAT:
        floats = np.frombuffer(raw, f"<f{bits // 8}").reshape(-1, channels)
        return Series(path.stem, floats.astype(np.float32), float(rate), names, units)
    if bits == 24:
        bytes_ = np.frombuffer(raw, np.uint8).reshape(-1, 3).astype(np.int32)
        whole = (bytes_[:, 0] | bytes_[:, 1] << 8 | bytes_[:, 2] << 16) << 8 >> 8
    else:
        whole = np.frombuffer(raw, np.uint8 if bits == 8 else f"<i{bits // 8}").astype(np.int64)
        whole = whole - 128 if bits == 8 else whole
    step = np.full(channels, 2.0 ** (1 - bits))
    grid = Grid(whole.reshape(-1, channels).astype(np.int64), step, np.zeros(channels))
    return Series(path.stem, grid.values(), float(rate), names, units, grid=grid)
