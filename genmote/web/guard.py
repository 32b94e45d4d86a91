"""Who may ask: a key where one is set, and on loopback no web page of another site.

A page in the browser can send requests to this machine's own addresses. It cannot hide where it comes from: a name that
was rebound to 127.0.0.1 shows in the Host header, and a plain cross-site request carries its Origin.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from genmote import gate
from genmote.web.problem import Problem


class Guard:
    """Checks a request's headers before anything else looks at it; raises `Problem` 401, 403 or 421."""

    def __init__(self, key: str | None) -> None:
        """Without a key the server must listen on loopback only."""
        self._key = None if key is None else key.encode("ascii")

    def check_site(self, headers: Mapping[str, str]) -> None:
        """Where no key proves who asks: refuse what another site's page had the browser send."""
        if self._key is not None:
            return
        host = headers.get("host", "")
        if not gate.is_loopback(_parts("//" + host)[1]):
            raise Problem(421, f"host {host[:80]!r} is not this machine: use http://127.0.0.1", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and _parts(origin)[0] != host.lower():
            raise Problem(403, f"web pages of {origin[:80]!r} may not use this server", code="wrong_origin")

    def check_key(self, headers: Mapping[str, str]) -> None:
        if not self.knows(headers):
            raise Problem(
                401,
                "the API key is missing or wrong: send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Whether the request carries the key, or none is needed. Takes the same time for every wrong key."""
        if self._key is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # The header is bytes, which starlette reads as latin-1.
        return hmac.compare_digest(given.strip().encode("latin-1"), self._key) and scheme.lower() == "bearer"


def _parts(address: str) -> tuple[str, str]:
    """(host and port, host) of an address, in small letters; ("", "") of what is none.

    >>> _parts("http://[::1]:80")
    ('[::1]:80', '::1')
    """
    try:
        parts = urlsplit(address)
        return parts.netloc.lower(), parts.hostname or ""
    except ValueError:
        return "", ""
