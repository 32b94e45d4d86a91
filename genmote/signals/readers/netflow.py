"""Flows that a router counted: packets of NetFlow version 5, one after another, as they came from the network.

Cisco, "NetFlow Export Datagram Format". Rows are flows in one direction, named as in a capture (`pcap.py`). Of the
versions with templates (9, IPFIX), and of nfdump's own files, it is told how to make a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals._tables import Tally
from genmote.signals.flows import FLAGS, NAMES, WITH_PORTS, address
from genmote.signals.kinds import Field, Records

SUFFIXES = (".nf5", ".netflow", ".ipfix", ".nfcapd")
HEADER = np.dtype(
    [
        *(("version", ">u2"), ("count", ">u2"), ("uptime_ms", ">u4"), ("seconds", ">u4"), ("nanoseconds", ">u4")),
        *(("sequence", ">u4"), ("engine", ">u2"), ("sampling", ">u2")),
    ]
)
FLOW = np.dtype(
    [
        *(("source", "V4"), ("destination", "V4"), ("next", "V4"), ("input", ">u2"), ("output", ">u2")),
        *(("packets", ">u4"), ("bytes", ">u4"), ("first_ms", ">u4"), ("last_ms", ">u4"), ("source port", ">u2")),
        *(("destination port", ">u2"), ("pad", "u1"), ("flags", "u1"), ("protocol", "u1"), ("service", "u1")),
        *(("source system", ">u2"), ("destination system", ">u2"), ("masks", ">u2"), ("pad 2", ">u2")),
    ]
)
MOST = 30  # flows in a packet
NFDUMP = (b"\x0c\xa5", b"\xa5\x0c")
ADVICE = "wanted packets of NetFlow version 5; make a table of it by nfdump -r FILE -o csv"
FIELDS = (
    Field("protocol", "category"),
    Field("source", "category"),
    Field("source port", "integer"),
    Field("destination", "category"),
    Field("destination port", "integer"),
    Field("duration", "number", "s"),
    Field("packets", "integer"),
    Field("bytes", "integer", "bytes"),
    Field("flags", "category"),
    Field("type of service", "integer"),
    Field("input", "integer"),
    Field("output", "integer"),
)


def knows(path: Path, head: bytes) -> bool:
    if path.suffix.lower() in SUFFIXES:
        return head[:2] in (b"\0\5", b"\0\x09", b"\0\x0a", *NFDUMP)
    if len(head) < HEADER.itemsize + FLOW.itemsize or head[:2] != b"\0\5":
        return head[:2] in NFDUMP and head[2:4] in (b"\1\0", b"\0\1", b"\2\0", b"\0\2")
    size = HEADER.itemsize + int.from_bytes(head[2:4], "big") * FLOW.itemsize
    return 1 <= head[3] <= MOST and head[2] == 0 and head[size : size + 2] in (b"", b"\0", b"\0\5")


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Records]:
    tally, held, count = Tally(notes), list[tuple[NDArray[np.void], NDArray[np.float64]]](), 0
    for flows, starts in _packets(path, tally):
        for at in range(0, len(flows), rows):
            part = flows[at : at + rows]
            if count + len(part) > rows:
                yield _records(path, held)
                held, count = [], 0
            held.append((part, starts[at : at + rows]))
            count += len(part)
    if held:
        yield _records(path, held)
    tally.tell()


def _packets(path: Path, tally: Tally) -> Iterator[tuple[NDArray[np.void], NDArray[np.float64]]]:
    """The flows of each packet, and when they began in seconds since 1970."""
    after: dict[int, int] = {}  # by engine, the sequence number that is next
    at = 0
    with open(path, "rb") as file:
        while raw := file.read(HEADER.itemsize):
            begin, at = at, at + len(raw)
            head = np.frombuffer(raw, HEADER)[0] if len(raw) == HEADER.itemsize else None
            if raw[:2] in NFDUMP and not begin:
                raise SignalError(f"{path}: is a file of nfdump: {ADVICE}")
            if raw[:2] != b"\0\5" or (head is not None and not 1 <= head["count"] <= MOST):
                got = int.from_bytes(raw[:2], "big")
                much = "" if head is None else f" with {head['count']} flows"
                raise SignalError(f"{path}, byte {begin}: got a packet of version {got}{much}: {ADVICE}")
            size = 0 if head is None else int(head["count"]) * FLOW.itemsize
            body = file.read(size)
            at += len(body)
            if head is None or len(body) < size:
                tally.add(f"{path.name} ends within a packet; what is before is read", f"byte {begin}")
                if not begin:
                    raise SignalError(f"{path}: ends within its first packet: {ADVICE}")
                return
            engine, sequence = int(head["engine"]), int(head["sequence"])
            missing = (sequence - after.get(engine, sequence)) % (1 << 32)
            if 0 < missing < 1 << 31:
                tally.add(f"{path.name}: {{n}} flows are missing between packets, by their numbers", count=missing)
            after[engine] = sequence + int(head["count"])
            flows = np.frombuffer(body, FLOW)
            # Both count milliseconds since the router began, and begin again after 49 days.
            ago_ms = (int(head["uptime_ms"]) - flows["first_ms"].astype(np.int64)) % (1 << 32)
            ago_ms = np.where(ago_ms > 1 << 31, ago_ms - (1 << 32), ago_ms)
            yield flows, int(head["seconds"]) + int(head["nanoseconds"]) / 1e9 - ago_ms / 1e3


def _records(path: Path, held: list[tuple[NDArray[np.void], NDArray[np.float64]]]) -> Records:
    flows = np.concatenate([part for part, _ in held])

    def words(values: list[str]) -> NDArray[np.object_]:
        return np.array([*values, None], object)[:-1]

    def ports(name: str) -> NDArray[np.float64]:
        return np.where(np.isin(flows["protocol"], WITH_PORTS), flows[name].astype(np.float64), np.nan)

    lasted = (flows["last_ms"].astype(np.int64) - flows["first_ms"].astype(np.int64)) % (1 << 32)
    columns = (
        words([NAMES.get(int(n), f"ip {n}") for n in flows["protocol"]]),
        words([address(one.tobytes()) for one in flows["source"]]),
        ports("source port"),
        words([address(one.tobytes()) for one in flows["destination"]]),
        ports("destination port"),
        lasted / 1e3,
        flows["packets"].astype(np.int64),
        flows["bytes"].astype(np.int64),
        words(["".join(letter for n, letter in enumerate(FLAGS) if flag >> n & 1) for flag in flows["flags"]]),
        *(flows[name].astype(np.int64) for name in ("service", "input", "output")),
    )
    return Records(path.stem, FIELDS, columns, np.concatenate([starts for _, starts in held]))
