"""What all tests share: a home of their own, models where they are here, two paces.

Tests skip where this machine lacks something. GENMOTE_REQUIRE=native,models,emulation,broker (any of these) makes every
skip a failure as long as one of the named things is absent, so that continuous integration cannot stay green without.
"""

from __future__ import annotations

import contextlib
import gc
import getpass
import importlib
import itertools
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Compiling the kernels for other processors takes minutes of one process: at the end the other one would wait.
    items.sort(key=lambda item: "native" not in item.path.parts)
    if config.getoption("--slow") or "slow" in (config.getoption("-m") or ""):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow (make test-slow)")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


def _kernels() -> bool:
    try:
        importlib.import_module("genmote.ops._native")
    except ImportError:
        return False
    return True


def _models() -> bool:
    from genmote.models.store import find

    return all(map(find, ("smollm2-135m", "gemma3-270m")))


def _emulators() -> bool:
    return all(
        shutil.which(tool)
        for machine in ("aarch64", "riscv64")
        for tool in (f"qemu-{machine}", f"{machine}-linux-gnu-g++")
    )


def _mosquitto() -> str | None:
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


REQUIRABLE = {
    "native": _kernels,
    "models": _models,
    "emulation": _emulators,
    "broker": lambda: _mosquitto() is not None,
}


@cache
def _required_but_absent() -> list[str]:
    return [name for name in filter(None, os.environ.get("GENMOTE_REQUIRE", "").split(",")) if not REQUIRABLE[name]()]


def pytest_configure(config: pytest.Config) -> None:
    unknown = set(filter(None, os.environ.get("GENMOTE_REQUIRE", "").split(","))) - set(REQUIRABLE)
    if unknown:
        raise pytest.UsageError(f"GENMOTE_REQUIRE: {', '.join(sorted(unknown))}: known are {', '.join(REQUIRABLE)}")
    _required_but_absent()  # now, while GENMOTE_HOME is the user's
    config.stash[_HOME] = _borrowed_home()


def pytest_unconfigure(config: pytest.Config) -> None:
    if (folder := config.stash.get(_HOME, None)) is not None:
        shutil.rmtree(folder, ignore_errors=True)


_HOME = pytest.StashKey[Path]()


def _borrowed_home() -> Path:
    """A home for the whole run: the user's models and recordings by link, a cache of its own, so that what tests make
    does not stay behind in the user's."""
    from genmote import home

    folder = Path(tempfile.mkdtemp(prefix="genmote-tests-"))
    for kept in (home.models_dir(), home.cache_dir() / "samples"):
        if kept.is_dir():
            link = folder / kept.relative_to(home.home())
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(kept.resolve(), target_is_directory=True)
    os.environ["GENMOTE_HOME"] = str(folder)
    return folder


