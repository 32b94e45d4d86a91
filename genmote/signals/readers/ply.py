"""Clouds of points in PLY files, as text or as numbers of either byte order: the vertices, with all that they have.

G. Turk, "The PLY Polygon File Format" (1994). Faces and other elements are left out. PLY does not tell a unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from genmote.errors import SignalError
from genmote.signals import _clouds
from genmote.signals.kinds import Frames

SUFFIXES = (".ply",)
TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
LINES = 10_000  # of a header


@dataclass
class _Element:
    """`count` of a thing; `properties`: names and types of its numbers. `lists`: it has as many as it says itself."""

    name: str
    count: int
    properties: list[tuple[str, str]] = field(default_factory=list)
    lists: bool = False


def knows(path: Path, head: bytes) -> bool:
    return head[:4] in (b"ply\n", b"ply\r")


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Frames]:
    with open(path, "rb") as file:
        order, elements, line = _header(path, file)
        names = [element.name for element in elements]
        if "vertex" not in names:
            raise SignalError(f"{path}: has no vertices, but {', '.join(names) or 'nothing'}: wanted a cloud of points")
        before, vertex = elements[: names.index("vertex")], elements[names.index("vertex")]
        if any(element.lists for element in (*before, vertex) if order or element is vertex):
            raise SignalError(f"{path}: has lists in or before its vertices: wanted the vertices first, as numbers")
        count = _clouds.checked(path, vertex.count, len(vertex.properties))
        for element in before:
            if order:
                file.seek(element.count * _dtype(element, order).itemsize, 1)
            else:
                line += element.count
                for _ in range(element.count):
                    if not file.readline(_clouds.LONGEST):
                        break
        if order:
            points = _clouds.records(path, file, _dtype(vertex, order), count, notes)
            columns = [(name, points[str(n)]) for n, (name, _) in enumerate(vertex.properties)]
        else:
            table = _clouds.texts(path, file, line, count, len(vertex.properties), notes)
            columns = [
                (name, _clouds.typed(path, name, table[:, n], np.dtype(kind)))
                for n, (name, kind) in enumerate(vertex.properties)
            ]
    yield _clouds.cloud(path, columns, "", {}, notes)


def _dtype(element: _Element, order: str) -> np.dtype[np.void]:
    return np.dtype([(str(n), order + kind) for n, (_, kind) in enumerate(element.properties)])


def _header(path: Path, file: BinaryIO) -> tuple[str, list[_Element], int]:
    """Byte order, "" for text; the elements; the number of the next line."""
    order: str | None = None
    elements: list[_Element] = []
    if file.readline(8).strip() != b"ply":
        raise SignalError(f"{path}: does not begin with ply: wanted a PLY file")
    for number in range(2, LINES):
        line = file.readline(_clouds.LONGEST)
        match line.decode("latin-1").split():
            case ["format", kind, "1.0"] if kind in FORMATS:
                order = FORMATS[kind]
            case ["comment" | "obj_info", *_]:
                pass
            case ["element", name, count] if count.isdecimal() and len(count) < 12:
                elements.append(_Element(name, int(count)))
            case ["property", "list", size, kind, _] if elements and size in TYPES and kind in TYPES:
                elements[-1].lists = True
            case ["property", kind, name] if elements and kind in TYPES:
                elements[-1].properties.append((name, TYPES[kind]))
            case ["end_header"] if order is not None:
                return order, elements, number + 1
            case _:
                raise SignalError(
                    f"{path}, line {number}: got {line[:40].decode('latin-1').strip()!r}: wanted the header of a PLY "
                    "file to go on, up to end_header, with format, elements and their properties"
                )
    raise SignalError(f"{path}: has no end_header in {LINES} lines: wanted a PLY file")
