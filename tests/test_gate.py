from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from genmote import gate
from genmote.errors import UserError


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.10", "::1", "[::1]"])
def test_loopback_is_open_to_every_purpose(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENMOTE_OFFLINE", "1")
    gate.permit("anything", host, "a prompt")


@pytest.mark.parametrize("host", ["example.org", "10.0.0.1", "192.168.1.1", "::2", "127.0.0.1.example.org", ""])
def test_off_loopback_is_shut(host: str) -> None:
    with pytest.raises(UserError, match="split may not send a prompt to .*shut for it off loopback"):
        gate.permit("split", host, "a prompt")


@pytest.mark.parametrize("purpose", ["pull", "ray", "watch"])
def test_what_the_user_names_is_open_until_the_user_is_offline(purpose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENMOTE_OFFLINE", raising=False)
    gate.permit(purpose, "example.org", "a name")
    monkeypatch.setenv("GENMOTE_OFFLINE", "1")
    with pytest.raises(UserError, match="GENMOTE_OFFLINE is set: unset it, or use a local file"):
        gate.permit(purpose, "example.org", "a name")


def test_a_connection_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *given, **named: pytest.fail("it was opened"))
    with pytest.raises(UserError, match="split may not send rows to example.org"):
        gate.open_socket("example.org", 1, purpose="split", payload_kind="rows")
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with gate.open_socket("127.0.0.1", port, purpose="split", payload_kind="rows", timeout_s=5) as link:
            assert link.getpeername() == ("127.0.0.1", port) and link.gettimeout() == 5


def test_only_http_addresses() -> None:
    with pytest.raises(UserError, match="no http or https address"):
        gate.open_url("file:///etc/passwd", purpose="pull")


@contextlib.contextmanager
def serving(answer: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A loopback server that answers paths from a table and keeps the headers it was sent."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
            status, headers, body = answer[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_headers_of_redirects_are_kept_and_the_credential_stays_with_its_host() -> None:
    with serving({"/file": (200, {"ETag": "last"}, b"body")}) as (other, seen_by_other):
        hop = {"Location": f"{other.replace('127.0.0.1', 'localhost')}/file", "X-Linked-Size": "4"}
        with (
            serving({"/resolve": (302, hop, b"")}) as (hub, seen_by_hub),
            gate.open_url(f"{hub}/resolve", purpose="pull", headers={"Authorization": "Bearer secret"}) as response,
        ):
            assert response.read() == b"body"
            assert response.header("x-linked-size") == "4"
            assert response.header("etag") == "last"
    assert seen_by_hub[0]["authorization"] == "Bearer secret"
    assert "authorization" not in seen_by_other[0]


def test_a_redirect_off_loopback_asks_the_gate_again() -> None:
    with (
        serving({"/go": (302, {"Location": "http://example.org/x"}, b"")}) as (address, _),
        pytest.raises(UserError, match="probe may not send a request to example.org"),
    ):
        gate.open_url(f"{address}/go", purpose="probe")


def test_no_proxy_sees_loopback_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving({"/": (200, {}, b"here")}) as (address, _), gate.open_url(f"{address}/", purpose="x") as response:
        assert response.read() == b"here"
