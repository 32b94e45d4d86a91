"""What a broker sends: a subscription that outlives the connection, read into a queue that has an end.

A thread reads; whoever takes may be slow. What the queue has no room for is dropped, the oldest first, and counted: a
broker that is made to wait (by not acknowledging) drops too, but tells nobody. The subscription is of QoS 1, and a
broker of MQTT 5 keeps the session for `SESSION_S` after a connection is lost: what is published meanwhile, with QoS 1,
comes after all, some of it perhaps twice. A lost connection is made again, after pauses that grow.

OASIS, MQTT Version 5.0 (2019) and MQTT Version 3.1.1 (2014).
"""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from genmote import gate
from genmote.errors import UserError

if TYPE_CHECKING:
    import ssl

QUEUE, QUEUE_BYTES = 10_000, 16 << 20  # messages that wait, and their bytes
PACKET = 1 << 20  # bytes of a message that a broker of MQTT 5 is asked to leave out
SESSION_S = 300
KEEPALIVE_S, ANSWER_S, POLL_S, LEAVE_S = 30, 10.0, 0.2, 2.0
PAUSES_S = (1.0, 60.0)  # the first, and the longest
TRIES = 5  # before the first connection
AT_ONCE = 1000  # packets that are read before the connection is looked after
REFUSED = ("Not authorized", "Bad user name or password", "Banned", "Bad authentication method")
OLD = "Unsupported protocol version"


@dataclass(frozen=True)
class Address:
    """Where a broker is, and the topic there, in which + and # stand for others."""

    host: str
    port: int
    topic: str
    tls: bool = False
    user: str | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def address(url: str) -> Address:
    """UserError for what is none.

    >>> address("mqtt://broker.local/home/+/temperature")
    Address(host='broker.local', port=1883, topic='home/+/temperature', tls=False, user=None)
    >>> address("mqtts://me@[::1]:8884/#")
    Address(host='::1', port=8884, topic='#', tls=True, user='me')
    """
    scheme, _, rest = url.partition("://")
    where, _, topic = rest.partition("/")
    login, _, where = where.rpartition("@")
    user, colon, _ = login.partition(":")
    if colon:
        raise UserError(
            "a password in an address can be seen by all who use this machine: set GENMOTE_MQTT_PASSWORD, or name a "
            "file with --password-file"
        )
    host, port = where, ""
    if where.startswith("["):
        host, _, port = where[1:].partition("]")
        port = port[1:] if port.startswith(":") else port and "?"
    elif ":" in where:
        host, _, port = where.rpartition(":")
    usual = {"mqtt": 1883, "mqtts": 8883}.get(scheme.lower())
    if usual is None or not host or (port and not (port.isdecimal() and 0 < int(port) < 1 << 16)):
        raise UserError(f"{url!r} is no address of a broker: wanted mqtt://HOST[:PORT]/TOPIC, or mqtts:// for TLS")
    levels = topic.split("/")
    if not topic or "\0" in topic or len(topic.encode(errors="replace")) >= 1 << 16:
        raise UserError(f"{url!r} has no topic: wanted one behind the host, such as {scheme}://{where}/home/#")
    if any(("#" in level and (level != "#" or n < len(levels) - 1)) for n, level in enumerate(levels)):
        raise UserError(f"topic {topic!r}: # stands for all that is below, and so alone at the end: home/#")
    if any("+" in level and level != "+" for level in levels):
        raise UserError(f"topic {topic!r}: + stands for one level, alone between two /: home/+/temperature")
    return Address(host, int(port or usual), topic, scheme.lower() == "mqtts", user or None)


@dataclass(frozen=True)
class Message:
    """`arrived_s`: in seconds since 1970."""

    arrived_s: float
    topic: str
    payload: bytes


@dataclass
class Counts:
    """`received` of which `dropped` for want of room; besides, `retained` from before the watch, which are left out."""

    received: int = 0
    dropped: int = 0
    retained: int = 0
    unnamed: int = 0  # of a topic that is not UTF-8
    connections: int = 0


