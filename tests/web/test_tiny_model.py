"""`genmote serve` as a process, with a tiny real model file: start, serve, end, and every way to start wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genmote.models.make_model import make_model
from genmote.runtime.engine import Engine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    make_model("tiny-llama", "q8_0", path, seed=1)
    return path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "genmote.cli", "serve", *arguments]


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "GENMOTE_API_KEY"}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), "GENMOTE_HOME": str(home), **more}


@pytest.fixture
def child(tiny: Path, tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """A serving process and its URL."""
    process = subprocess.Popen(
        command(str(tiny), "--port", "0", "--max-sessions", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("genmote serves tiny at http://127.0.0.1:"), line + process.stderr.read()
        assert line.rstrip().endswith("2 slots)")
        yield process, line.split(" at ")[1].split(" ")[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_serves_and_ends(child: tuple[Any, str], tiny: Path, number: int, status: int) -> None:
    openai = pytest.importorskip("openai", reason="the official client is not installed: pip install openai")
    process, url = child
    ids = [5, 6, 7, 8, 5, 6]
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        assert client.models.list().data[0].id == "tiny"
        answer = client.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=12)
        vector = client.embeddings.create(model="tiny", input=ids).data[0].embedding
        stream = client.completions.create(model="tiny", prompt=ids, max_tokens=100_000, stream=True)
        next(iter(stream))  # a text is under way
        stream.close()
    with Engine.load(tiny) as engine:
        assert answer.choices[0].text == engine.generate(ids, max_tokens=12).text
        assert vector == pytest.approx(list(engine.embed(ids)), abs=1e-6)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (status, "")
    assert "Traceback" not in err and "POST /v1/completions 200" in err


def refused(home: Path, *arguments: str, **env: str) -> str:
    """The one line with which a start is refused."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=60, env=environment(home, **env), check=False
    )
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_port_in_use(tiny: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1 port {port}" in refused(tmp_path, str(tiny), "--port", port)


def test_wrong_starts(tiny: Path, tmp_path: Path) -> None:
    assert "set a key" in refused(tmp_path, str(tiny), "--host", "0.0.0.0")
    assert "the key is unfit" in refused(tmp_path, str(tiny), GENMOTE_API_KEY="short")
    assert "max_sessions=0, wanted at least 1" in refused(tmp_path, str(tiny), "--port", "0", "--max-sessions", "0")
    assert "is not there" in refused(tmp_path, str(tmp_path / "none.gguf"), "--port", "0")
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tiny.read_bytes()[:1000])
    assert "damaged.gguf" in refused(tmp_path, str(damaged), "--port", "0")
