"""SHA-256 of a few bytes, without OpenSSL: `hashlib` loads its library, 4 MB that a small device has no use for.

What digests whole files imports `hashlib` where it does: OpenSSL is faster there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:

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
