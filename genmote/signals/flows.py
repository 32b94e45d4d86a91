"""Packets into flows: what two ends said to each other, counted in both directions.

A flow is what has one protocol and the same two addresses and ports, in either direction, as in RFC 5103 (bidirectional
flow export); its source is the sender of its first packet. It ends when nothing came for `IDLE_S`, when it has lasted
`ACTIVE_S`, or when a TCP connection that was closed (FIN from both ends, or RST) is opened anew.
"""

from __future__ import annotations

import ipaddress
import math
import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

IDLE_S, ACTIVE_S = 120, 1800
OPEN = 1 << 15  # flows that are followed at once; the one that was silent for longest ends for a further one
SPLIT = 4096  # packets in fragments whose ports are remembered
NO_PORT = -1
SECOND = 10**9  # times are whole nanoseconds
FLAGS = "FSRPAUEC"  # TCP's FIN, SYN, RST, PSH, ACK, URG, ECE, CWR, from the lowest bit on
FIN, SYN, RST, ACK = 1, 2, 4, 16
NAMES = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 51: "ah", 58: "icmpv6", 132: "sctp"}
TCP, WITH_PORTS = 6, (6, 17, 33, 132, 136)  # TCP, UDP, DCCP, SCTP, UDP-Lite

# Link types of tcpdump.org's list: where the EtherType stands and where what it says begins; where bare IP begins.
TYPED = {1: (12, 14), 113: (14, 16), 276: (0, 20)}  # Ethernet, Linux cooked, Linux cooked v2
BARE = {0: 4, 12: 0, 14: 0, 101: 0, 108: 4, 228: 0, 229: 0}  # BSD loopback, raw IP by several numbers
TAGS = (0x8100, 0x88A8, 0x9100)  # VLAN, IEEE 802.1Q and 802.1ad
V4, V6 = 0x0800, 0x86DD
OPTIONS, ROUTING, FRAGMENT, AUTH, DESTINATION = 0, 43, 44, 51, 60  # IPv6 extension headers, and
MORE_HEADERS = (OPTIONS, ROUTING, DESTINATION, 135, 139, 140)  # those of eight bytes and eight times their length
NOT_IP, CUT = "not ip", "cut"  # why there is no packet


class Packet(NamedTuple):
    """One IP packet, or fragment of one: `size` is its bytes from the IP header on, `flags` TCP's."""

    protocol: int
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    size: int
    flags: int


class Dissector:
    """Finds IP packets in what was captured. Of a packet in fragments only the first has ports: they are remembered."""

    def __init__(self) -> None:
        self._ports: OrderedDict[tuple[bytes, bytes, int, int], tuple[int, int]] = OrderedDict()
        self.orphans = 0  # fragments whose first was not seen before them

    def packet(self, link: int, raw: bytes, length: int) -> Packet | str:
        """The packet in the captured bytes `raw` of `length` on the wire; else why there is none: NOT_IP or CUT."""
        try:
            if link in TYPED:
                at, start = TYPED[link]
                kind = _u16(raw, at)
                while kind in TAGS:
                    kind, start = _u16(raw, start + 2), start + 4
            elif link in BARE:
                start = BARE[link]
                kind = {4: V4, 6: V6}.get(raw[start] >> 4, 0)
            else:
                return NOT_IP
            if kind not in (V4, V6):
                return NOT_IP
            return self._v4(raw, start, length) if kind == V4 else self._v6(raw, start, length)
        except (struct.error, IndexError):
            return CUT

    def _v4(self, raw: bytes, at: int, length: int) -> Packet | str:
        first, _, total, name, split, _, protocol, _, source, destination = struct.unpack_from("!BBHHHBBH4s4s", raw, at)
        words = first & 15
        if first >> 4 != 4 or words < 5:
            return CUT
        offset, more = split & 0x1FFF, bool(split & 0x2000)
        ends = (source, destination)
        return self._upper(raw, at + 4 * words, protocol, ends, _size(total, length - at), name, offset, more)

    def _v6(self, raw: bytes, at: int, length: int) -> Packet | str:
        first, payload, protocol, _, source, destination = struct.unpack_from("!IHBB16s16s", raw, at)
        if first >> 28 != 6:
            return CUT
        size = _size(payload and payload + 40, length - at)
        at, name, offset, more = at + 40, 0, 0, False
        while protocol in MORE_HEADERS or protocol in (FRAGMENT, AUTH):
            after, count = raw[at], raw[at + 1]
            if protocol == FRAGMENT:
                split, name = struct.unpack_from("!HI", raw, at + 2)
                offset, more = split >> 3, bool(split & 1)
                at += 8
            else:
                at += 4 * (count + 2) if protocol == AUTH else 8 * (count + 1)
            protocol = after
            if offset:
                break  # what follows is the middle of something
        return self._upper(raw, at, protocol, (source, destination), size, name, offset, more)

    def _upper(
        self,
        raw: bytes,
        at: int,
        protocol: int,
        ends: tuple[bytes, bytes],
        size: int,
        name: int,
        offset: int,
        more: bool,
    ) -> Packet:
        ports, flags = (NO_PORT, NO_PORT), 0
        key = (*ends, protocol, name)
        if protocol in WITH_PORTS and offset:
            ports = self._ports.get(key, ports)
            self.orphans += ports[0] == NO_PORT
        elif protocol in WITH_PORTS:
            ports = (_u16(raw, at), _u16(raw, at + 2))
            flags = raw[at + 13] if protocol == TCP else 0
            if more:
                self._ports.pop(key, None)
                self._ports[key] = ports
                if len(self._ports) > SPLIT:
                    self._ports.popitem(last=False)
        return Packet(protocol, ends[0], ports[0], ends[1], ports[1], size, flags)


