"""Captured packets (pcap and pcapng) as records of flows, a row each, counted in both directions.

The formats by draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng (IETF). Of Ethernet (with VLAN tags), raw IP, BSD
loopback and Linux cooked captures; IPv4 and IPv6, fragments being counted to their packet's flow. When a flow ends:
`flows.py`. Rows come as flows end; a row's time is that of its first packet. Bytes are counted from the IP header on.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from genmote.errors import SignalError
from genmote.signals.flows import (
    BARE,
    CUT,
    FLAGS,
    NAMES,
    NO_PORT,
    NOT_IP,
    SECOND,
    TYPED,
    Dissector,
    Flow,
    Flows,
    Packet,
    address,
)
from genmote.signals.kinds import Field, Records

SUFFIXES = (".pcap", ".pcapng", ".cap", ".dmp")
CLASSIC = {  # magic bytes: byte order, nanoseconds in a unit
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
}
SECTION, INTERFACE, OLD_PACKET, SIMPLE, ENHANCED = 0x0A0D0D0A, 1, 2, 3, 6
ORDERS = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}
TS_RESOLUTION, TS_OFFSET = 9, 14  # options of an interface
LOOKED_AT = 2048  # bytes of a packet: headers end before

FIELDS = (
    Field("protocol", "category"),
    Field("source", "category"),
    Field("source port", "integer"),
    Field("destination", "category"),
    Field("destination port", "integer"),
    Field("duration", "number", "s"),
    Field("packets out", "integer"),
    Field("packets back", "integer"),
    Field("bytes out", "integer", "bytes"),
    Field("bytes back", "integer", "bytes"),
    Field("flags", "category"),
    Field("mean gap", "number", "s"),
    Field("gap deviation", "number", "s"),
    Field("ended", "category"),
)


@dataclass(frozen=True)
class _Captured:
    """`time_ns` None: the file has none for this packet. `length`: on the wire; `raw`: the first bytes of it."""

    time_ns: int | None
    link: int
    raw: bytes
    length: int


def knows(path: Path, head: bytes) -> bool:
    return head[:4] in CLASSIC or (head[:4] == struct.pack(">I", SECTION) and head[8:12] in ORDERS)


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Records]:
    tally: Counter[str] = Counter()
    links: set[int] = set()
    batch: list[Flow] = []
    for flow in _flows(path, tally, links, notes):
        tally[flow.ended] += 1
        batch.append(flow)
        if len(batch) == rows:
            yield _records(path, batch)
            batch = []
    if not tally["counted"]:
        raise SignalError(
            f"{path}: none of its {tally['packets']} packets is IP{_foreign(links)}: wanted a capture of Ethernet, raw "
            "IP or Linux cooked packets"
        )
    if batch:
        yield _records(path, batch)
    if tally["full"]:
        notes.append(f"{path.name}: {tally['full']} flows ended early, as too many were open at once")


def _foreign(links: set[int]) -> str:
    strange = sorted(links - TYPED.keys() - BARE.keys())
    return f" of a link type that is known (there: {', '.join(map(str, strange))})" if strange else ""


def _flows(path: Path, tally: Counter[str], links: set[int], notes: list[str]) -> Iterator[Flow]:
    flows, dissector, last = Flows(), Dissector(), 0
    for captured in _packets(path, notes):
        tally["packets"] += 1
        links.add(captured.link)
        found = dissector.packet(captured.link, captured.raw, captured.length)
        if not isinstance(found, Packet):
            tally[found] += 1
            continue
        time = last if captured.time_ns is None else captured.time_ns
        tally["timeless"] += captured.time_ns is None
        tally["back"] += time < last
        tally["counted"] += 1
        last = time
        yield from flows.add(time, found)
    yield from flows.rest()
    tally["orphans"] = dissector.orphans
    for key, text in (
        (NOT_IP, "packets are not IP, or of an unknown link type; left out"),
        (CUT, "packets do not hold their headers, cut or damaged; left out"),
        ("orphans", "fragments before, or without, their packet's first; counted to a flow without ports"),
        ("timeless", "packets without a time; that of the one before taken"),
        ("back", "packets dated before the one above; the gap is counted as 0"),
    ):
        if tally[key]:
            notes.append(f"{path.name}: {tally[key]} {text}")


def _packets(path: Path, notes: list[str]) -> Iterator[_Captured]:
    with open(path, "rb") as file:
        file.seek(0, 2)
        end = file.tell()
        file.seek(0)
        magic = file.read(4)
        if magic in CLASSIC:
            yield from _classic(path, file, end, *CLASSIC[magic], notes)
        elif magic == struct.pack(">I", SECTION):
            yield from _blocks(path, file, end, notes)
        else:
            raise SignalError(f"{path}: begins with {magic!r}: wanted a pcap or pcapng file")


def _cut(path: Path, at: int, notes: list[str]) -> None:
    notes.append(f"{path.name}: is cut or damaged at byte {at}; what is before is read")


def _classic(path: Path, file: BinaryIO, end: int, order: str, unit: int, notes: list[str]) -> Iterator[_Captured]:
    if end < 24:
        raise SignalError(f"{path}: is cut within its header, at {end} bytes: wanted 24 and packets")
    link = struct.unpack(order + "I", file.read(20)[16:])[0] & 0xFFFF
    at = 24
    while at < end:
        if at + 16 > end:
            return _cut(path, at, notes)
        second, part, size, length = struct.unpack(order + "IIII", file.read(16))
        if at + 16 + size > end:
            return _cut(path, at, notes)
        raw = file.read(min(size, LOOKED_AT))
        if size > LOOKED_AT:
            file.seek(at + 16 + size)
        at += 16 + size
        yield _Captured(second * SECOND + part * unit, link, raw, max(size, length))


def _blocks(path: Path, file: BinaryIO, end: int, notes: list[str]) -> Iterator[_Captured]:
    """The packets of a pcapng file, whose blocks have type, length, body and the length again."""
    order, at = "", 0
    faces: list[_Interface] = []
    while at < end:
        file.seek(at)
        head = file.read(12)
        if head[:4] == struct.pack(">I", SECTION):
            order, faces = ORDERS.get(head[8:12], ""), []
        if len(head) < 12 or not order:
            return _cut(path, at, notes)
        kind, size = struct.unpack(order + "II", head[:8])
        if size < 12 or size % 4 or at + size > end:
            return _cut(path, at, notes)
        file.seek(at + 8)
        body = file.read(min(size - 12, LOOKED_AT + 20))
        try:
            if kind == INTERFACE:
                faces.append(_interface(body, order))
            elif kind in (SIMPLE, ENHANCED, OLD_PACKET):
                yield _captured(kind, body, size - 12, order, faces)
        except (struct.error, IndexError):
            return _cut(path, at, notes)
        at += size


@dataclass(frozen=True)
class _Interface:
    link: int
    most: int  # bytes that are captured of a packet; 0: all
    ticks: int = 10**6  # a second
    offset_s: int = 0


def _interface(body: bytes, order: str) -> _Interface:
    link, _, most = struct.unpack_from(order + "HHI", body)
    ticks, offset, at = 10**6, 0, 8
    while at + 4 <= len(body):
        code, size = struct.unpack_from(order + "HH", body, at)
        value = body[at + 4 : at + 4 + size]
        if code == 0:
            break
        if code == TS_RESOLUTION:
            ticks = (2 if value[0] & 0x80 else 10) ** (value[0] & 0x7F)
        elif code == TS_OFFSET:
            offset = struct.unpack(order + "q", value)[0]
        at += 4 + (size + 3) // 4 * 4
    return _Interface(link, most, ticks, offset)


def _captured(kind: int, body: bytes, size: int, order: str, faces: list[_Interface]) -> _Captured:
    """Raises IndexError or struct.error where the block lies about its interface or its length."""
    if kind == SIMPLE:
        (length,) = struct.unpack_from(order + "I", body)
        face = faces[0]
        held = min(length, face.most or length, size - 4)
        return _Captured(None, face.link, body[4 : 4 + min(held, LOOKED_AT)], length)
    number, high, low, held, length = struct.unpack_from(
        order + "IIIII" if kind == ENHANCED else order + "HxxIIII", body
    )
    face = faces[number]
    if held > size - 20:
        raise IndexError
    time = (high << 32 | low) * SECOND // face.ticks + face.offset_s * SECOND
    return _Captured(time, face.link, body[20 : 20 + min(held, LOOKED_AT)], max(held, length))


def _records(path: Path, flows: list[Flow]) -> Records:
    def ports(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([np.nan if value == NO_PORT else value for value in values], np.float64)

    def words(values: list[str]) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
        return np.array(values, object)

    columns = (
        words([NAMES.get(flow.first.protocol, f"ip {flow.first.protocol}") for flow in flows]),
        words([address(flow.first.source) for flow in flows]),
        ports([flow.first.source_port for flow in flows]),
        words([address(flow.first.destination) for flow in flows]),
        ports([flow.first.destination_port for flow in flows]),
        np.array([flow.duration_s for flow in flows]),
        np.array([flow.packets[0] for flow in flows], np.int64),
        np.array([flow.packets[1] for flow in flows], np.int64),
        np.array([flow.bytes[0] for flow in flows], np.int64),
        np.array([flow.bytes[1] for flow in flows], np.int64),
        words(["".join(letter for n, letter in enumerate(FLAGS) if flow.flags >> n & 1) for flow in flows]),
        np.array([flow.gap_mean if sum(flow.packets) > 1 else np.nan for flow in flows]),
        np.array([flow.gap_std for flow in flows]),
        words([flow.ended for flow in flows]),
    )
    return Records(path.stem, FIELDS, columns, np.array([flow.start / SECOND for flow in flows]))
