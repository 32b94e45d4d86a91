"""What may go wrong while weights are streamed: no wrong token, no hang, nothing left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genmote.errors import ModelFileError, OpsError
from genmote.models import packed
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.runtime.engine import Engine
from genmote.runtime.scheduler import Scheduler
from tests.conftest import settled_bytes

pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)

PROMPT = [1, 5, 9, 2, 6, 30, 31, 7]
OPTIONS: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True}

# A process that streams everything, cut finely, and tells each text it makes.
STREAMING = """
import sys
from genmote.runtime import streaming
streaming.LEAST_RING, streaming.MOST_RING, streaming.LEAST_CHUNK, streaming.MOST_CHUNK = 1, 60_000, 4096, 12_000
from genmote import Engine
def engine():
    engine = Engine.load(sys.argv[1], ops="native", memory="1GB", threads=2)
    engine.streaming.arrange(engine.decoder.weights, 0)
    return engine
def text(engine):
    return engine.generate([1, 5, 9, 2, 6, 30, 31, 7], session=engine.session(), max_tokens=40, ignore_eos=True).tokens
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model, and a home of its own for its packed file."""
    monkeypatch.setenv("GENMOTE_HOME", str(tmp_path / "home"))
    make_model("tiny-llama", "Q4_0", tmp_path / "tiny.gguf", seed=1)
    return tmp_path / "tiny.gguf"


@pytest.fixture
def engine(model: Path) -> Iterator[Engine]:
    """An engine that pins nothing."""
    with Engine.load(model, ops="native", memory=settled_bytes() + 200_000_000, threads=2) as engine:
        assert engine.streaming is not None
        engine.streaming.arrange(engine.decoder.weights, 0)
        assert engine.streaming.pinned_bytes == 0
        yield engine


@pytest.fixture
def wanted(model: Path) -> list[int]:
    with Engine.load(model, ops="native", threads=2) as engine:
        return engine.generate(PROMPT, **OPTIONS).tokens


def packed_file(engine: Engine) -> Path:
    assert engine.streaming is not None
    return engine.streaming.packed.file


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(1000))


def grown(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("harm", [truncated, overwritten, grown])
def test_a_file_that_changes_ends_the_text(
    model: Path, engine: Engine, wanted: list[int], harm: Callable[[Path], None]
) -> None:
    made = []
    with pytest.raises(
        ModelFileError, match=r"packed: changed while its weights were being read.*load the model again"
    ):
        for piece in engine.stream(PROMPT, **OPTIONS):
            made.append(piece.token)
            if len(made) == 5:
                harm(packed_file(engine))
    assert made == wanted[: len(made)] and len(made) < 10
    for _ in range(2):  # and stays so
        with pytest.raises(ModelFileError, match="changed"):
            engine.generate(PROMPT, **OPTIONS)
    if harm is not overwritten:  # which only `genmote pack` finds
        with Engine.load(model, ops="native", memory=settled_bytes() + 200_000_000) as again:
            assert again.generate(PROMPT, **OPTIONS).tokens == wanted


def test_a_file_that_is_replaced_does_not_matter(engine: Engine, wanted: list[int]) -> None:
    made = []
    for piece in engine.stream(PROMPT, **OPTIONS):
        made.append(piece.token)
        if len(made) == 5:
            other = packed_file(engine).with_name("other")
            other.write_bytes(bytes(1000))
            other.replace(packed_file(engine))
        if len(made) == 10:
            packed_file(engine).unlink()
    assert made == wanted


def test_texts_in_a_batch_are_told_too(engine: Engine) -> None:
    with Scheduler(engine, max_sessions=2) as scheduler:
        handles = [scheduler.submit(engine.request(PROMPT, max_tokens=200, ignore_eos=True)) for _ in range(3)]
        next(iter(handles[0]))
        truncated(packed_file(engine))
        for handle in handles:
            with pytest.raises(ModelFileError, match="changed"):
                for _ in handle:
                    pass


def test_what_a_pass_reads_serves_every_text_in_it(engine: Engine, wanted: list[int]) -> None:
    """Four texts together read little more than one alone; guessed tokens come of the same pass."""
    assert engine.streaming is not None
    reader = engine.streaming.reader
    before = reader.bytes_read
    alone = engine.generate(PROMPT, **OPTIONS)
    assert alone.tokens == wanted
    one = reader.bytes_read - before
    with Scheduler(engine, max_sessions=4) as scheduler:
        before = reader.bytes_read
        handles = [scheduler.submit(engine.request(PROMPT, **OPTIONS)) for _ in range(4)]
        assert [handle.result().tokens for handle in handles] == [wanted] * 4
        assert reader.bytes_read - before < 2 * one
    before = reader.bytes_read
    guessed = engine.generate([3, 8, 5] * 12, max_tokens=60, ignore_eos=True, speculate=True)
    assert guessed.tokens == engine.generate([3, 8, 5] * 12, max_tokens=60, ignore_eos=True).tokens
    assert guessed.steps == 59 - guessed.accepted


def run(code: str, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STREAMING + code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def test_ctrl_c_leaves_the_next_text_right(model: Path, wanted: list[int]) -> None:
    code = """
