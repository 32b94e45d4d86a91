"""Pictures in PNG, JPEG, GIF, TIFF, WebP, BMP and PNM files, a frame each; needs Pillow (the extra `signals`).

Those of an animation have the times that it tells, others the time in their EXIF data (CIPA DC-008). Pixels stay as
they are stored, of 8, 16 or 32 bits; only palettes and rare colour spaces become red, green and blue.
"""

from __future__ import annotations

import re
import warnings
from calendar import timegm
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals._extra import library
from genmote.signals._tables import Tally
from genmote.signals.kinds import Frames

SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".webp", ".bmp", ".pbm", ".pgm", ".ppm", ".pnm")
# No other is opened: some of Pillow's formats start programs.
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST = 1 << 26  # pixels of a frame
HELD = 1 << 26  # bytes of frames in a piece
COLOURS = ("red", "green", "blue")
CHANNELS = {"L": ("grey",), "LA": ("grey", "alpha"), "RGB": COLOURS, "RGBA": (*COLOURS, "alpha")}
GREY = ("I;16", "I;16B", "I;16L", "I", "F")  # of more than 8 bits
ORIENTATION, STORED, EXIF, TAKEN, PART, OFFSET = 0x112, 0x132, 0x8769, 0x9003, 0x9291, 0x9011  # tags
STAMP = re.compile(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d")

Pixels = NDArray[np.generic]


def knows(path: Path, head: bytes) -> bool:
    suffix = path.suffix.lower()
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if head[:2] == b"BM":
        return suffix == ".bmp"
    return head.startswith(MAGIC) or (suffix in SUFFIXES[-4:] and re.match(rb"P[1-6]\s", head) is not None)


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Frames]:
    library("PIL", path)
    tally, frames, times, size = Tally(notes), list[Pixels](), list[float](), 0
    channels: tuple[str, ...] = ()
    timed = True
    for frame, names, time in _frames(path, tally):
        timed = timed if channels else time is not None  # by the first
        if frames and (len(frames) == rows or size + frame.nbytes > HELD):
            yield _piece(path, frames, channels, times if timed else None)
            frames, times, size = [], [], 0
        channels = names
        frames.append(frame)
        times.append(np.nan if time is None else time)
        size += frame.nbytes
    yield _piece(path, frames, channels, times if timed else None)
    tally.tell()


def _piece(path: Path, frames: list[Pixels], channels: tuple[str, ...], times: list[float] | None) -> Frames:
    when = None if times is None else np.array(times)
    return Frames(path.stem, "grid", frames, channels, ("",) * len(channels), when)


def _frames(path: Path, tally: Tally) -> Iterator[tuple[Pixels, tuple[str, ...], float | None]]:
    """Pixels (H, W, C), what the C are, and when they were taken, where that is told."""
    image = library("PIL.Image", path)
    with _decoding(path, image, "the file"):
        picture = image.open(path, formats=FORMATS)
    with picture:
        first: str | None = None  # the mode of the first frame
        at, n = 0.0, 0
        while True:
            try:
                with _decoding(path, image, f"frame {n + 1}"):
                    try:
                        picture.seek(n)
                    except EOFError:
                        return
                    if picture.size[0] * picture.size[1] > MOST:
                        raise image.DecompressionBombError
                    raw = _rawmode(picture)
                    picture.load()
                    frame, mode = _pixels(path, picture, first, tally)
                    length_ms = picture.info.get("duration")
                    # A PNG file may have words under any name.
                    animated = isinstance(length_ms, (int, float))
                    time = at if animated else _taken(picture)
                    at += length_ms / 1000 if animated else 0.0
            except SignalError as fault:
                if not n:
                    raise
                tally.add(f"{path.name}: ends after {n} frames, as another cannot be decoded ({_reason(fault)})")
                return
            if ";16" in raw and frame.dtype == np.uint8:
                tally.add(f"{path.name}: has 16 bits a colour; Pillow reads 8 of them")
            first = first or mode
            yield frame, CHANNELS[mode], time
            n += 1
            if picture.format == "MPO":
                tally.add(f"{path.name}: has more pictures than its first, such as a preview; left out")
                return


def _pixels(path: Path, picture: Any, first: str | None, tally: Tally) -> tuple[Pixels, str]:
    """The pixels (H, W, C) of the frame that is loaded, and its mode, which is the first frame's where there is one."""
    frame = picture
    if picture.getexif().get(ORIENTATION, 1) in range(2, 9):
        frame = library("PIL.ImageOps", path).exif_transpose(picture)
        tally.add(f"{path.name}: {{n}} pictures lie on a side, or are mirrored; set upright")
    if frame.mode in GREY:
        mode = "L"
    elif frame.mode in CHANNELS:
        mode = frame.mode
    else:
        mode = "L" if frame.mode == "1" else "RGBA" if frame.has_transparency_data else "RGB"
        frame = frame.convert(mode)
    if first is not None and mode != first:
        frame, mode = frame.convert(first), first
        tally.add(f"{path.name}: {{n}} frames have other channels than the first; made as it is")
    array = np.array(frame)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    return array.reshape(*array.shape[:2], -1), mode


def _rawmode(picture: Any) -> str:
    """How the pixels are stored, by Pillow's names."""
    tiles = getattr(picture, "tile", None) or [None]
    return str(tiles[0][3]) if tiles[0] else ""


def _taken(picture: Any) -> float | None:
    """Seconds since 1970 by the frame's own data; a time without a zone is taken as UTC."""
    tags = picture.getexif()
    more = tags.get_ifd(EXIF)
    text = more.get(TAKEN) or (tags.get(STORED) if picture.format == "TIFF" else None)
    if not isinstance(text, str) or not STAMP.fullmatch(text.strip("\0 ")):
        return None
    try:
        time = float(timegm(datetime.strptime(text.strip("\0 "), "%Y:%m:%d %H:%M:%S").timetuple()))
    except ValueError:
        return None
    part, zone = str(more.get(PART, "")).strip("\0 "), re.fullmatch(r"([+-])(\d\d):(\d\d)", str(more.get(OFFSET, "")))
    time += float(f"0.{part}") if part.isdecimal() else 0.0
    return time - int(zone[1] + "60") * (60 * int(zone[2]) + int(zone[3])) if zone else time


@contextmanager
def _decoding(path: Path, image: Any, what: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", image.DecompressionBombWarning)
            yield
    except (image.DecompressionBombError, image.DecompressionBombWarning):
        raise SignalError(f"{path}: {what} has more than {MOST} pixels: wanted a smaller picture") from None
    except Exception as fault:  # what a decoder of strangers' bytes ends in is not told
        said = (str(fault).splitlines() or [""])[0].replace(str(path), path.name)[:200] or type(fault).__name__
        raise SignalError(f"{path}: {what} cannot be decoded ({said}): wanted a whole picture") from None


def _reason(fault: SignalError) -> str:
    return str(fault).partition(" cannot be decoded (")[2].partition("): wanted")[0] or "too large"
