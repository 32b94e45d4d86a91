"""A model's folder from a stand-in hub on loopback: fetched whole, once, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from genmote import home
from genmote.errors import ModelNameError, PullError
from genmote.models import hub, hub_folder
from genmote.models.convert import convert
from genmote.models.gguf import ModelFile
from tests.models.peers import random_peer, save

NAME = "hf:some-org/Tiny-1"


class Hub(ThreadingHTTPServer):
    """Serves a folder's files at the hub's address."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.seen: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        place, _, file = self.path.rpartition("/resolve/main/")
        self.server.seen.append(file)
        path = self.server.folder / file
        if place != "/some-org/Tiny-1" or not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (tmp_path / "hub").mkdir()
    with Hub(tmp_path / "hub") as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}/")
        monkeypatch.setattr(hub, "FIRST_WAIT_S", 0.0)
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_a_folder_is_fetched_once_and_converted(server: Hub, tmp_path: Path, shard: str) -> None:
    save(random_peer("llama"), server.folder, max_shard_size=shard)
    made = convert(NAME, tmp_path / "a.gguf")
    assert made.architecture == "llama" and len(ModelFile.open(tmp_path / "a.gguf").tensors) == 21
    folder = home.models_dir() / "hf/some-org/Tiny-1/folder"
    assert {path.name for path in folder.iterdir()} == {path.name for path in server.folder.iterdir()}
    assert all((server.folder / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())
    assert not list(home.models_dir().rglob(".staging"))
    asked = len(server.seen)
    convert(NAME, tmp_path / "b.gguf")
    assert len(server.seen) == asked and (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_what_is_not_there_leaves_nothing(server: Hub) -> None:
    def told(message: str) -> None:
        with pytest.raises(PullError, match=message):
            hub_folder.pull(NAME)
        assert not [path for path in home.models_dir().rglob("*") if path.is_file()]

    told("the hub has no config.json in hf:some-org/Tiny-1: check the spelling of ORG and REPO")
    (server.folder / "config.json").write_text("{}")
    told("hf:some-org/Tiny-1 has no weights as safetensors")
    (server.folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors"}}')
    told("the hub has no a.safetensors in hf:some-org/Tiny-1, which its index names: nothing was kept")


@pytest.mark.parametrize("name", ["hf:../x", "hf:x/..", "hf:./x"])
def test_names_stay_inside(own_home: Path, name: str) -> None:
    with pytest.raises(ModelNameError, match="is no hub folder: wanted hf:ORG/REPO"):
        hub_folder.pull(name)
