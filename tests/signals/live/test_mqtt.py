"""Over a real broker, and over what only looks like one."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genmote import gate
from genmote.errors import UserError
from genmote.signals.live import mqtt
from genmote.signals.live.mqtt import Address, Login, Message, Subscription, address
from genmote.signals.live.watching import Watch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "PAUSES_S", (0.1, 0.8))


def listen(url: str, **options: Any) -> Subscription:
    return Subscription(address(url), **options)


def until(source: Subscription, condition: Callable[[], bool], lines: list[str], seconds: float = 20) -> list[Message]:
    """What came until `condition` held; `lines` get the news."""
    found: list[Message] = []
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, (lines, len(found), source.counts)
        found += source.take(0.1)
        lines += source.news()
    return found


def ready(source: Subscription) -> list[str]:
    lines: list[str] = []
    until(source, lambda: source.counts.connections > 0, lines)
    return lines + source.news()


def test_messages_of_topics(broker: Any) -> None:
    with listen(broker.url("home/+/temp")) as source:
        assert ready(source) == [f"127.0.0.1:{broker.port}: listening to home/+/temp"]
        sent = [("home/a/temp", b"1"), ("home/a/hum", b"2"), ("home/b/temp", b"3"), ("home/b/c/temp", b"4")]
        started = time.time()
        broker.publish(iter([*sent, ("home/ü/temp", bytes(range(256)) * 4000)]))
        found = until(source, lambda: source.counts.received >= 3, [])
        found += source.take(0.1)
    assert [(m.topic, m.payload) for m in found] == [
        ("home/a/temp", b"1"),
        ("home/b/temp", b"3"),
        ("home/ü/temp", bytes(range(256)) * 4000),
    ]
    assert all(started - 1 < m.arrived_s < time.time() + 1 for m in found)
    with listen(broker.url("#")) as source:
        ready(source)
        broker.publish(iter(sent))
        found = until(source, lambda: source.counts.received >= 4, []) + source.take(0.1)
    assert [m.topic for m in found] == [topic for topic, _ in sent]


def test_retained_messages_are_of_before(broker: Any) -> None:
    broker.publish(iter([("a", b"old")]), retain=True)
    with listen(broker.url("a")) as source:
        ready(source)
        broker.publish(iter([("a", b"new")]))
        found = until(source, lambda: source.counts.received > 0, []) + source.take(0.1)
    assert [m.payload for m in found] == [b"new"] and source.counts.retained == 1


def test_a_broker_that_restarts_loses_nothing(broker: Any) -> None:
    lines: list[str] = []
    with listen(broker.url("a/#")) as source:
        ready(source)
        broker.publish((f"a/{n % 3}", b"%d" % n) for n in range(100))
        found = until(source, lambda: source.counts.received >= 100, lines)
        broker.stop()
        found += until(source, lambda: len([line for line in lines if "trying again" in line]) >= 3, lines)
        broker.start()
        broker.publish((f"a/{n % 3}", b"%d" % n) for n in range(100, 150))  # mostly before we are back
        found += until(source, lambda: source.counts.connections == 2, lines)
        broker.publish((f"a/{n % 3}", b"%d" % n) for n in range(150, 200))
        end = time.monotonic() + 20
        while {int(m.payload) for m in found} < set(range(200)) and time.monotonic() < end:
            found += source.take(0.1)
            lines += source.news()
    # At least once: what was on its way when the broker went may come twice.
    assert list(dict.fromkeys(int(m.payload) for m in found)) == list(range(200))
    where = f"127.0.0.1:{broker.port}"
    assert any(f"{where}: connection lost (The connection was lost), trying again in 0." in line for line in lines), (
        lines
    )
    assert any(f"{where}: no connection (Connection refused), trying again in" in line for line in lines), lines
    pauses = [float(line.rpartition(" in ")[2][:-2]) for line in lines if "trying again" in line]
    assert pauses[2] > pauses[0] and max(pauses) <= 1.0
    assert lines[-1] == f"{where}: listening again to a/#"


def test_a_connection_that_goes_silent_is_given_up(broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between us and the broker a link that takes everything and says nothing, as behind a router that forgot."""
    monkeypatch.setattr(mqtt, "KEEPALIVE_S", 1)
    with forwarding(broker.port) as (port, silent):
        lines: list[str] = []
        with listen(f"mqtt://127.0.0.1:{port}/a") as source:
            ready(source)
            silent.set()
            until(source, lambda: any("connection lost" in line for line in lines), lines)
            silent.clear()
            until(source, lambda: source.counts.connections == 2, lines)


