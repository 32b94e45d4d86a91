"""Starting, listening, signals and ending: in a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genmote.errors import ServeError, SpecError
from genmote.web.server import bind, checked_key, serve, url_of
from tests.conftest import settled_bytes

KEY = "correct-horse"


def test_port_in_use() -> None:
    with bind("127.0.0.1", 0, None) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        with pytest.raises(ServeError) as refused:
            bind("127.0.0.1", port, None)
    message = str(refused.value)
    assert message == (
        f"cannot listen on 127.0.0.1 port {port} (Address already in use): choose another --port, 0 for any free one"
    )
    assert refused.value.exit_status == 2


@pytest.mark.parametrize(
    ("host", "port", "part"),
    [
        ("127.0.0.1", 65536, "port 65536 is none: use 1 to 65535, or 0"),
        ("127.0.0.1", -1, "port -1 is none"),
        ("no-such-host.invalid", 0, "host 'no-such-host.invalid' is no address of this machine"),
        ("a" * 300, 0, "is no address of this machine"),
        ("203.0.113.7", 0, "cannot listen on 203.0.113.7 port 0"),
    ],
)
def test_wrong_address(host: str, port: int, part: str) -> None:
    with pytest.raises(ServeError, match="^[^\n]+$") as refused:
        bind(host, port, KEY)
    assert part in str(refused.value)


def test_key_is_needed_off_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENMOTE_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org"):
        with pytest.raises(ServeError, match="can be reached from other machines: set a key"):
            checked_key(host, None)
        assert checked_key(host, KEY) == KEY
    for host in ("127.0.0.1", "localhost", "::1"):
        assert checked_key(host, None) is None
    monkeypatch.setenv("GENMOTE_API_KEY", "from-the-environment")
    assert checked_key("0.0.0.0", None) == "from-the-environment"
    assert checked_key("0.0.0.0", KEY) == KEY
    for unfit in ("", "short", "with a space in it", "ключ-ключ", "line\nfeed-line"):
        with pytest.raises(ServeError, match="the key is unfit: use at least 8 ASCII characters without spaces"):
            checked_key("127.0.0.1", unfit)


def test_name_that_resolves_elsewhere_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.1.2.3", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
    with pytest.raises(ServeError, match="host localhost means 10.1.2.3, not this machine"):
        bind("localhost", 0, None)


def test_wrong_limits() -> None:
    for wrong in ({"max_sessions": 0}, {"queue": -1}, {"body_limit": 0}):
        with pytest.raises(ServeError, match=r"=-?\d+, wanted at least [01]$"):
            serve("no-model", **wrong)  # type: ignore[arg-type]


def test_url_of_ipv6() -> None:
    try:
        bound = bind("::1", 0, None)
    except ServeError:
        pytest.skip("this machine has no IPv6 loopback")
    with bound:
        assert url_of(bound) == f"http://[::1]:{bound.getsockname()[1]}"


SCRIPT = """
    import sys, time
    from genmote.web.fake import ScriptedBackend
    from genmote.web.server import announce, bind, run, say
    backend = ScriptedBackend(lambda job: ["x"] * 4000, pace=lambda: time.sleep(0.02))
    with bind("127.0.0.1", 0, None) as bound:
        try:
            run(backend, bound, key=None, queue=2, body_limit=1000, ready=announce, log=say)
        except KeyboardInterrupt:
            sys.exit(130)
    print("clean", flush=True)
