"""Energy of the processor package from RAPL's counters, where the system lets us read them."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


def _zones() -> list[Path]:
    return sorted(zone for zone in POWERCAP.glob("intel-rapl:*") if zone.name.count(":") == 1)


def read_uj() -> dict[Path, int] | None:
    """Counters of all packages in microjoules, or None where there are none or they are not ours to read."""
    try:
        return {zone: int((zone / "energy_uj").read_text()) for zone in _zones()} or None
    except (OSError, ValueError):
        return None


def since_mj(before: dict[Path, int] | None) -> float | None:
    """Millijoules since `before` (a counter may have wrapped once), or None where unavailable."""
    after = read_uj()
    if before is None or after is None:
        return None
    total = 0
    for zone, start in before.items():
        spent = after[zone] - start
        if spent < 0:
            spent += int((zone / "max_energy_range_uj").read_text())
        total += spent
    return total / 1e3
