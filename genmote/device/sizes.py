"""Amounts as people write them: ``150MB``, ``1.5GiB``, ``40MB/s``."""

from __future__ import annotations

import re

from genmote.errors import SpecError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {unit: 1024**power for power, unit in enumerate(("KIB", "MIB", "GIB", "TIB"), 1)}
_UNITS |= {unit[0]: _UNITS[unit] for unit in ("KB", "MB", "GB", "TB")}


def parse_bytes(text: str, *, what: str = "size") -> int:
    """Bytes of `text`: a number and B, kB, MB, GB (powers of 1000) or KiB, MiB, GiB (of 1024); raises SpecError.

    >>> parse_bytes("150MB"), parse_bytes("1.5 GiB"), parse_bytes("4096")
    (150000000, 1610612736, 4096)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(found[2].upper()) if found else None
    amount = int(float(found[1]) * unit) if found and unit else 0
    if not 0 < amount < 2**62:
        raise SpecError(f"{what} {text!r}: wanted an amount above 0 such as 150MB, 512MiB or 4GB")
    return amount


def meant(count: int) -> str:
    """A hint for an amount that is too small to be one: as MB it may have been meant.

    >>> meant(150), meant(4000), meant(2_000_000)
    (' (was 150MB meant?)', ' (was 4MB meant?)', '')
    """
    if count >= 10**6:
        return ""
    return f" (was {count // 1000 if count >= 1000 else count}MB meant?)"


def parse_rate(text: str, *, what: str = "rate") -> int:
    """Bytes a second of `text`, written like ``40MB/s`` (the ``/s`` may be left out); raises SpecError.

    >>> parse_rate("40MB/s"), parse_rate("2GB")
    (40000000, 2000000000)
    """
    try:
        return parse_bytes(re.sub(r"\s*/\s*s(ec)?\s*$", "", text), what=what)
    except SpecError:
        raise SpecError(f"{what} {text!r}: wanted bytes a second such as 40MB/s or 2GB/s") from None