"""


@contextlib.contextmanager
def process(script: str = SCRIPT) -> Iterator[tuple[Any, int]]:
    """A server process and its port."""
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        line = child.stdout.readline()
        assert line.startswith("genmote serves scripted at http://127.0.0.1:"), (line, child.stderr.read())
        assert line.endswith("/v1 (context 4096, 4 slots)\n")
        yield child, int(line.split("/v1")[0].rsplit(":", 1)[1])
    finally:
        child.kill()
        child.communicate()


def streaming(port: int) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    return connection, connection.getresponse()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signal_when_idle(number: int, status: int) -> None:
    with process() as (child, _):
        began = time.monotonic()
        child.send_signal(number)
        out, err = child.communicate(timeout=10)
        assert child.returncode == status, err
        assert time.monotonic() - began < 2.9  # with texts under way it would wait 3
        assert err == "" and out == ("clean\n" if status == 0 else "")


def test_signal_while_texts_come() -> None:
    """They may go on for a moment; then the stream ends with the reason, and the process is gone."""
    with process() as (child, port):
        connection, response = streaming(port)
        assert response.readline().startswith(b"data: ")
        child.send_signal(signal.SIGTERM)
        rest = response.read()
        assert json.loads(rest.rstrip().rsplit(b"data: ", 1)[1])["error"]["code"] == "shutting_down"
        out, err = child.communicate(timeout=10)
        assert (child.returncode, out) == (0, "clean\n"), err
        assert "Traceback" not in err
        connection.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_second_interrupt_does_not_wait() -> None:
    with process() as (child, port):
        connection, response = streaming(port)
        response.readline()
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=10)
        assert child.returncode == 130 and time.monotonic() - began < 2.5
        assert "Traceback" not in err
        connection.close()


def test_no_connection_before_it_is_ready() -> None:
    """While the model loads, clients are refused and not kept waiting."""
    with bind("127.0.0.1", 0, None) as bound, pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname(), timeout=5)


def test_nothing_is_left_when_loading_fails(own_home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    with pytest.raises(Exception, match="no-such-model"):
        serve("no-such-model", port=0)
    assert threading.active_count() == before


def test_serve_wires_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` itself, around an engine without a model, until its `ready` asks it to end."""
    from genmote.runtime.engine import Engine
    from genmote.runtime.fake import fake_engine

    seen: dict[str, Any] = {}

    def load(model: str, **settings: Any) -> Engine:
        seen.update(settings, model=model)
        return fake_engine(context=settings["context"])

    def ready(told: Any) -> None:
        seen["ready"] = str(told)
        raise SpecError("enough")

    monkeypatch.setattr(Engine, "load", load)
    with pytest.raises(SpecError, match="enough"):
        serve("tiny", port=0, context=77, threads=1, max_sessions=3, ready=ready)
    assert seen["ready"].startswith("genmote serves tiny at http://127.0.0.1:")
    assert seen["ready"].endswith("(context 77, 3 slots)")
    assert (seen["model"], seen["threads"], seen["ops"], seen["adapter"]) == ("tiny", 1, None, None)
    with pytest.raises(SpecError, match="enough"):
        serve("tiny", port=0, context=77, threads=1, max_sessions=1, ready=ready)
    assert seen["ready"].endswith("(context 77, 1 slot)")


def test_what_a_budget_costs_is_told_at_the_start(tmp_path: Path, own_home: Path) -> None:
    pytest.importorskip("genmote.ops._native")
    from genmote.models.make_model import make_model

    make_model("tiny-llama-256", "f32", tmp_path / "m.gguf", seed=1)

    def told(spare: int) -> list[str]:
        lines: list[str] = []

        def ready(_: Any) -> None:
            raise SpecError("enough")

        memory = settled_bytes() + spare
        with pytest.raises(SpecError, match="enough"):
            serve(str(tmp_path / "m.gguf"), port=0, context=64, memory=memory, ready=ready, log=lines.append)
        return lines

    assert re.fullmatch(r"within [\d.]+ MB: [\d.]+ MB planned", told(100_000_000)[0])
    tight = told(9_000_000)
    assert re.match(r"within [\d.]+ MB: [\d.]+ MB planned; a prompt is run", tight[0])
    assert re.fullmatch(
        r"requests with a JSON schema or a grammar will be refused: with its tables the least is \d+ MB \(--memory\), "
        "or a shorter --context",
        tight[1],
    )