def _u16(raw: bytes, at: int) -> int:
    return raw[at] << 8 | raw[at + 1]


def _size(said: int, there: int) -> int:
    """The packet's bytes: as it says, or as many as there are where it says none (a network card's doing) or lies."""
    return min(said, there) if said else there


@dataclass(slots=True)
class Flow:
    """What was counted of a flow. Lists have two numbers: from the source on, and back."""

    first: Packet
    start: int
    last: int
    packets: list[int] = field(default_factory=lambda: [0, 0])
    bytes: list[int] = field(default_factory=lambda: [0, 0])
    flags: int = 0
    gap_mean: float = 0.0
    _spread: float = 0.0  # sum of the gaps' squared distances from their mean, as by Welford, Technometrics 4 (1962)
    _finished: int = 0  # bit 0: FIN from the source, bit 1: from the other end
    ended: str = ""  # how: fin, rst, idle, active, full, file

    @property
    def duration_s(self) -> float:
        return (self.last - self.start) / SECOND

    @property
    def gap_std(self) -> float:
        """Standard deviation of the times between packets, seconds; NaN, as is their mean, with one packet."""
        gaps = sum(self.packets) - 1
        return math.sqrt(self._spread / gaps) if gaps else math.nan

    def count(self, time: int, packet: Packet) -> None:
        back = (packet.source, packet.source_port) != (self.first.source, self.first.source_port)
        gaps = sum(self.packets)
        if gaps:
            gap = max(0, time - self.last) / SECOND
            away = gap - self.gap_mean
            self.gap_mean += away / gaps
            self._spread += away * (gap - self.gap_mean)
        self.start, self.last = min(self.start, time), max(self.last, time)
        self.packets[back] += 1
        self.bytes[back] += packet.size
        self.flags |= packet.flags
        if packet.protocol == TCP:
            self._finished |= (1 << back) if packet.flags & FIN else 0
            if packet.flags & RST:
                self.ended = "rst"
            elif self._finished == 3 and not self.ended:
                self.ended = "fin"

    def over(self, time: int, packet: Packet) -> str:
        """Why this packet, of the same ends, is of another flow; nothing if it is not."""
        if time - self.last > IDLE_S * SECOND:
            return self.ended or "idle"
        if self.ended and packet.flags & (SYN | ACK) == SYN:
            return self.ended
        return "active" if time - self.start > ACTIVE_S * SECOND else ""


class Flows:
    """Flows that are open: `add` packets in the order of their times, and take those that end.

    >>> flows, one = Flows(), Packet(17, bytes(4), 53, bytes(3) + b"1", 4000, 60, 0)
    >>> list(flows.add(0, one)), [flow.ended for flow in flows.add(300 * SECOND, one)]
    ([], ['idle'])
    """

    def __init__(self, most: int = OPEN) -> None:
        self.most = most
        # The one that was silent for longest first; in a plain dict, finding the first would slow down with each taken.
        self._open: OrderedDict[object, Flow] = OrderedDict()

    def add(self, time: int, packet: Packet) -> Iterator[Flow]:
        """Counts a packet at `time` in nanoseconds; the flows that are over by then, or by that."""
        while self._open and time - next(iter(self._open.values())).last > IDLE_S * SECOND:
            yield self._oldest("idle")
        ends = (packet.source, packet.source_port), (packet.destination, packet.destination_port)
        key = (packet.protocol, min(ends), max(ends))
        flow = self._open.pop(key, None)
        if flow is not None and (why := flow.over(time, packet)):
            flow.ended = why
            yield flow
            flow = None
        if flow is None:
            if len(self._open) >= self.most:
                yield self._oldest("full")
            flow = Flow(packet, time, time)
        flow.count(time, packet)
        self._open[key] = flow

    def rest(self) -> Iterator[Flow]:
        """Those that are open at the end."""
        while self._open:
            yield self._oldest("file")

    def _oldest(self, why: str) -> Flow:
        _, flow = self._open.popitem(last=False)
        flow.ended = flow.ended or why
        return flow


def address(raw: bytes) -> str:
    return str(ipaddress.ip_address(raw))