@contextlib.contextmanager
def forwarding(to: int) -> Iterator[tuple[int, threading.Event]]:
    silent, over = threading.Event(), threading.Event()
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.05)
    links: list[socket.socket] = []

    def pump(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                if not silent.is_set():
                    other.sendall(data)
            other.close()

    def accept() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                ours, theirs = server.accept()[0], socket.create_connection(("127.0.0.1", to))
                links.extend((ours, theirs))
                for pair in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield server.getsockname()[1], silent
    finally:
        over.set()
        thread.join()
        for link in (*links, server):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()


def test_the_oldest_are_dropped_and_counted(broker: Any) -> None:
    with listen(broker.url("a"), most=100) as source:
        ready(source)
        broker.publish(("a", b"%d" % n) for n in range(1000))
        end = time.monotonic() + 20
        while source.counts.received < 1000 and time.monotonic() < end:
            time.sleep(0.01)
        found = source.take(1)
    assert [int(m.payload) for m in found] == list(range(900, 1000))
    assert (source.counts.received, source.counts.dropped) == (1000, 900)


def test_bytes_that_wait_have_an_end(broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "QUEUE_BYTES", 1 << 20)
    with listen(broker.url("a")) as source:
        ready(source)
        broker.publish(("a", bytes(100_000)) for n in range(50))
        end = time.monotonic() + 20
        while source.counts.received < 50 and time.monotonic() < end:
            time.sleep(0.01)
        assert len(source.take(1)) == 10 and source.counts.dropped == 40


def test_too_large_a_message_is_left_out_by_the_broker(broker: Any) -> None:
    with listen(broker.url("a")) as source:
        ready(source)
        broker.publish(iter([("a", bytes(mqtt.PACKET + 1)), ("a", b"1")]))
        found = until(source, lambda: source.counts.received > 0, []) + source.take(0.1)
    assert [m.payload for m in found] == [b"1"] and source.counts.connections == 1


FLOOD = """
import sys, time
from genmote.signals.live.mqtt import Subscription, address
def rss(): return int(open("/proc/self/statm").read().split()[1]) * 4096
taken = 0
with Subscription(address(sys.argv[1]), most=2000) as source:
    while not source.counts.connections: source.take(0.1); source.news()
    print("ready", flush=True)
    peak = first = 0
    while source.counts.received < int(sys.argv[2]):
        taken += len(source.take(0.1, most=20)); time.sleep(0.01)
        if source.counts.received > 5000:
            first = first or rss(); peak = max(peak, rss())
    while found := source.take(0.2): taken += len(found)
    print(taken, source.counts.received, source.counts.dropped, first, peak, flush=True)
"""


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_flood_leaves_memory_flat_and_the_counts_right(count: int, broker: Any) -> None:
    words = [sys.executable, "-c", FLOOD, broker.url("a/+"), str(count)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as slow:
        try:
            assert slow.stdout is not None and slow.stdout.readline() == "ready\n"
            broker.publish((f"a/{n % 7}", b'{"n": %d, "v": [1.5, 2.5, 3.5]}' % n) for n in range(count))
            taken, received, dropped, first, peak = map(int, slow.communicate(timeout=120)[0].split())
        finally:
            slow.kill()
    assert received == count and taken + dropped == count and dropped > count / 10
    assert peak - first < 8e6, (first, peak)


@pytest.mark.parametrize("known", [False, True])
def test_passwords(known: bool, make_broker: Any, tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("me:secret\n")
    if subprocess.run(["mosquitto_passwd", "-U", tmp_path / "passwords"], check=False).returncode:
        pytest.skip("mosquitto_passwd does not work here")
    (tmp_path / "passwords").chmod(0o644)
    broker = make_broker(f"allow_anonymous false\npassword_file {tmp_path}/passwords\n")
    login = Login("me", "secret" if known else "wrong")
    assert "secret" not in repr(login)
    with listen(broker.url("a"), login=login) as source:
        if known:
            assert "listening to a" in ready(source)[0]
            return
        with pytest.raises(UserError, match=r"the broker refuses \(Not authorized\): user me, set GENMOTE_MQTT_USER"):
            until(source, lambda: False, [])
    with (
        listen(broker.url("a")) as source,
        pytest.raises(UserError, match=r"user \(none\), set GENMOTE_MQTT_USER and GENMOTE_MQTT_PASSWORD"),
    ):
        until(source, lambda: False, [])


def test_a_topic_that_the_broker_does_not_give(make_broker: Any, tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic read open/#\n")
    (tmp_path / "acl").chmod(0o644)
    broker = make_broker(f"allow_anonymous true\nacl_file {tmp_path}/acl\n")
    with listen(broker.url("open/a")) as source:
        ready(source)
    # Such a broker takes the subscription and gives nothing; one that says no is played by hand below.
    fake = [b"\x20\x03\0\0\0", b"\x90\x04\0\1\0\x87"]
    with (
        answering(fake) as port,
        listen(f"mqtt://127.0.0.1:{port}/shut") as source,
        pytest.raises(UserError, match=rf"127.0.0.1:{port}: the broker gives no shut \(Not authorized\)"),
    ):
        until(source, lambda: False, [])


@contextlib.contextmanager
def answering(answers: list[bytes], then_close: bool = False) -> Iterator[int]:
    """A server that gives each connection these bytes, one for each thing that it is sent."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.05)
    over = threading.Event()

    def serve() -> None:
        links = []
        while not over.is_set():
            with contextlib.suppress(OSError):
                link = server.accept()[0]
                links.append(link)
                link.settimeout(5)
                for answer in answers:
                    link.recv(4096)
                    link.sendall(answer)
                if then_close:
                    link.close()
        for link in links:
            link.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        over.set()
        thread.join()
        server.close()


def test_a_broker_of_the_older_protocol(make_broker: Any) -> None:
    """It says that it does not know MQTT 5, and is asked by 3.1.1."""
    seen: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for answer in (b"\x20\x02\0\1", b"\x20\x02\0\0"):
            link, _ = server.accept()
            with link:
                seen.append(link.recv(4096))
                link.sendall(answer)
                if answer[-1] == 0:
                    seen.append(link.recv(4096))
                    link.sendall(b"\x90\x03" + seen[-1][2:4] + b"\1" + b"\x30\x04\0\1a7")
                    link.recv(4096)

    thread = threading.Thread(target=serve)
    thread.start()
    with listen(f"mqtt://127.0.0.1:{server.getsockname()[1]}/a") as source:
        found = until(source, lambda: source.counts.received > 0, []) + source.take(0.1)
    thread.join()
    server.close()
    assert [m.payload for m in found] == [b"7"]
    assert [packet[8] for packet in seen[:2]] == [5, 4]  # the protocol's number


def test_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lines: list[str] = []
    with (
        listen(f"mqtt://127.0.0.1:{port}/a", tries=3) as source,
        pytest.raises(UserError, match=rf"127.0.0.1:{port}: no broker answers \(Connection refused\), tried 3 times"),
    ):
        until(source, lambda: False, lines)
    assert len(lines) == 2 and all("no connection (Connection refused), trying again in 0." in line for line in lines)


@pytest.mark.parametrize("host", ["nowhere.invalid", "x" * 64 + ".invalid", "a..b"])
def test_a_host_that_is_none(host: str) -> None:
    with (
        listen(f"mqtt://{host}/a", tries=1) as source,
        pytest.raises(UserError, match=rf"{host}:1883: no broker answers \(.+\), tried 1 times: look whether"),
    ):
        until(source, lambda: False, [])


@pytest.mark.parametrize(
    ("answers", "close", "why"),
    [
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], True, r"\(.+\)"),
        ([b"\x20\xff\xff\xff\xff\xff"], False, r"\(.*rotocol.*\)"),
        ([b"\x20\x03\0\x88\0"], False, r"\(Server unavailable\)"),
        ([b"\x20\0"], False, r"\(.+\)"),
        ([], True, r"\(.+\)"),
        ([], False, r"\(it takes the connection, but gives no answer in 1 s\)"),
    ],
)
def test_what_is_no_broker(answers: list[bytes], close: bool, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "ANSWER_S", 1.0)
    with (
        answering(answers, close) as port,
        listen(f"mqtt://127.0.0.1:{port}/a", tries=1) as source,
        pytest.raises(UserError, match="no broker answers " + why),
    ):
        until(source, lambda: False, [])


@pytest.mark.parametrize("damage", [b"\x30\x01a", b"\x30\x03\0\x09a", b"\x30\x00", b"\x90\x01\0", b"\x32\x03\0\1a"])
def test_damage_after_the_connection(damage: bytes) -> None:
    """Packets that are none end the connection, which is told, and nothing else."""
    answers = [b"\x20\x03\0\0\0", b"\x90\x04\0\1\0\1" + damage]
    lines: list[str] = []
    with answering(answers) as port, listen(f"mqtt://127.0.0.1:{port}/a") as source:
        until(source, lambda: any("connection lost (" in line for line in lines), lines)
    assert "listening to a" in lines[0]


def test_the_gate_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENMOTE_OFFLINE", "1")
    with pytest.raises(UserError, match="watch wants to reach example.org, but GENMOTE_OFFLINE is set"):
        listen("mqtt://example.org/a")
    monkeypatch.delenv("GENMOTE_OFFLINE")
    asked = []

    def shut(host: str, port: int, **told: Any) -> socket.socket:
        asked.append((host, port, told["purpose"]))
        raise UserError("shut")

    monkeypatch.setattr(gate, "open_socket", shut)
    with listen("mqtt://127.0.0.1:9/a") as source, pytest.raises(UserError, match="^shut$"):
        until(source, lambda: False, [])
    assert asked == [("127.0.0.1", 9, "watch")]


def test_a_password_stays_here_without_tls() -> None:
    login = Login("me", "secret")
    with pytest.raises(UserError, match=r"the password would go to example.org for all .*: use mqtts://, or --plain-p"):
        listen("mqtt://example.org/a", login=login)
    listen("mqtt://127.0.0.1/a", login=login)
    listen("mqtts://example.org/a", login=login)
    listen("mqtt://example.org/a", login=Login("me", "secret", plain=True))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(UserError, match=r"needs paho-mqtt 2, which is absent here: pip install 'genmote\[mqtt\]'"):
        listen("mqtt://127.0.0.1/a")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://a/b", "is no address of a broker: wanted mqtt://HOST"),
        ("mqtt:///b", "is no address of a broker"),
        ("mqtt://a:0/b", "is no address of a broker"),
        ("mqtt://a:99999/b", "is no address of a broker"),
        ("mqtt://[::1]x/b", "is no address of a broker"),
        ("mqtt://a", "has no topic: wanted one behind the host, such as mqtt://a/home/#"),
        ("mqtt://a/", "has no topic"),
        ("mqtt://a/b\0", "has no topic"),
        ("mqtt://a/#/b", "topic '#/b': # stands for all that is below, and so alone at the end"),
        ("mqtt://a/b#", "# stands for all that is below"),
        ("mqtt://a/b+/c", r"topic 'b\+/c': \+ stands for one level, alone between two /"),
        ("mqtt://me:secret@a/b", "a password in an address can be seen by all .* GENMOTE_MQTT_PASSWORD"),
    ],
)
def test_addresses_that_are_none(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        address(url)
    assert "secret" not in str(caught.value)


def test_addresses() -> None:
    assert address("MQTT://h/a/b?c#".replace("#", "/#")) == Address("h", 1883, "a/b?c/#")
    assert address("mqtts://u@h:1/ /x") == Address("h", 1, " /x", True, "u")


def test_many_topics_have_an_end(broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genmote.signals.live.watching.TOPICS", 3)
    with listen(broker.url("#")) as source:
        watch = Watch(source)
        ready(source)
        broker.publish((f"t{n % 5}", b"%d" % n) for n in range(50))
        found: list[Any] = []
        end = time.monotonic() + 20
        while source.counts.received < 50 and time.monotonic() < end:
            found += watch.step(0.1)
    found += watch.rest()
    assert {topic for topic, _ in found} == {"t0", "t1", "t2"}
    assert sum(len(piece) for _, piece in found) == 30
    assert watch.tally.found["{n} messages of more topics than 3 are left out"][0] == 20


def test_damaged_messages_are_counted(broker: Any) -> None:
    with listen(broker.url("a")) as source:
        watch = Watch(source)
        ready(source)
        good = [b'{"v": %d}' % n for n in range(100)]
        bad = [b"", b"\xff\xff", b'{"v": ', b"none", b"[" * 5000, b"{}", b"1" * 300_000]
        mixed = itertools.chain.from_iterable(itertools.zip_longest(good, bad))
        broker.publish(("a", payload) for payload in mixed if payload is not None)
        found: list[Any] = []
        end = time.monotonic() + 20
        while source.counts.received < len(good) + len(bad) and time.monotonic() < end:
            found += watch.step(0.1)
    found += watch.rest()
    assert [v for _, piece in found for v in piece.values[:, 0]] == list(range(100))
    assert watch.damaged == len(bad)
