"""Keys, and pages of other sites in a browser on the same machine."""

from __future__ import annotations

from typing import Any

import pytest

from genmote.web.fake import ScriptedBackend

ASK = {"messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"
KEY = "correct horse".replace(" ", "-")


def test_key(start: Any, client: Any) -> None:
    running = start(ScriptedBackend(), key=KEY)
    for given in ("", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer \xe9\xff"):
        status, answer, headers = running.ask("POST", CHAT, ASK, {"Authorization": given} if given else {})
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key"), given
        assert headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer KEY" in answer["error"]["message"]
    assert client(running, KEY).models.list().data[0].id == "scripted"
    assert running.ask("GET", "/v1/models", headers={"Authorization": f"bearer {KEY}"})[0] == 200
    assert running.ask("GET", "/nothing")[0] == 401  # not even what exists


def test_health_tells_strangers_only_that_it_lives(start: Any) -> None:
    running = start(ScriptedBackend(), key=KEY)
    assert running.ask("GET", "/health")[:2] == (200, {"status": "ok"})
    known = running.ask("GET", "/health", headers={"Authorization": f"Bearer {KEY}"})[1]
    assert known == {
        "status": "ok",
        "model": "scripted",
        "context": 4096,
        "slots": 4,
        "queue": 4,
        "open": 0,
        "active": 0,
        "waiting": 0,
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:80", "LOCALHOST", "[::1]:8080", "127.9.9.9:1"])
def test_own_hosts(start: Any, host: str) -> None:
    assert start(ScriptedBackend()).ask("GET", "/v1/models", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "10.0.0.1", "", "[::1", "a@b"]
)
def test_rebound_hosts(start: Any, host: str) -> None:
    running = start(ScriptedBackend())
    for path in ("/v1/models", "/health"):
        status, answer, _ = running.ask("GET", path, headers={"Host": host})
        assert (status, answer["error"]["code"]) == (421, "wrong_host")
        assert "is not this machine: use http://127.0.0.1" in answer["error"]["message"]


def test_pages_of_other_sites(start: Any) -> None:
    running = start(ScriptedBackend())
    host = f"localhost:{running.port}"
    for origin in ("https://evil.example", "null", f"http://{host}.evil.example", "http://localhost:1", "http://[::1"):
        status, answer, headers = running.ask("POST", CHAT, ASK, {"Origin": origin, "Host": host})
        assert (status, answer["error"]["code"]) == (403, "wrong_origin"), origin
        assert "may not use this server" in answer["error"]["message"]
        assert not any(name.startswith("access-control") for name in headers)
    assert running.ask("POST", CHAT, ASK, {"Origin": f"http://{host}", "Host": host})[0] == 200
    assert running.ask("OPTIONS", CHAT, headers={"Origin": "https://evil.example"})[0] == 403


def test_key_stands_for_the_site_checks(start: Any) -> None:
    """Behind a proxy the Host is another; whoever has the key may ask."""
    running = start(ScriptedBackend(), key=KEY)
    headers = {"Host": "hub.example", "Origin": "https://hub.example:444", "Authorization": f"Bearer {KEY}"}
    assert running.ask("GET", "/v1/models", headers=headers)[0] == 200
