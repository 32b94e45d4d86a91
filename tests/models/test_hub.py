"""Pulls from a stand-in hub on loopback that misbehaves in every way a real one and its network can."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from genmote import home
from genmote.errors import ModelNameError, PullError
from genmote.models import hub, store

BODY = b"GGUF" + bytes(range(256)) * 20_000  # 5 MB: several chunks
NAME = "hf:some-org/tiny.GGUF/q4/tiny-Q4_0.gguf"


class Hub(ThreadingHTTPServer):
    """Serves BODY at /cdn, and at the hub's address a redirect to it; tests set the faults."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.etag: str | None = '"v1"'
        self.sha256: str | None = hashlib.sha256(BODY).hexdigest()
        self.cuts: list[int] = []  # each answer of the cdn breaks off after so many bytes
        self.statuses: list[int] = []  # each is answered once, before the file is
        self.ranges = True
        self.shift = 0  # a broken server answers another range than it was asked for
        self.seen: list[tuple[str, str | None, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        hub_ = self.server
        hub_.seen.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if hub_.statuses:
            self.send_response(hub_.statuses.pop(0))
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/some-org/tiny.GGUF/resolve/main/q4/tiny-Q4_0.gguf":
            self.send_response(302)
            if hub_.sha256:
                self.send_header("X-Linked-ETag", f'"{hub_.sha256}"')
                self.send_header("X-Linked-Size", str(len(hub_.body)))
            self.send_header("Location", f"http://127.0.0.1:{hub_.server_port}/cdn")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/cdn":
            self.send_file()
        else:
            self.send_error(404)

    def send_file(self) -> None:
        hub_ = self.server
        first = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and hub_.ranges and self.headers.get("If-Range") == hub_.etag:
            first = int(asked[1]) + hub_.shift
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(hub_.body) - 1}/{len(hub_.body)}")
        else:
            self.send_response(200)
        if hub_.etag:
            self.send_header("ETag", hub_.etag)
        self.send_header("Content-Length", str(len(hub_.body) - first))
        self.end_headers()
        cut = hub_.cuts.pop(0) if hub_.cuts else None
        self.wfile.write(hub_.body[first:] if cut is None else hub_.body[first : first + cut])
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}/")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(hub, "FIRST_WAIT_S", 0.0)
        yield running
        running.shutdown()
        thread.join()


def left() -> list[str]:
    return [p.name for p in home.models_dir().rglob("*") if p.is_file()]


def test_a_hub_file_is_fetched_once(server: Hub) -> None:
    told: list[tuple[str, int, int]] = []
    assert store.find(NAME) is None
    path = store.resolve(NAME, progress=lambda *now: told.append(now))
    assert path == home.models_dir() / "hf/some-org/tiny.GGUF/q4/tiny-Q4_0.gguf"
    assert path.read_bytes() == BODY and left() == ["tiny-Q4_0.gguf"]
    assert told[-1] == ("q4/tiny-Q4_0.gguf", len(BODY), len(BODY))
    asked = len(server.seen)
    assert store.resolve(NAME) == path and len(server.seen) == asked


