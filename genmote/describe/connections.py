"""Drawn connections of a network, twenty to a window, of the kinds that the layout `flows` reads: normal traffic and
four kinds of attack. No data set of such connections may be learnt from by those who ship a model; so these follow what
is published of how each kind looks: Lee and Stolfo, "A framework for constructing features and models for intrusion
detection systems", ACM TISSEC 3 (2000) 227-261; Kendall, "A database of computer attacks for the evaluation of
intrusion detection systems", MIT 1999. Their ranges were written by somebody who had seen quantiles of NSL-KDD's test
part, so what a model that learnt from them is measured at there is not blind to it.

A window is of one way of each kind: a flood of half-open connections, one of echo requests, a scan of many services, a
sweep over hosts, guessing of passwords, a transfer by a guest, a shell that was broken out of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from genmote.describe.labelled import Labelled
from genmote.describe.layouts.flows import CLASSES, FIELDS, ROWS
from genmote.signals.kinds import Field, Records

Draw = np.random.Generator
Row = tuple[Any, ...]  # a cell for each of FIELDS
MIXED = 0.1  # of the rows of an attack are of normal traffic
USUAL = (("tcp", "http", 0.6), ("udp", "domain_u", 0.15), ("tcp", "smtp", 0.12), ("tcp", "ftp_data", 0.05),
         ("tcp", "private", 0.03), ("tcp", "telnet", 0.02), ("icmp", "eco_i", 0.03))  # fmt: skip
MANY = ("private", "other", "telnet", "ftp", "finger", "pop_3", "imap4", "ssh", "domain", "http", "smtp", "gopher",
        "netbios_ns", "sunrpc", "whois", "time", "daytime", "link", "bgp", "ldap")  # fmt: skip


def windows(seed: int, count: int) -> Iterator[Labelled]:
    """Windows of each kind in turn, `count` in all; the same for the same seed."""
    random = np.random.default_rng([seed, 8])
    fields = tuple(Field(name, type_, unit) for _, name, type_, unit in FIELDS)
    for n in range(count):
        kind = CLASSES[n % len(CLASSES)]
        rows = list(_rows(random, kind))
        columns = tuple(
            np.array([row[m] for row in rows], object if field.type == "category" else np.float64)
            for m, field in enumerate(fields)
        )
        yield Labelled(Records("connections", fields, columns), f"drawn {n}", "kind of traffic", (kind,), CLASSES)


def _rows(random: Draw, kind: str) -> Iterator[Row]:
    makers = {
        "normal traffic": (_normal,),
        "denial of service": (_half_open, _refused, _echoes, _long),
        "probing": (_ports, _hosts, _pings),
        "remote access": (_guesses, _guest, _mails),
        "privilege escalation": (_shell,),
    }[kind]
    make = makers[int(random.integers(len(makers)))]
    settled = random.random(4)  # what is the same all through a window
    for n in range(ROWS):
        yield _normal(random, n, settled) if random.random() < MIXED else make(random, n, settled)


def _size(random: Draw, middle: float, wide: float = 0.8) -> float:
    return float(np.round(random.lognormal(np.log(middle), wide)))


def _normal(random: Draw, n: int, settled: Any) -> Row:
    protocol, service, _ = USUAL[int(random.choice(len(USUAL), p=[share for *_, share in USUAL]))]
    long = service in ("telnet", "ftp_data") and random.random() < 0.5
    flag = str(random.choice(("SF", "REJ", "RSTO", "S1"), p=(0.96, 0.02, 0.01, 0.01)))
    sent = {"http": 230.0, "smtp": 900.0, "domain_u": 44.0, "eco_i": 20.0}.get(service, 150.0)
    got = {"http": 2500.0, "smtp": 330.0, "domain_u": 80.0, "eco_i": 0.0}.get(service, 600.0)
    busy = int(random.integers(1, 20))
    return (protocol, service, flag, _size(random, 20) if long else float(random.choice((0, 0, 0, 1, 2))),
            _size(random, sent, 0.5), _size(random, got, 1.0) if got else 0.0, 0.0, float(busy),
            float(busy + random.integers(0, 12)), 0.0, float(flag == "REJ"), 1.0)  # fmt: skip


def _half_open(random: Draw, n: int, settled: Any) -> Row:
    """A flood of connections that are begun and never answered."""
    service = str(MANY[int(settled[0] * len(MANY))])
    count = float(random.integers(90, 300))
    own = float(random.integers(1, 26))
    return "tcp", service, "S0", 0.0, 0.0, 0.0, 0.0, count, own, 1.0, 0.0, round(own / count, 2)


def _refused(random: Draw, n: int, settled: Any) -> Row:
    """A flood that the host turns away."""
    service = str(MANY[int(settled[0] * len(MANY))])
    count = float(random.integers(90, 300))
    own = float(random.integers(1, 26))
    return "tcp", service, "REJ", 0.0, 0.0, 0.0, 0.0, count, own, 0.0, 1.0, round(own / count, 2)


def _echoes(random: Draw, n: int, settled: Any) -> Row:
    """Echo requests without end, or pieces of packets that overlap."""
    if settled[0] < 0.75:
        count = float(random.integers(200, 511))
        size = 1032.0 if settled[1] < 0.6 else 520.0
        return "icmp", "ecr_i", "SF", 0.0, size, 0.0, 0.0, count, count, 0.0, 0.0, 1.0
    count = float(random.integers(20, 200))
    return "udp", "private", "SF", 0.0, 28.0, 0.0, 0.0, count, count, 0.0, 0.0, 1.0


def _long(random: Draw, n: int, settled: Any) -> Row:
    """Requests of a server that are made to be costly: large, slow, or of many connections held open."""
    service = str(("http", "smtp", "telnet")[int(settled[0] * 3)])
    flag = str(random.choice(("RSTR", "SF", "S3"), p=(0.6, 0.25, 0.15)))
    count = float(random.integers(1, 12))
    slow = _size(random, 900, 0.6) if settled[1] < 0.5 else 0.0
    return ("tcp", service, flag, slow, _size(random, 50_000, 0.3), _size(random, 8000, 0.4), 0.0, count, count + 1.0,
            round(0.3 * random.random(), 2), round(0.5 * random.random(), 2), 1.0)  # fmt: skip


def _ports(random: Draw, n: int, settled: Any) -> Row:
    """One host is asked for every service."""
    flag = str(random.choice(("REJ", "S0", "RSTO", "SH"), p=(0.6, 0.2, 0.15, 0.05)))
    count = float(random.integers(1, 511)) if settled[0] < 0.6 else float(random.integers(1, 5))
    rejected = round(float(random.uniform(0.6, 1.0)), 2)
    return ("tcp", str(random.choice(MANY)), flag, 0.0, 0.0, 0.0, 0.0, count, float(random.integers(1, 4)),
            round(1 - rejected, 2), rejected, round(min(1.0, 2.0 / count), 2))  # fmt: skip


def _hosts(random: Draw, n: int, settled: Any) -> Row:
    """Many hosts are asked for one service."""
    service = str(MANY[int(settled[0] * len(MANY))])
    flag = str(random.choice(("REJ", "RSTO", "SF"), p=(0.6, 0.2, 0.2)))
    return ("tcp", service, flag, float(random.choice((0, 0, 1))), 0.0, 0.0, 0.0, 1.0, float(random.integers(2, 40)),
            0.0, float(flag == "REJ"), 1.0)  # fmt: skip


def _pings(random: Draw, n: int, settled: Any) -> Row:
    """Single echo requests to host after host."""
    size = 8.0 if settled[0] < 0.7 else 18.0
    return "icmp", "eco_i", "SF", 0.0, size, 0.0, 0.0, 1.0, float(random.integers(1, 60)), 0.0, 0.0, 1.0


def _guesses(random: Draw, n: int, settled: Any) -> Row:
    """Passwords are tried, one after the other."""
    service = str(("telnet", "ftp", "pop_3", "imap4")[int(settled[0] * 4)])
    failed = float(random.integers(1, 6)) if service in ("telnet", "ftp") else float(random.integers(0, 2))
    sent, got = (30.0, 95.0) if service == "pop_3" else (110.0, 180.0)
    return ("tcp", service, str(random.choice(("SF", "RSTO"), p=(0.9, 0.1))), float(random.integers(0, 6)),
            _size(random, sent, 0.3), _size(random, got, 0.3), failed, float(random.integers(1, 4)),
            float(random.integers(1, 4)), 0.0, 0.0, 1.0)  # fmt: skip


def _guest(random: Draw, n: int, settled: Any) -> Row:
    """A guest of a file server takes, or leaves, what is not his."""
    service = "ftp" if n % 2 else "ftp_data"
    long = float(random.integers(20, 600)) if service == "ftp" else float(random.integers(0, 20))
    leaves = settled[0] < 0.5
    sent = _size(random, 200_000 if leaves and service == "ftp_data" else 280, 0.7)
    got = _size(random, 200_000, 0.7) if not leaves and service == "ftp_data" else _size(random, 900, 0.5)
    return "tcp", service, "SF", long, sent, got, 0.0, float(random.integers(1, 3)), 1.0, 0.0, 0.0, 1.0


def _mails(random: Draw, n: int, settled: Any) -> Row:
    """Small questions to a management agent or a mail server, by one who should not ask."""
    if settled[0] < 0.5:
        count = float(random.integers(1, 4))
        return (
            "udp",
            "private",
            "SF",
            0.0,
            _size(random, 105, 0.1),
            _size(random, 146, 0.1),
            0.0,
            count,
            count,
            0.0,
            0.0,
            1.0,
        )
    return ("tcp", "smtp", "SF", float(random.integers(5, 300)), _size(random, 1500, 0.8), _size(random, 420, 0.3), 0.0,
            1.0, 1.0, 0.0, 0.0, 1.0)  # fmt: skip


def _shell(random: Draw, n: int, settled: Any) -> Row:
    """A long session of a user who becomes the administrator."""
    service = str(random.choice(("telnet", "ftp", "ftp_data"), p=(0.7, 0.15, 0.15)))
    return ("tcp", service, "SF", float(random.integers(20, 400)), _size(random, 1200, 0.9), _size(random, 6000, 1.0),
            float(random.random() < 0.05), float(random.integers(1, 3)), 1.0, 0.0, 0.0, 1.0)  # fmt: skip
