from __future__ import annotations

import ipaddress
import struct
import tracemalloc
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import flows as rooms
from genmote.signals import reading
from genmote.signals.flows import Flows, Packet
from genmote.signals.kinds import Records
from genmote.signals.readers import pcap

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
A, B, C = "10.0.0.1", "10.0.0.2", "192.168.7.9"
A6, B6 = "fe80::1", "2001:db8::2"
START = 1_700_000_000
Captured = tuple[float, bytes]  # seconds after START, frame


def packed(host: str) -> bytes:
    return ipaddress.ip_address(host).packed


def ethernet(payload: bytes, kind: int = 0x0800, tags: Sequence[int] = ()) -> bytes:
    head = b"\xaa" * 6 + b"\xbb" * 6
    for n, tag in enumerate(tags):
        head += struct.pack("!HH", 0x88A8 if n < len(tags) - 1 else 0x8100, tag)
    return head + struct.pack("!H", kind) + payload


def ip4(
    source: str, target: str, protocol: int, payload: bytes, name: int = 0, split: int = 0, options: bytes = b""
) -> bytes:
    words, total = 5 + len(options) // 4, 20 + len(options) + len(payload)
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, total, name, split, 64, protocol, 0)
    return head + packed(source) + packed(target) + options + payload


def ip6(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + packed(source) + packed(target) + payload


def tcp(source: int, target: int, flags: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHIIBBHHH", source, target, 1, 2, 5 << 4, flags, 1000, 0, 0) + payload


def udp(source: int, target: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", source, target, 8 + len(payload), 0) + payload


def classic(captured: Sequence[Captured], link: int = 1, order: str = "<", nano: bool = False) -> bytes:
    unit = 10**9 if nano else 10**6
    out = bytearray(struct.pack(order + "IHHiIII", 0xA1B23C4D if nano else 0xA1B2C3D4, 2, 4, 0, 0, 65535, link))
    for when, frame in captured:
        ticks = START * unit + round(when * unit)
        out += struct.pack(order + "IIII", ticks // unit, ticks % unit, len(frame), len(frame)) + frame
    return bytes(out)


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(order + "II", kind, 12 + len(body)) + body + struct.pack(order + "I", 12 + len(body))


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, link: int = 1, most: int = 0, options: bytes = b"") -> bytes:
    return block(order, 1, struct.pack(order + "HHI", link, 0, most) + options)


def enhanced(order: str, ticks: int, frame: bytes, face: int = 0, length: int | None = None) -> bytes:
    head = struct.pack(order + "IIIII", face, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), length or len(frame))
    return block(order, 6, head + frame)


def read(path: Path, raw: bytes, notes: list[str] | None = None) -> Records:
    path.write_bytes(raw)
    (found,) = reading.read(path, notes=notes)
    assert isinstance(found, Records) and found.name == path.stem
    return found


def table(found: Records) -> list[dict[str, object]]:
    """Rows by name, sorted by time; NaN is None."""
    assert found.times_s is not None
    names = [field.name for field in found.fields]
    rows = [
        {"time": when - START}
        | {n: None if isinstance(v, float) and np.isnan(v) else v for n, v in zip(names, row, strict=True)}
        for when, *row in zip(found.times_s, *(c.tolist() for c in found.columns), strict=True)
    ]
    return sorted(rows, key=lambda row: (row["time"], str(row["protocol"])))


HANDSHAKE = [
    (0.0, ethernet(ip4(A, B, 6, tcp(4000, 80, SYN)))),
    (0.5, ethernet(ip4(B, A, 6, tcp(80, 4000, SYN | ACK)))),
    (0.75, ethernet(ip4(A, B, 6, tcp(4000, 80, ACK)))),
    (1.0, ethernet(ip4(A, B, 6, tcp(4000, 80, PSH | ACK, b"GET /" * 20)))),
    (2.0, ethernet(ip4(B, A, 6, tcp(80, 4000, FIN | ACK)))),
    (2.25, ethernet(ip4(A, B, 6, tcp(4000, 80, FIN | ACK)))),
    (2.5, ethernet(ip4(B, A, 6, tcp(80, 4000, ACK)))),
    (3.0, ethernet(ip4(A, B, 6, tcp(4000, 80, SYN)))),  # the same ports again
    (3.5, ethernet(ip4(B, A, 6, tcp(80, 4000, RST | ACK)))),
]
GAPS = np.diff([0.0, 0.5, 0.75, 1.0, 2.0, 2.25, 2.5])


def row(**fields: object) -> dict[str, object]:
    return {
        "time": 0.0, "protocol": "udp", "source": A, "source port": 5000.0, "destination": B, "destination port": 53.0,
        "duration": 0.0, "packets out": 1, "packets back": 0, "bytes out": 0, "bytes back": 0, "flags": "",
        "mean gap": None, "gap deviation": None, "ended": "file",
    } | {name.replace("_", " "): value for name, value in fields.items()}  # fmt: skip


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("nano", [False, True])
def test_a_connection_and_the_next_on_the_same_ports(tmp_path: Path, order: str, nano: bool) -> None:
    notes: list[str] = []
    first, second = table(read(tmp_path / "a.pcap", classic(HANDSHAKE, order=order, nano=nano), notes))
    both = {"protocol": "tcp", "source_port": 4000.0, "destination_port": 80.0}
    assert first == row(
        **both, duration=2.5, packets_out=4, packets_back=3, bytes_out=4 * 40 + 100, bytes_back=3 * 40,
        flags="FSPA", mean_gap=pytest.approx(GAPS.mean()), gap_deviation=pytest.approx(GAPS.std()), ended="fin",
    )  # fmt: skip
    assert second == row(
        **both, time=3.0, duration=0.5, packets_back=1, bytes_out=40, bytes_back=40, flags="SRA", mean_gap=0.5,
        gap_deviation=0.0, ended="rst",
    )  # fmt: skip
    assert notes == []


def v6_chain(protocol: int, payload: bytes) -> tuple[int, bytes]:
    """Hop-by-hop, destination options of 16 bytes, routing, authentication, then the protocol."""
    auth = struct.pack("!BBHII", protocol, 2, 0, 1, 2) + bytes(4)
    routing = struct.pack("!BB", 51, 0) + bytes(6)
    target = struct.pack("!BB", 43, 1) + bytes(14)
    return 0, struct.pack("!BB", 60, 0) + bytes(6) + target + routing + auth + payload


def test_what_lies_below_and_above(tmp_path: Path) -> None:
    said = b"x" * 1480
    chain, chained = v6_chain(17, udp(5000, 53, b"12"))
    frag6 = struct.pack("!BBHI", 17, 0, 1, 77) + udp(5001, 53, b"y" * 8)
    frag6b = struct.pack("!BBHI", 17, 0, 16, 77) + b"y" * 40
    captured = [
        (0.0, ethernet(ip4(A, B, 17, udp(5000, 53, b"q" * 10), options=bytes(8)), tags=(7, 8))),
        (0.25, ethernet(ip4(B, A, 17, udp(53, 5000, b"r" * 30)) + bytes(50))),  # padded by Ethernet
        (1.0, ethernet(ip4(A, C, 17, udp(6000, 514, said), name=9, split=0x2000))),
        (1.5, ethernet(ip4(A, C, 17, said, name=9, split=0x2000 | 186))),
        (2.0, ethernet(ip4(A, C, 17, b"end", name=9, split=371))),
        (3.0, ethernet(ip4(A, C, 17, b"lost", name=10, split=371))),
        (4.0, ethernet(ip6(A6, B6, chain, chained), 0x86DD)),
        (5.0, ethernet(ip6(A6, B6, 44, frag6), 0x86DD)),
        (5.5, ethernet(ip6(A6, B6, 44, frag6b), 0x86DD)),
        (6.0, ethernet(ip4(A, B, 1, b"\x08\0" + bytes(6)))),
        (6.5, ethernet(ip4(B, A, 1, b"\0\0" + bytes(6)))),
        (7.0, ethernet(ip6(A6, B6, 58, b"\x80\0" + bytes(6)), 0x86DD)),
        (8.0, ethernet(ip4(A, B, 99, b"abc"))),
        (9.0, ethernet(bytes(28), 0x0806)),  # ARP
        (9.5, ethernet(ip4(A, B, 6, tcp(1, 2, SYN)[:12]))),  # cut within TCP
    ]
    notes: list[str] = []
    found = table(read(tmp_path / "a.pcap", classic(captured), notes))
    assert found == [
        row(duration=0.25, packets_back=1, bytes_out=46, bytes_back=58, mean_gap=0.25, gap_deviation=0.0),
        row(
            time=1.0, source_port=6000.0, destination=C, destination_port=514.0, duration=1.0, packets_out=3,
            bytes_out=1508 + 1500 + 23, mean_gap=0.5, gap_deviation=0.0,
        ),
        row(time=3.0, source_port=None, destination=C, destination_port=None, bytes_out=24),
        row(time=4.0, source=A6, destination=B6, bytes_out=40 + len(chained)),
        row(
            time=5.0, source=A6, destination=B6, source_port=5001.0, duration=0.5, packets_out=2,
            bytes_out=80 + len(frag6 + frag6b), mean_gap=0.5, gap_deviation=0.0,
        ),
        row(
            time=6.0, protocol="icmp", source_port=None, destination_port=None, duration=0.5, packets_back=1,
            bytes_out=28, bytes_back=28, mean_gap=0.5, gap_deviation=0.0,
        ),
        row(
            time=7.0, protocol="icmpv6", source=A6, destination=B6, source_port=None, destination_port=None,
            bytes_out=48,
        ),
        row(time=8.0, protocol="ip 99", source_port=None, destination_port=None, bytes_out=23),
    ]  # fmt: skip
    assert notes == [
        "a.pcap: 1 packets are not IP, or of an unknown link type; left out",
        "a.pcap: 1 packets do not hold their headers, cut or damaged; left out",
        "a.pcap: 1 fragments before, or without, their packet's first; counted to a flow without ports",
    ]


@pytest.mark.parametrize(
    ("link", "before"),
    [
        (101, b""),
        (12, b""),
        (228, b""),
        (0, struct.pack("<I", 2)),
        (108, struct.pack(">I", 2)),
        (113, struct.pack("!HHH8sH", 0, 1, 6, b"\xaa" * 8, 0x0800)),
        (113, struct.pack("!HHH8sHHH", 0, 1, 6, b"\xaa" * 8, 0x8100, 7, 0x0800)),
        (276, struct.pack("!HHIHBB8s", 0x0800, 0, 3, 1, 0, 6, b"\xaa" * 8)),
    ],
)
def test_links(tmp_path: Path, link: int, before: bytes) -> None:
    found = read(tmp_path / "a.pcap", classic([(0.0, before + ip4(A, B, 17, udp(5000, 53, b"hi")))], link=link))
    assert table(found) == [row(bytes_out=30)]


@pytest.mark.parametrize("order", "<>")
def test_pcapng(tmp_path: Path, order: str) -> None:
    """Two sections, the second in the other order; resolutions of 10^-9 and 2^-10 with an offset; blocks to skip."""
    other = "<>"[order == "<"]
    nine = struct.pack(order + "HHB3xHH", 9, 1, 9, 0, 0)
    binary = struct.pack(order + "HHB3xHHq", 9, 1, 0x8A, 14, 8, START)
    frame = ethernet(ip4(A, B, 17, udp(5000, 53, b"hi")))
    back = ip4(B, A, 17, udp(53, 5000, b"hello"))
    raw = section(order) + interface(order, 1, 0, nine) + block(order, 4, bytes(16)) + interface(order, 101, 0, binary)
    raw += enhanced(order, START * 10**9 + 250_000_000, frame, length=len(frame) + 7)
    raw += enhanced(order, 512, back, face=1)
    raw += block(order, 5, bytes(20))
    raw += section(other) + interface(other)
    old = struct.pack(other + "HHIIII", 0, 9, *divmod((START + 1) * 10**6, 1 << 32), len(frame), len(frame))
    raw += block(other, 2, old + frame)
    raw += block(other, 3, struct.pack(other + "I", len(frame)) + frame)  # no time: that of the one before
    notes: list[str] = []
    (found,) = table(read(tmp_path / "a.pcapng", raw, notes))
    assert found == row(
        time=0.25, duration=0.75, packets_out=3, packets_back=1, bytes_out=90, bytes_back=33,
        mean_gap=0.25, gap_deviation=pytest.approx(np.std([0.25, 0.5, 0.0])),
    )  # fmt: skip
    assert notes == ["a.pcapng: 1 packets without a time; that of the one before taken"]


def test_a_snapped_packet_counts_as_it_was(tmp_path: Path) -> None:
    frame = ethernet(ip4(A, B, 17, udp(5000, 53, b"x" * 900)))
    raw = section("<") + interface("<", 1, 60)
    raw += enhanced("<", START * 10**6, frame[:60], length=len(frame))
    raw += block("<", 3, struct.pack("<I", len(frame)) + frame[:60])
    (found,) = table(read(tmp_path / "a.pcapng", raw))
    assert found["packets out"] == 2 and found["bytes out"] == 2 * 928


def test_timeouts(tmp_path: Path) -> None:
    def at(*times: float) -> list[Captured]:
        return [(t, ethernet(ip4(A, B, 17, udp(5000, 53, b"hi")))) for t in times]

    found = table(read(tmp_path / "a.pcap", classic(at(0, 119, 240, 241))))
    assert [(r["time"], r["duration"], r["ended"]) for r in found] == [(0, 119, "idle"), (240, 1, "file")]
    found = table(read(tmp_path / "a.pcap", classic(at(*range(0, 2000, 100)))))
    assert [(r["time"], r["duration"], r["ended"]) for r in found] == [(0, 1800, "active"), (1900, 0, "file")]
    notes: list[str] = []
    found = table(read(tmp_path / "a.pcap", classic(at(5, 4, 6)), notes))
    assert [(r["time"], r["duration"], r["mean gap"]) for r in found] == [(4, 2, 0.5)]
    assert notes == ["a.pcap: 1 packets dated before the one above; the gap is counted as 0"]


def test_few_flows_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flows = Flows(most=2)
    ended = []
    for n, port in enumerate((1, 2, 1, 3, 4)):
        ended += flows.add(n, Packet(17, packed(A), port, packed(B), 53, 60, 0))
    assert [(f.first.source_port, f.ended) for f in ended] == [(2, "full"), (1, "full")]
    assert [(f.first.source_port, f.ended) for f in flows.rest()] == [(3, "file"), (4, "file")]
    monkeypatch.setattr(pcap, "Flows", lambda: Flows(most=2))
    notes: list[str] = []
    many = [(0.0, ethernet(ip4(A, B, 17, udp(port, 53, b"")))) for port in range(10)]
    assert len(read(tmp_path / "a.pcap", classic(many), notes)) == 10
    assert notes == ["a.pcap: 8 flows ended early, as too many were open at once"]


def test_few_fragments_are_remembered() -> None:
    finder = rooms.Dissector()
    for name in range(rooms.SPLIT + 1):
        finder.packet(101, ip4(A, B, 17, udp(1, 2, bytes(8)), name=name, split=0x2000), 36)
    first, last = (finder.packet(101, ip4(A, B, 17, b"", name=name, split=2), 20) for name in (0, rooms.SPLIT))
    assert isinstance(first, Packet) and isinstance(last, Packet) and finder.orphans == 1
    assert first.source_port == rooms.NO_PORT and last.source_port == 1


def test_counts_are_those_of_the_slow_and_plain_way(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    hosts, captured, times = [A, B, C], [], np.cumsum(draw.exponential(0.01, 3000)).round(6)
    kept: dict[object, list[tuple[float, str, int]]] = defaultdict(list)
    for when in times.tolist():
        a, b = draw.choice(hosts, 2, replace=False).tolist()
        pa, pb, size = (int(draw.integers(1, n)) for n in (4, 4, 500))
        captured.append((when, ethernet(ip4(a, b, 17, udp(pa, pb, bytes(size))))))
        kept[frozenset({(a, pa), (b, pb)})].append((when, a, 28 + size))
    found = table(read(tmp_path / "a.pcap", classic(captured)))
    assert len(found) == len(kept)
    for r in found:
        packets = kept[frozenset({(r["source"], r["source port"]), (r["destination"], r["destination port"])})]
        out = [size for _, source, size in packets if source == packets[0][1]]
        back = [size for _, source, size in packets if source != packets[0][1]]
        gaps = np.diff([when for when, _, _ in packets])
        assert (r["packets out"], r["bytes out"]) == (len(out), sum(out))
        assert (r["packets back"], r["bytes back"]) == (len(back), sum(back))
        assert r["source"] == packets[0][1] and r["time"] == pytest.approx(packets[0][0], abs=1e-6)
        assert r["mean gap"] == pytest.approx(gaps.mean()) and r["gap deviation"] == pytest.approx(gaps.std())


def test_windows_and_memory(tmp_path: Path) -> None:
    frame = [ethernet(ip4(A, B, 17, udp(port, 53, bytes(1400)))) for port in range(1, 60)]
    path = tmp_path / "a.pcap"
    path.write_bytes(classic([(200.0 * (n // 59), frame[n % 59]) for n in range(1500)]))
    tracemalloc.start()
    try:
        sizes = [len(part) for part in reading.pieces(path, rows=50)]
        assert tracemalloc.get_traced_memory()[1] < 400_000 < path.stat().st_size // 5
    finally:
        tracemalloc.stop()
    assert sum(sizes) == 1500 and set(sizes) == {50}


def test_a_cut_or_lying_packet_is_told(tmp_path: Path) -> None:
    whole = classic(HANDSHAKE)
    notes: list[str] = []
    found = read(tmp_path / "a.pcap", whole[:-1], notes)
    assert found.column("packets back").tolist() == [3, 0]
    assert notes == [f"a.pcap: is cut or damaged at byte {len(whole) - 70}; what is before is read"]
    lying = whole + struct.pack("<IIII", START, 0, 0xFFFFFFF0, 0xFFFFFFF0) + bytes(50)
    tracemalloc.start()
    try:
        notes.clear()
        read(tmp_path / "a.pcap", lying, notes)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert notes == [f"a.pcap: is cut or damaged at byte {len(whole)}; what is before is read"]
    good = section("<") + interface("<") + enhanced("<", 0, HANDSHAKE[0][1])
    for bad in (
        struct.pack("<II", 6, 0xFFFFFFFC) + bytes(40),
        struct.pack("<II", 6, 8) + bytes(40),
        enhanced("<", 0, HANDSHAKE[0][1], face=5),
        block("<", 6, struct.pack("<IIIII", 0, 0, 0, 4000, 4000) + bytes(8)),
        block("<", 6, bytes(8)),
        good[:11],
    ):
        notes.clear()
        assert len(read(tmp_path / "a.pcapng", good + bad, notes)) == 1
        assert notes == [f"a.pcapng: is cut or damaged at byte {len(good)}; what is before is read"]


def test_whatever_is_cut_or_changed_is_records_or_one_clear_error(tmp_path: Path) -> None:
    frames = [*HANDSHAKE[:4], (1.0, ethernet(ip6(A6, B6, *v6_chain(17, udp(1, 2, b""))), 0x86DD, tags=(1,)))]
    frames.append((1.0, ethernet(ip4(A, B, 17, udp(1, 2, bytes(8)), name=4, split=0x2000))))
    option = struct.pack("<HHB3xHH", 9, 1, 9, 0, 0)
    ng = (
        section("<") + interface("<", options=option) + b"".join(enhanced("<", n, f) for n, (_, f) in enumerate(frames))
    )
    ng += block("<", 3, struct.pack("<I", len(frames[0][1])) + frames[0][1])
    draw = np.random.default_rng(6)
    damaged = []
    for whole in (classic(frames), ng):
        damaged += [whole[:n] for n in range(len(whole))]
        for _ in range(300):
            raw = bytearray(whole)
            for at in draw.integers(0, len(raw), draw.integers(1, 9)):
                raw[at] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.integers(0, 256)])
            damaged.append(bytes(raw))
    path = tmp_path / "a.pcap"
    read_some = 0
    for raw in damaged:
        path.write_bytes(raw)
        try:
            assert all(len(part) for part in reading.pieces(path, reader="pcap", rows=3))
            read_some += 1
        except SignalError as fault:
            assert str(fault).startswith(str(path))
    assert read_some > len(damaged) // 2


def test_what_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(classic([])[:20])
    with pytest.raises(SignalError, match=r"a\.pcap: is cut within its header, at 20 bytes: wanted 24 and packets"):
        reading.read(path)
    path.write_bytes(classic([]))
    with pytest.raises(
        SignalError, match=r"a\.pcap: none of its 0 packets is IP: wanted a capture of Ethernet, raw IP"
    ):
        reading.read(path)
    path.write_bytes(classic([(0.0, bytes(60))], link=127))
    with pytest.raises(
        SignalError, match=r"none of its 1 packets is IP of a link type that is known \(there: 127\): wanted"
    ):
        reading.read(path)
    path.write_bytes(b"GET / HTTP/1.1")
    with pytest.raises(SignalError, match=r"a\.pcap: begins with b'GET ': wanted a pcap or pcapng file"):
        reading.read(path, reader="pcap")