def test_the_token_is_sent(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    store.pull(NAME)
    assert server.seen[0][2] == "Bearer hf_x"


def test_a_dropped_connection_is_resumed_where_it_broke(server: Hub) -> None:
    server.cuts = [1_000_000, 2_000_000]
    assert store.pull(NAME).read_bytes() == BODY
    assert [seen[1] for seen in server.seen if seen[0] == "/cdn"] == [None, "bytes=1000000-", "bytes=3000000-"]


def test_a_long_poor_link_gets_there(server: Hub) -> None:
    server.cuts = [400_000] * 11
    assert store.pull(NAME).read_bytes() == BODY


@pytest.mark.parametrize("how", ["no ranges", "no etag", "another range"])
def test_a_server_that_cannot_resume_is_asked_for_the_whole(server: Hub, how: str) -> None:
    server.cuts = [1_000_000]
    server.ranges = how != "no ranges"
    server.etag = None if how == "no etag" else server.etag
    server.shift = -7 if how == "another range" else 0
    assert store.pull(NAME).read_bytes() == BODY


def test_a_file_that_changes_midway_is_not_mixed(server: Hub) -> None:
    server.cuts = [1_000_000]
    other = b"GGUF" + bytes(len(BODY))

    def change(what: str, done: int, total: int) -> None:
        if done == 1_000_000:
            server.body, server.etag, server.sha256 = other, '"v2"', hashlib.sha256(other).hexdigest()

    assert store.pull(NAME, progress=change).read_bytes() == other


def test_passing_faults_are_tried_again(server: Hub) -> None:
    server.statuses = [503, 429, 500, 416]
    assert store.pull(NAME).read_bytes() == BODY


def test_a_lasting_fault_ends_in_one_line(server: Hub) -> None:
    server.statuses = [503] * 50
    with pytest.raises(
        PullError, match=r"could not be fetched after 5 tries \(HTTP 503\): nothing was kept; check the"
    ):
        store.pull(NAME)
    assert left() == []


def test_a_pause_is_told(server: Hub) -> None:
    server.statuses = [503, 503]
    told: list[str] = []
    store.pull(NAME, progress=lambda what, done, total: told.append(what))
    assert told[:2] == [f"HTTP 503: trying again in 0 s ({n} of 5)" for n in (2, 3)]


def test_a_host_without_an_address_is_not_asked_long(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **options: object) -> None:
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr("genmote.gate.open_url", unknown)
    with pytest.raises(PullError, match="after 2 tries .*Name or service not known"):
        store.pull(NAME)
    assert not list(home.models_dir().iterdir()), "no empty folders stay"


def test_a_server_that_is_not_there(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(PullError, match="after 5 tries .*refused"):
        store.pull(NAME)
    assert left() == []


def test_a_dead_link_midway_leaves_nothing(server: Hub) -> None:
    server.cuts = [1_000_000] + [0] * 50
    with pytest.raises(PullError, match=f"the connection broke at 1000000 of {len(BODY)} bytes"):
        store.pull(NAME)
    assert left() == []


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"the hub refuses hf:.* \(401\): accept the model's terms there and set HF_TOKEN"),
        (403, r"the hub refuses hf:.* \(403\)"),
        (404, r"the hub has no hf:.* \(404\): check the spelling of ORG, REPO and FILE"),
        (410, "the hub answers hf:.* with HTTP 410: nothing was kept; check the name"),
    ],
)
def test_a_refusal_is_told_at_once(server: Hub, status: int, message: str) -> None:
    server.statuses = [status]
    with pytest.raises(PullError, match=message):
        store.pull(NAME)
    assert len(server.seen) == 1 and left() == []


def test_a_wrong_hash_is_refused(server: Hub) -> None:
    server.sha256 = "0" * 64
    with pytest.raises(PullError, match="came with sha256 .*, the hub names 000000000000…: nothing was kept"):
        store.pull(NAME)
    assert left() == []


def test_a_page_instead_of_a_model_is_refused(server: Hub) -> None:
    server.body, server.sha256 = b"<html>log in to the hotel network</html>", None
    with pytest.raises(PullError, match="is no GGUF file: nothing was kept"):
        store.pull(NAME)
    assert left() == []


def test_a_full_disk_is_told_before_the_body_is_read(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(PullError, match="has 1 MB free, the fetch needs 5 MB"):
        store.pull(NAME)


def test_an_interrupt_leaves_nothing_half(server: Hub) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if done > 2_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull(NAME, progress=interrupt)
    assert left() == []


@pytest.mark.parametrize(
    "name",
    [
        "hf:",
        "hf:org/repo",
        "hf:org/file.gguf",
        "hf:org/repo/file.bin",
        "hf:../repo/file.gguf",
        "hf:org/../file.gguf",
        "hf:org/repo/../../x.gguf",
        "hf:org/repo/a//x.gguf",
        "hf:org/repo//x.gguf",
        "hf:org/repo/x.gguf?download",
        "hf:org/repo/x\n.gguf",
    ],
)
def test_ill_formed_names(name: str, own_home: Path) -> None:
    with pytest.raises(ModelNameError, match="is no hub file: wanted hf:ORG/REPO/FILE.gguf"):
        store.resolve(name)


def test_a_split_file_is_refused(own_home: Path) -> None:
    with pytest.raises(ModelNameError, match="is one piece of a split file: wanted a model in a single file"):
        store.resolve("hf:org/repo/big-00001-of-00003.gguf")
