from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import Records
from genmote.signals.readers import netflow

BEGAN = 1_700_000_000  # the router
DRAW = np.random.default_rng(9)
FLOWS = [
    {
        "source": f"10.0.{n % 5}.{n % 7}", "destination": f"192.168.1.{n % 3}", "input": n % 4, "output": 7,
        "packets": 1 + n, "bytes": 3_000_000_000 + n, "first": 1000 * n + 5, "last": 1000 * n + 905,
        "source port": 40_000 + n, "destination port": 443, "flags": n % 64, "protocol": (6, 17, 1)[n % 3], "tos": n,
    }
    for n in range(100)
]  # fmt: skip


def packet(flows: list[dict], uptime_ms: int, sequence: int, seconds: float, version: int = 5) -> bytes:
    """By hand, as Cisco tells it."""
    head = struct.pack(
        ">HHIIIIBBH", version, len(flows), uptime_ms % 2**32, int(seconds), round(seconds % 1 * 1e9), sequence, 0, 3, 0
    )
    return head + b"".join(
        ipaddress.ip_address(f["source"]).packed
        + ipaddress.ip_address(f["destination"]).packed
        + bytes(4)
        + struct.pack(
            ">HHIIII", f["input"], f["output"], f["packets"], f["bytes"], f["first"] % 2**32, f["last"] % 2**32
        )
        + struct.pack(">HHBBBB", f["source port"], f["destination port"], 0, f["flags"], f["protocol"], f["tos"])
        + struct.pack(">HHBBH", 1, 2, 24, 24, 0)
        for f in flows
    )


def export(early_ms: int = 0) -> list[bytes]:
    """All flows, 20 a packet, of a router whose clock stood at -`early_ms` when it began."""
    made = []
    for at in range(0, 100, 20):
        uptime = FLOWS[at + 19]["last"] + 2000
        moved = [f | {"first": f["first"] - early_ms, "last": f["last"] - early_ms} for f in FLOWS[at : at + 20]]
        made.append(packet(moved, uptime - early_ms, at, BEGAN + uptime / 1000))
    return made


def put(tmp_path: Path, raw: bytes, name: str = "router.nf5") -> Path:
    (tmp_path / name).write_bytes(raw)
    return tmp_path / name


def one(path: Path, notes: list[str] | None = None) -> Records:
    (found,) = reading.read(path, notes=notes)
    assert isinstance(found, Records)
    return found


@pytest.mark.parametrize("early_ms", [0, 50_500])
def test_flows_come_back(tmp_path: Path, early_ms: int) -> None:
    """Also where the router's milliseconds begin again within a packet."""
    notes: list[str] = []
    path = put(tmp_path, b"".join(export(early_ms)), "capture.raw")
    found = one(path, notes)
    assert reading.reader_of(path) is netflow and notes == [] and len(found) == 100
    assert found.times_s is not None and np.allclose(
        found.times_s, [BEGAN + f["first"] / 1000 for f in FLOWS], atol=1e-6
    )
    for name in ("source", "destination", "packets", "bytes", "input", "output"):
        assert found.column(name).tolist() == [f[name] for f in FLOWS]
    assert found.column("type of service").tolist() == [f["tos"] for f in FLOWS]
    assert found.column("duration").tolist() == [0.9] * 100
    assert found.column("protocol").tolist()[:3] == ["tcp", "udp", "icmp"]
    wanted = [np.nan if f["protocol"] == 1 else f["source port"] for f in FLOWS]
    assert np.array_equal(found.column("source port").astype(float), wanted, equal_nan=True)
    assert found.column("flags").tolist()[:4] == ["", "F", "S", "FS"]
    for rows in (7, 20, 50):
        parts = list(reading.pieces(path, rows=rows))
        assert all(len(part) <= rows for part in parts) and sum(map(len, parts)) == 100


def test_lost_packets_and_a_cut_end_are_told(tmp_path: Path) -> None:
    packets = export()
    notes: list[str] = []
    found = one(put(tmp_path, b"".join([packets[0], *packets[2:]])[:-30]), notes)
    assert len(found) == 60
    assert notes == [
        "router.nf5: 20 flows are missing between packets, by their numbers",
        "router.nf5 ends within a packet; what is before is read: byte 2952",
    ]


def test_what_it_cannot_read(tmp_path: Path) -> None:
    whole = export()
    for raw, message in (
        (packet(FLOWS[:3], 10**6, 0, BEGAN, version=9), r"router\.nf5, byte 0: got a packet of version 9 with 3 flows"),
        (
            whole[0] + b"\0\5\0\0" + bytes(20),
            r"router\.nf5, byte 984: got a packet of version 5 with 0 flows: wanted pac",
        ),
        (
            whole[0][:500],
            r"router\.nf5: ends within its first packet: wanted packets of NetFlow version 5; make a table",
        ),
        (b"\x0c\xa5\1\0" + bytes(200), r"router\.nf5: is a file of nfdump: wanted .* by nfdump -r FILE -o csv"),
    ):
        with pytest.raises(SignalError, match=message):
            reading.read(put(tmp_path, raw))


def test_which_files_it_takes(tmp_path: Path) -> None:
    raw = export()[0]
    assert netflow.knows(tmp_path / "a", raw) and netflow.knows(tmp_path / "a", raw + b"\0\5more")
    assert not netflow.knows(tmp_path / "a", raw + b"\0\6more") and not netflow.knows(tmp_path / "a", raw[:60])
    assert netflow.knows(tmp_path / "a.ipfix", b"\0\x0a") and netflow.knows(tmp_path / "nfcapd.1", b"\x0c\xa5\1\0")