def _fail_if_required(report: pytest.CollectReport | pytest.TestReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or not _required_but_absent():
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if "slow: run with --slow" not in reason:
        report.outcome = "failed"
        report.longrepr = f"{reason}; GENMOTE_REQUIRE wants what is absent: {', '.join(_required_but_absent())}"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_required(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_required(report)
    return report


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty GENMOTE_HOME for one test; models that the user has are not seen."""
    folder = tmp_path / "home"
    monkeypatch.setenv("GENMOTE_HOME", str(folder))
    return folder


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A block in which no file grows over so many bytes: a disk that is nearly full."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def over(count: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return over


def settled_bytes() -> int:
    """What this process holds once all that tests have left free in it was given back: budgets are counted from it."""
    from genmote.runtime import footprint

    gc.collect()
    footprint.without_holes()
    footprint.trim()
    return footprint.resident_bytes()


MakeAdapter = Callable[..., Path]


@pytest.fixture
def adapter(tmp_path: Path) -> MakeAdapter:
    """Makes a LoRA file of `rank` (and of a tensor type) that updates every matrix of a model's blocks a little."""
    import numpy as np

    from genmote.models.config import read_config
    from genmote.models.gguf import ModelFile
    from genmote.models.gguf_write import write_gguf
    from genmote.models.lora import base_shapes
    from genmote.models.parts import HEAD

    def make(model: Path, rank: int, kind: str = "F32") -> Path:
        config, rng, tensors = read_config(ModelFile.open(model)), np.random.default_rng(rank), []
        for name, (out, cols) in base_shapes(config).items():
            for part, shape in (("lora_a", (rank, cols)), ("lora_b", (out, rank))) if name != HEAD else ():
                numbers = 0.1 * rng.standard_normal(shape)
                numbers = numbers.astype(np.float16 if kind == "F16" else np.float32)
                tensors.append((f"{name}.{part}", kind, shape, numbers.reshape(-1).view(np.uint8)))
        about = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": config.architecture}
        path = tmp_path / f"adapter-{rank}-{kind}.gguf"
        write_gguf(path, about | {"adapter.lora.alpha": np.float32(rank)}, tensors)
        return path

    return make


def _find(name: str) -> Path:
    from genmote.models.store import find

    path = find(name)
    if path is None:
        pytest.skip(f"the model {name} is not here: `genmote pull {name}`")
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M file; the test is skipped where it has not been pulled."""
    return _find("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """The real Gemma-3-270M file; the test is skipped where it has not been pulled."""
    return _find("gemma3-270m")


@pytest.fixture(scope="session")
def find_model() -> Callable[[str], Path]:
    """Path of a named model, or skip."""
    return _find


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of reference data that may lie beside a checkout; the test is skipped where it does not."""
    folder = Path(os.environ.get("GENMOTE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("reference data is not here: set GENMOTE_TEST_DATA to its folder")
    return folder


class Broker:
    """A mosquitto of its own on this machine; `settings` are lines of its configuration."""

    def __init__(self, program: str, folder: Path, settings: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._words = [program, "-c", str(folder / "mosquitto.conf")]
        usual = f"listener {self.port} 127.0.0.1\npersistence true\npersistence_location {folder}/\n"
        usual += f"user {getpass.getuser()}\nmax_queued_messages 0\n"
        (folder / "mosquitto.conf").write_text(usual + settings, encoding="utf-8")
        self._log = folder / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(self._words, stdout=log, stderr=log)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self._process.poll() is None, self._log.read_text("utf-8")
            time.sleep(0.02)
        raise AssertionError("mosquitto takes no connection")

    def stop(self) -> None:
        """As on a restart: what it keeps for others is written."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def url(self, topic: str) -> str:
        return f"mqtt://127.0.0.1:{self.port}/{topic}"

    def publish(self, messages: Iterator[tuple[str, bytes]], *, retain: bool = False, login: bytes = b"") -> None:
        """With QoS 1, until the broker has taken all. The bytes are made here, by MQTT 3.1.1."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as link:
            flags = 0xC2 if login else 0x02
            about = b"\0\4MQTT\4" + bytes([flags]) + b"\0\0" + b"\0\4test" + login
            link.sendall(b"\x10" + bytes([len(about)]) + about)
            assert _exactly(link, 4) == b"\x20\2\0\0"
            for many in iter(lambda: list(itertools.islice(messages, 500)), []):
                packets = b""
                for number, (topic, payload) in enumerate(many, 1):
                    name = topic.encode(errors="surrogateescape")
                    body = struct.pack(">H", len(name)) + name + struct.pack(">H", number) + payload
                    packets += bytes([0x33 if retain else 0x32]) + _length(len(body)) + body
                link.sendall(packets)
                _exactly(link, 4 * len(many))
            link.sendall(b"\xe0\0")


def _exactly(link: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = link.recv(count - len(found))
        assert more, "the broker closed the connection"
        found += more
    return found


def _length(count: int) -> bytes:
    made = b""
    while True:
        count, seven = divmod(count, 128)
        made += bytes([seven | (0x80 if count else 0)])
        if not count:
            return made


@pytest.fixture
def make_broker(tmp_path_factory: pytest.TempPathFactory) -> Generator[Callable[[str], Broker]]:
    """Starts brokers with settings of their own; the test is skipped where mosquitto is not here."""
    program = _mosquitto()
    if program is None:
        pytest.skip("mosquitto is not here: install Debian's package mosquitto (make debian)")
    made: list[Broker] = []

    def make(settings: str = "allow_anonymous true\n") -> Broker:
        made.append(Broker(program, tmp_path_factory.mktemp("broker"), settings))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def broker(make_broker: Callable[..., Broker]) -> Broker:
    """A broker that takes everybody."""
    return make_broker()
