"""The one door to the network: every socket that leaves the process is asked for here.

A purpose has a policy, "allowed" or "never". Loopback is always allowed; off loopback the default is never, and the
purposes that open it today are ``pull``, where the user has asked for a model by name, ``ray``, where the user has
named a cluster to compute on, and ``watch``, where the user has named the broker to listen to. ``GENMOTE_OFFLINE=1``
shuts them too.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, Self

from genmote.errors import UserError

if TYPE_CHECKING:  # imported where it is used: running a model that is here needs no 9 MB of TLS and mail parsing
    import socket
    import urllib.request
    from email.message import Message

POLICIES = {"pull": "allowed", "ray": "allowed", "watch": "allowed"}


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address) is this machine itself.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("example.org")
    (True, True, True, False)
    """
    if host.lower() == "localhost":
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def permit(purpose: str, peer: str, payload_kind: str) -> None:
    """Return when `purpose` may send `payload_kind` to the host `peer`; raise `UserError` when it may not."""
    if is_loopback(peer):
        return
    if os.environ.get("GENMOTE_OFFLINE", "") not in ("", "0"):
        raise UserError(f"{purpose} wants to reach {peer}, but GENMOTE_OFFLINE is set: unset it, or use a local file")
    if POLICIES.get(purpose, "never") != "allowed":
        raise UserError(
            f"{purpose} may not send {payload_kind} to {peer}: the network is shut for it off loopback, "
            f"use an address of this machine (open purposes: {', '.join(sorted(POLICIES))})"
        )


def open_socket(host: str, port: int, *, purpose: str, payload_kind: str, timeout_s: float = 10.0) -> socket.socket:
    """A TCP connection, after asking the gate. Raises `UserError` when shut, and `OSError` where nobody answers."""
    import socket

    permit(purpose, host, payload_kind)
    return socket.create_connection((host, port), timeout=timeout_s)


class Response:
    """An open HTTP answer: status, headers of this answer and of the redirects before it, and a body to read."""

    def __init__(self, raw: Any, hops: list[Message]) -> None:
        self.status: int = raw.status
        self.headers: Message = raw.headers
        self.hops = hops
        self._raw = raw

    def header(self, name: str) -> str | None:
        """A header's value from this answer, or from the first redirect on the way that has it."""
        for headers in (*self.hops, self.headers):
            if headers.get(name) is not None:
                return str(headers[name])
        return None

    def read(self, count: int = -1) -> bytes:
        return bytes(self._raw.read(count))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._raw.close()


@functools.cache
def _redirects() -> Any:
    """The class that follows redirects."""
    import urllib.request

    class Redirects(urllib.request.HTTPRedirectHandler):
        """Asks the gate again for every new host, and never carries a credential to another host or out of TLS."""

        def __init__(self, purpose: str, payload_kind: str) -> None:
            self.purpose, self.payload_kind = purpose, payload_kind
            self.hops: list[Message] = []

        def redirect_request(
            self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
        ) -> urllib.request.Request | None:
            self.hops.append(headers)
            from urllib.parse import urlsplit

            old, new = urlsplit(req.full_url), urlsplit(newurl)
            if old.scheme == "https" and new.scheme != "https":
                raise UserError(f"{old.hostname} redirects {self.purpose} out of TLS to {newurl}: not followed")
            permit(self.purpose, new.hostname or "", self.payload_kind)
            request = super().redirect_request(req, fp, code, msg, headers, newurl)
            if request is not None and old.netloc != new.netloc:
                request.remove_header("Authorization")
            return request

    return Redirects


def open_url(
    url: str,
    *,
    purpose: str,
    payload_kind: str = "a request",
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
) -> Response:
    """GET `url` after asking the gate. Raises `UserError` when shut, and urllib's `HTTPError`/`URLError`/`OSError`.

    A credential (Authorization) leaves only over TLS or to loopback.
    """
    import urllib.request
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"{url!r} is no http or https address")
    permit(purpose, host, payload_kind)
    request = urllib.request.Request(url, headers=dict(headers or {}))
    if parts.scheme != "https" and not is_loopback(host):
        request.remove_header("Authorization")
    redirects = _redirects()(purpose, payload_kind)
    handlers: list[urllib.request.BaseHandler] = [redirects]
    if is_loopback(host):
        handlers.append(urllib.request.ProxyHandler({}))  # a proxy would take loopback traffic off the machine
    return Response(urllib.request.build_opener(*handlers).open(request, timeout=timeout_s), redirects.hops)