@dataclass
class Login:
    """What a broker is told; `plain`: also without TLS, off this machine."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    plain: bool = False


class Subscription:
    """Messages of a topic, from `with` to its end. `context`: TLS, for an address that asks for it; `tries`: to connect
    for the first time, 0 for ever. UserError for what the gate shuts, and from `take` where no broker answers or one
    refuses."""

    def __init__(
        self,
        where: Address,
        login: Login | None = None,
        *,
        context: ssl.SSLContext | None = None,
        tries: int = TRIES,
        most: int = QUEUE,
    ) -> None:
        self.where, self.login, self.tries, self.most = where, login or Login(), tries, most
        self.counts = Counts()
        self._context = context
        self._waiting: deque[Message] = deque()
        self._bytes = 0
        self._news: deque[str] = deque(maxlen=100)
        self._change = threading.Condition()
        self._fault: Exception | None = None
        self._stop = threading.Event()
        self._refusal, self._why, self._listens = "", "", False
        _library()
        gate.permit("watch", where.host, "a subscription")
        safe = where.tls or gate.is_loopback(where.host) or self.login.plain
        if self.login.password is not None and not safe:
            raise UserError(
                f"the password would go to {where.host} for all on the way to read: use mqtts://, or --plain-password"
            )
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(LEAVE_S)

    def take(self, timeout_s: float, most: int = AT_ONCE) -> list[Message]:
        """Messages that wait, at least one unless `timeout_s` goes by first or there is news."""
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._fault or self._news, timeout_s)
            if not self._waiting and self._fault is not None:
                fault, self._fault = self._fault, None
                raise fault
            taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
            self._bytes -= sum(map(_size, taken))
            return taken

    def news(self) -> list[str]:
        """What happened to the connection since this was asked last, a line each."""
        with self._change:
            told = list(self._news)
            self._news.clear()
            return told

    # -- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._keep()
        except Exception as fault:  # told to whoever takes
            with self._change:
                self._fault = fault
                self._change.notify_all()

    def _keep(self) -> None:
        """Connect, and again, until the end."""
        modern, failed, pause = True, 0, PAUSES_S[0]
        client = self._client(modern)
        while not self._stop.is_set():
            why = self._connected(client)
            if self._stop.is_set():
                return
            if self._listens:
                failed, pause = 0, PAUSES_S[0]
            elif modern and self._refusal == OLD:
                modern = False
                client = self._client(modern)
                continue
            failed += 1
            first = not self.counts.connections
            if first and self._refusal in REFUSED:
                raise UserError(
                    f"{self.where}: the broker refuses ({self._refusal}): user {self.login.user or '(none)'}, set "
                    "GENMOTE_MQTT_USER and GENMOTE_MQTT_PASSWORD, or name --user and --password-file"
                )
            if first and failed == self.tries:
                raise UserError(
                    f"{self.where}: no broker answers ({why}), tried {failed} times: look whether it runs, or tell how "
                    "often to try with --tries (0: for ever)"
                )
            # Many devices lose one broker at the same time: let them not all come back at once.
            wait_s = pause * random.uniform(0.8, 1.2)
            what = "connection lost" if self._listens else "no connection"
            self._tell(f"{self.where}: {what} ({why}), trying again in {wait_s:.1f} s")
            self._stop.wait(wait_s)
            pause = min(2 * pause, PAUSES_S[1])

    def _connected(self, client: Any) -> str:
        """One connection, from its beginning to its end; gives the reason for that."""
        import ssl

        self._refusal, self._why, self._listens = "", "", False
        try:
            client.reconnect()
        except ssl.SSLCertVerificationError as fault:
            if self.counts.connections:
                return str(fault.verify_message)
            raise UserError(
                f"{self.where}: its certificate cannot be trusted ({fault.verify_message}): name the authority's with "
                "--ca, and the host as the certificate does"
            ) from None
        except (OSError, UnicodeError) as fault:  # the latter for a host that cannot be one
            return str(getattr(fault, "strerror", None) or fault)
        until = time.monotonic() + ANSWER_S
        while not self._stop.is_set():
            try:
                ended: int | str = self._look(client)
            except (ValueError, TypeError, LookupError, struct.error) as fault:  # what came is no MQTT
                ended = f"it does not speak MQTT ({type(fault).__name__})"
            if ended or self._refusal:
                return self._refusal or self._why or (ended if isinstance(ended, str) else _error(ended))
            if not self._listens and time.monotonic() > until:
                return f"it takes the connection, but gives no answer in {ANSWER_S:g} s"
        _leave(client)
        return ""

    def _look(self, client: Any) -> int:
        """Wait for a moment, read what is there, write what waits; above 0 where the connection has ended."""
        link = client.socket()
        unread = link.pending() if self.where.tls else 0
        asked = [link] if client.want_write() else []
        readable, writable, _ = select.select([link], asked, [], 0 if unread else POLL_S)
        ended = 0
        for _ in range(AT_ONCE if readable or unread else 0):  # without asking each time whether one is there
            before = self.counts.received
            ended = ended or client.loop_read()
            if ended or self.counts.received == before:
                break
        if writable:
            ended = ended or client.loop_write()
        return int(ended or client.loop_misc())

    def _client(self, modern: bool) -> Any:
        mqtt = _library()

        class Client(mqtt.Client):  # type: ignore[misc,name-defined]
            def _create_socket_connection(self) -> socket.socket:
                """A connection by the gate, instead of the library's own."""
                link = gate.open_socket(
                    self._host, self._port, purpose="watch", payload_kind="a subscription", timeout_s=ANSWER_S
                )
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a broker waits for acknowledgements
                return link

        client = Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=f"genmote-{os.urandom(6).hex()}",
            protocol=mqtt.MQTTv5 if modern else mqtt.MQTTv311,
        )
        if self.login.user:
            client.username_pw_set(self.login.user, self.login.password)
        if self.where.tls:
            client.tls_set_context(self._context)
        client.on_connect, client.on_subscribe = self._on_connect, self._on_subscribe
        client.on_disconnect, client.on_message = self._on_disconnect, self._on_message
        asked = {}
        if modern:
            asked["properties"] = told = mqtt.Properties(mqtt.PacketTypes.CONNECT)
            told.SessionExpiryInterval, told.MaximumPacketSize = SESSION_S, PACKET
            asked["clean_start"] = False  # nothing is there at first; some brokers keep no session that began clean
        client.connect_async(self.where.host, self.where.port, KEEPALIVE_S, **asked)
        return client

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._refusal = reason.getName()
        else:
            client.subscribe(self.where.topic, qos=1)

    def _on_subscribe(self, client: Any, data: Any, number: int, reasons: list[Any], properties: Any) -> None:
        if reasons[0].is_failure:
            self._refusal = f"{reasons[0].getName()}: topic {self.where.topic}"
            if not self.counts.connections:
                raise UserError(f"{self.where}: the broker gives no {self.where.topic} ({reasons[0].getName()})")
            return
        again = " again" if self.counts.connections else ""
        self.counts.connections += 1
        self._listens = True
        self._tell(f"{self.where}: listening{again} to {self.where.topic}")

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._why = "" if reason.getName() == "Unspecified error" else reason.getName()

    def _on_message(self, client: Any, data: Any, sent: Any) -> None:
        if sent.retain:
            self.counts.retained += 1
            return
        try:
            message = Message(time.time(), sent.topic, bytes(sent.payload))
        except UnicodeDecodeError:
            self.counts.unnamed += 1
            return
        with self._change:
            self.counts.received += 1
            self._waiting.append(message)
            self._bytes += _size(message)
            while len(self._waiting) > self.most or self._bytes > QUEUE_BYTES:
                self._bytes -= _size(self._waiting.popleft())
                self.counts.dropped += 1
            self._change.notify()

    def _tell(self, line: str) -> None:
        with self._change:
            self._news.append(line)
            self._change.notify()


def _size(message: Message) -> int:
    return len(message.payload) + len(message.topic) + 300  # what Python keeps besides


def _leave(client: Any) -> None:
    """Tell the broker that the session is over."""
    mqtt = _library()
    over = None
    if client.protocol == mqtt.MQTTv5:
        over = mqtt.Properties(mqtt.PacketTypes.DISCONNECT)
        over.SessionExpiryInterval = 0
    client.disconnect(properties=over)


def _error(number: int) -> str:
    return str(_library().error_string(number)).rstrip(".")


def _library() -> Any:
    try:
        import paho.mqtt.client
        from paho.mqtt.enums import CallbackAPIVersion  # noqa: F401  (absent before version 2)
    except ImportError:
        raise UserError(
            "listening to a broker needs paho-mqtt 2, which is absent here: pip install 'genmote[mqtt]'"
        ) from None
    return paho.mqtt.client
