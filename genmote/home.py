"""Where genmote keeps its state: one folder, one versioned layout, writes that survive a power cut.

``GENMOTE_HOME`` names the folder; without it the user's data directory is taken. Inside lie

    layout    the layout's version, one number
    models/   model files, whole and checked
    cache/    what can be made again from the models: re-laid weights, tables

Nothing is made before something is written, so a read-only root or an absent home is a supported case: ask
:func:`usable` before you write, and do without the file when it says no.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from genmote.errors import SpecError

LAYOUT = 1
AGAIN = 100  # times that a folder is made, which another process may remove at once


def home() -> Path:
    """The state folder; it need not exist. Raises `SpecError` where no user folder can be told."""
    named = os.environ.get("GENMOTE_HOME")
    if named:
        return Path(named).expanduser().absolute()
    return _user_data() / "genmote"


def _user_data() -> Path:
    named = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_DATA_HOME")
    if named:
        return Path(named)
    try:
        user = Path.home()
    except RuntimeError:
        raise SpecError("this user has no home folder: set GENMOTE_HOME to a folder for models and caches") from None
    return user / ("Library/Application Support" if sys.platform == "darwin" else ".local/share")


def models_dir() -> Path:
    """Where whole, checked model files lie."""
    return home() / "models"


def cache_dir() -> Path:
    """Where files lie that can be made again; a user may empty it at any time."""
    return home() / "cache"


def check_layout() -> None:
    """Raise `SpecError` when a newer genmote laid out the home, whose files this one may misread."""
    try:
        found = int((home() / "layout").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return
    if found > LAYOUT:
        raise SpecError(
            f"{home()} has layout {found}, this genmote knows up to {LAYOUT}: "
            "update genmote, or set GENMOTE_HOME to another folder"
        )


def usable(folder: Path) -> bool:
    """Make `folder` if it is absent and tell whether files can be written there (False on a read-only root)."""
    for _ in range(AGAIN):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            inside = home() in (folder, *folder.parents)
            if inside and os.access(home(), os.W_OK) and not (home() / "layout").exists():
                with atomic_write(home() / "layout", "w") as out:
                    out.write(f"{LAYOUT}\n")
        except FileNotFoundError:
            continue  # another process has just removed it, or a folder that it lies in
        except OSError:
            return False
        if os.access(folder, os.W_OK | os.X_OK):
            return True
        if folder.exists():
            return False
    return False


def target(path: str | os.PathLike[str]) -> Path:
    """The file that a write to `path` makes or takes the place of; a link is followed, so that it stays one.

    Ask before the work whose result goes there. Raises OSError, with the reason in words, where something else is
    there: a folder, a device, a pipe or a socket, which a rename would take away.
    """
    with contextlib.suppress(FileNotFoundError):
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if kind != stat.S_IFREG:
            what = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}.get(kind, "device")
            raise FileExistsError(errno.EEXIST, f"it is a {what}, not a file", os.fspath(path))
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears at `path` only when the block ends well, whole and on the disk.

    The bytes go to a temporary name in the same folder, are synced, renamed, and the folder is synced. When the block
    raises, nothing is left; what a killed process left is swept by the next write of the same path. Raises what
    :func:`target` does, before the block begins.
    """
    path = target(path)
    _sweep(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with open(descriptor, mode, encoding=None if "b" in mode else "utf-8") as out:
            lock(descriptor)  # tells a sweeper that the writer lives
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def check_room(folder: Path, count: int) -> None:
    """Raise OSError where no file of `count` bytes can be written in `folder`. The room is asked for, not filled, where
    the system can do that; where it cannot, what the disk says to be free is believed."""
    probe = folder / f".room.{os.getpid()}-{os.urandom(4).hex()}.tmp"
    try:
        with open(probe, "xb") as out:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(out.fileno(), 0, max(1, count))
            else:
                import shutil

                if shutil.disk_usage(folder).free < count:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make `folder` if it is absent, and keep other processes that ask for it out while the block runs, where the
    system has locks. It is removed afterwards if nothing is in it.

    Raises OSError where it cannot be made or written, `SpecError` where a process has it, which is named."""
    place = folder / "lock"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(folder))
        with contextlib.suppress(FileNotFoundError):  # whoever had it has just removed it
            descriptor = os.open(place, os.O_CREAT | os.O_RDWR, 0o666)
            try:
                if not lock(descriptor) and _has_locks():
                    who = os.read(descriptor, 20).decode("ascii", "replace").strip()
                    raise SpecError(
                        f"{folder} is in use by process {who or 'unknown'}: wait until that is done, or name another"
                    )
                if os.path.samestat(os.fstat(descriptor), os.stat(place)):
                    with contextlib.suppress(OSError):  # on a full disk it is held all the same, by nobody in words
                        os.ftruncate(descriptor, 0)
                        os.write(descriptor, f"{os.getpid()}\n".encode())
                    try:
                        yield
                    finally:
                        with contextlib.suppress(OSError):
                            place.unlink()
                        with contextlib.suppress(OSError):
                            folder.rmdir()
                    return
            finally:
                os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Put a rename in `folder` on the disk, where the system can sync folders."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems cannot sync a folder; the rename itself has been made
    finally:
        os.close(descriptor)


def _sweep(path: Path) -> None:
    """Remove temporary files of `path` whose writer is gone: nobody holds their lock."""
    prefix = f".{path.name}."
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            if name.startswith(prefix) and name.endswith(".tmp"):
                with contextlib.suppress(OSError), open(path.parent / name, "rb") as left:
                    if lock(left.fileno()):
                        (path.parent / name).unlink()


def lock(descriptor: int) -> bool:
    """Take the advisory lock of an open file without waiting; False when another process has it, or none can be had."""
    if not _has_locks():
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _has_locks() -> bool:
    return importlib.util.find_spec("fcntl") is not None
