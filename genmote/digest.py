"""SHA-256 without OpenSSL: `hashlib` loads its library, 4 MB that a small device has no use for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

LARGE_FILE = 256 << 20  # from here on OpenSSL's speed (some five times here) is worth its memory
PART = 1 << 18

if TYPE_CHECKING:
    from io import FileIO

    class Digest(Protocol):
        """As `hashlib`'s."""

        def update(self, data: bytes | memoryview, /) -> None: ...
        def digest(self) -> bytes: ...
        def hexdigest(self) -> str: ...


def sha256(data: bytes | memoryview = b"") -> Digest:
    """As `hashlib.sha256`.

    >>> sha256(b"abc").hexdigest()[:16]
    'ba7816bf8f01cfea'
    """
    try:
        from _sha2 import sha256 as own  # type: ignore[import-not-found,unused-ignore]  # Python 3.12 and later
    except ImportError:
        try:
            from _sha256 import sha256 as own  # type: ignore[import-not-found,unused-ignore]  # Python 3.11
        except ImportError:  # a Python that was built without its own
            from hashlib import sha256 as own
    found: Digest = own(data)
    return found


def of_file(file: FileIO) -> str:
    """SHA-256 of what is left of an open file, in hexadecimal. Read, not mapped: pages of a map are memory too."""
    if os.fstat(file.fileno()).st_size >= LARGE_FILE:
        import hashlib

        return hashlib.file_digest(file, "sha256").hexdigest()
    found, buffer = sha256(), memoryview(bytearray(PART))
    while count := file.readinto(buffer):
        found.update(buffer[:count])
    return found.hexdigest()