import json
engine = engine()
for _ in range(3):
    print("ready", flush=True)
    try:
        while True:
            text(engine)
    except KeyboardInterrupt:
        print(json.dumps(text(engine)), flush=True)
"""
    command = [sys.executable, "-c", STREAMING + code, str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for _ in range(3):
                assert process.stdout.readline() == "ready\n"
                time.sleep(random.uniform(0.01, 0.2))
                process.send_signal(signal.SIGINT)
                assert json.loads(process.stdout.readline()) == wanted
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_a_process_may_fork(model: Path, wanted: list[int]) -> None:
    code = """
import os
engine = engine()
first = text(engine)
child = os.fork()
if not child:
    os._exit(text(engine) != first)
again = text(engine)
print(first, again == first, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code, model).stdout == f"{wanted} True 0\n"


def test_a_process_may_fork_while_another_thread_generates(model: Path) -> None:
    code = """
import os, threading
engine = engine()
stop = threading.Event()
wanted = text(engine)
same = []
def go():
    while not stop.is_set():
        same.append(text(engine) == wanted)
thread = threading.Thread(target=go)
thread.start()
for _ in range(100):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
stop.set()
thread.join()
print(all(same) and len(same) > 0)
"""
    assert run(code, model).stdout == "True\n"


def test_a_full_disk_while_packing(model: Path) -> None:
    """The packed file cannot be written whole: nothing of it stays, a budget is refused, a load without one goes on."""
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
from genmote.errors import ModelFileError
try:
    engine()
except ModelFileError as error:
    print(error)
print(text(Engine.load(sys.argv[1], ops="native")))
"""
    made = run(code, model)
    first, second = made.stdout.splitlines()
    assert "a memory budget needs the re-laid weights in a file" in first
    folder = packed.path_of(ModelFile.open(model)).parent
    assert not [path for path in folder.iterdir() if path.stat().st_size]
    assert json.loads(second) == json.loads(run("print(text(engine()))", model).stdout)


@pytest.mark.slow
def test_a_hundred_kills(model: Path, wanted: list[int]) -> None:
    """Killed while it starts, packs, pins, streams: the next run is right, and no temporary file outlives it."""
    rng = random.Random(7)
    folder = packed.path_of(ModelFile.open(model)).parent
    code = "engine = engine()\nprint('ready', flush=True)\nwhile True: text(engine)"
    command = [sys.executable, "-c", STREAMING + code, str(model)]
    for number in range(100):
        if number % 3 == 0 and folder.exists():  # the kill may come while the file is made
            for path in folder.glob("*.packed"):
                path.unlink()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            if number % 2:
                process.stdout.readline()
                time.sleep(rng.uniform(0, 0.1))
            else:
                time.sleep(rng.uniform(0, 1.0))
            process.kill()
        if number % 10 == 9:
            assert json.loads(run("print(text(engine()))", model).stdout) == wanted
            for path in folder.glob("*.packed"):
                path.unlink()
            assert json.loads(run("print(text(engine()))", model).stdout) == wanted  # packs, and sweeps
            assert len(list(folder.iterdir())) == 1
