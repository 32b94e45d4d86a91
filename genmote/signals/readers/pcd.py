"""Clouds of points in PCD files of the Point Cloud Library: text, binary, and compressed by LZF.

PCL, "The PCD (Point Cloud Data) file format", versions 0.6 and 0.7; the compressed form has all numbers of a field
together. LZF is M. Lehmann's (liblzf): runs of bytes, and copies of up to 264 bytes out of the last 8192. Places are in
metres, as ROS has them (REP 103).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals import _clouds
from genmote.signals.kinds import Frames

SUFFIXES = (".pcd",)
TYPES = {"F4", "F8", "I1", "I2", "I4", "I8", "U1", "U2", "U4", "U8"}
FORMS = ("ascii", "binary", "binary_compressed")
LISTED = ("FIELDS", "SIZE", "TYPE", "COUNT")
WIDEST = 1024  # numbers of a point
NOWHERE = "0 0 0 1 0 0 0".split()  # the viewpoint of a sensor that stands where it is


@dataclass(frozen=True)
class _Field:
    name: str
    dtype: np.dtype[np.generic]
    count: int


def knows(path: Path, head: bytes) -> bool:
    return head.startswith(b"# .PCD") or (path.suffix.lower() == ".pcd" and head.startswith((b"VERSION", b"#")))


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Frames]:
    with open(path, "rb") as file:
        fields, said, line = _header(path, file)
        width = sum(each.count for each in fields)
        if not width <= WIDEST:
            raise SignalError(f"{path}: has {width} numbers a point: wanted at most {WIDEST}")
        total = said.get("POINTS") or [str(_whole(path, said, "WIDTH") * _whole(path, said, "HEIGHT"))]
        count = _clouds.checked(path, _whole(path, {"POINTS": total}, "POINTS"), width)
        if said["DATA"] == ["ascii"]:
            table = _clouds.texts(path, file, line, count, width, notes)
            starts = np.cumsum([0, *(each.count for each in fields)])
            tables: list[NDArray[np.generic]] = [
                table[:, start : start + each.count] for start, each in zip(starts, fields, strict=False)
            ]
        elif said["DATA"] == ["binary"]:
            dtype = np.dtype([(str(n), each.dtype, (each.count,)) for n, each in enumerate(fields)])
            points = _clouds.records(path, file, dtype, count, notes)
            tables = [points[str(n)] for n in range(len(fields))]
        else:
            tables = _unpacked(path, file, fields, count)
    viewpoint = said.get("VIEWPOINT", NOWHERE)
    stands = [text.removesuffix(".0") for text in viewpoint] == NOWHERE
    labels = {} if stands else {"viewpoint": " ".join(viewpoint)}
    yield _clouds.cloud(path, list(_columns(path, fields, tables)), "m", labels, notes)


def _columns(path: Path, fields: list[_Field], tables: list[NDArray[np.generic]]) -> Iterator[_clouds.Column]:
    for each, table in zip(fields, tables, strict=True):
        if each.name == "_":  # padding
            continue
        if each.name in ("rgb", "rgba") and each.dtype.itemsize == 4 and each.count == 1:
            packed = _packed(path, table[:, 0], each)
            for name, shift in (("red", 16), ("green", 8), ("blue", 0), ("alpha", 24))[: len(each.name)]:
                yield name, (packed >> shift & 255).astype(np.uint8)
            continue
        for n in range(each.count):
            name = each.name if each.count == 1 else f"{each.name} {n}"
            yield name, _clouds.typed(path, name, table[:, n], each.dtype)


def _packed(path: Path, numbers: NDArray[np.generic], field: _Field) -> NDArray[np.uint32]:
    """Colours, a byte each; what a text calls a float is written as the whole number that it stands for, or as one."""
    whole = numbers.dtype != field.dtype and bool((numbers == np.rint(numbers.astype(np.float64))).all())
    return _clouds.typed(path, field.name, numbers, np.dtype("<u4") if whole else field.dtype).view("<u4")


def _unpacked(path: Path, file: BinaryIO, fields: list[_Field], count: int) -> list[NDArray[np.generic]]:
    """Of the compressed form, a table (count, numbers) of each field."""
    sizes = file.read(8)
    if len(sizes) < 8:
        raise SignalError(f"{path}: ends before its points: wanted their compressed size")
    packed, size = struct.unpack("<II", sizes)
    wanted = count * sum(each.dtype.itemsize * each.count for each in fields)
    if size != wanted:
        raise SignalError(f"{path}: has {size} bytes of {count} points: wanted {wanted}")
    there = path.stat().st_size - file.tell()
    if there < packed:
        raise SignalError(f"{path}: ends {packed - there} bytes early: wanted {packed} of compressed points")
    out = unlzf(file.read(packed), size)
    if out is None:
        raise SignalError(f"{path}: its compressed points are damaged: wanted {size} bytes packed by LZF")
    tables, at = [], 0
    for each in fields:
        numbers = np.frombuffer(out, each.dtype, count * each.count, at)
        tables.append(numbers.reshape(count, each.count))
        at += numbers.nbytes
    return tables


def unlzf(raw: bytes, size: int) -> bytes | None:
    r"""What LZF packed, `size` bytes; None where that cannot be.

    >>> unlzf(b"\x01ab\x40\x01", 6)
    b'ababab'
    """
    out, at = bytearray(), 0
    try:
        while at < len(raw) and len(out) <= size:
            first = raw[at]
            at += 1
            if first < 32:
                out += raw[at : at + first + 1]
                at += first + 1
                continue
            length = first >> 5
            if length == 7:
                length += raw[at]
                at += 1
            back = ((first & 31) << 8) + raw[at] + 1
            at += 1
            start, length = len(out) - back, length + 2
            if start < 0:
                return None
            # A copy may go on into what it makes.
            copy = out[start : start + length]
            out += copy if back >= length else (copy * (length // back + 1))[:length]
    except IndexError:
        return None
    return bytes(out) if len(out) == size and at == len(raw) else None


def _header(path: Path, file: BinaryIO) -> tuple[list[_Field], dict[str, list[str]], int]:
    """The fields, all that is said, and the number of the next line."""
    said: dict[str, list[str]] = {}
    number = 0
    while "DATA" not in said:
        line, number = file.readline(_clouds.LONGEST), number + 1
        key, *values = line.decode("latin-1").split() or ["#"]
        if key == "COLUMNS":
            key = "FIELDS"
        if not line or not (key.startswith("#") or key.isupper()) or number > 100:
            raise SignalError(
                f"{path}, line {number}: got {line[:40].decode('latin-1').strip()!r}: wanted a PCD header"
            )
        if not key.startswith("#"):
            said[key] = values
    if absent := [key for key in LISTED[:3] if not said.get(key)]:
        raise SignalError(f"{path}: its header has no {', '.join(absent)}: wanted a PCD file of version 0.6 or 0.7")
    said.setdefault("COUNT", ["1"] * len(said["FIELDS"]))
    if said["DATA"] not in ([form] for form in FORMS):
        raise SignalError(f"{path}: has DATA {' '.join(said['DATA'])}: wanted {', '.join(FORMS)}")
    names, sizes, types, counts = (said[key] for key in LISTED)
    kinds = [kind + size for kind, size in zip(types, sizes, strict=False)]
    fits = len(names) == len(sizes) == len(types) == len(counts)
    if not fits or not set(kinds) <= TYPES or not all(count.isdecimal() and 0 < len(count) < 6 for count in counts):
        raise SignalError(
            f"{path}: its fields {' '.join(names)} are of size {' '.join(sizes)}, type {' '.join(types)} and count "
            f"{' '.join(counts)}: wanted one each, of 1 to 8 bytes and F, I or U"
        )
    fields = [
        _Field(name, np.dtype("<" + kind.lower()), int(count))
        for name, kind, count in zip(names, kinds, counts, strict=True)
    ]
    return [each for each in fields if each.count], said, number + 1


def _whole(path: Path, said: dict[str, list[str]], key: str) -> int:
    text = " ".join(said.get(key, []))
    if not text.isdecimal() or len(text) > 12:
        raise SignalError(f"{path}: its header has {text or 'nothing'!r} for {key}: wanted a whole number")
    return int(text)
