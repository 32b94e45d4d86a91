"""List the devices that genmote has profiles of, or tell all about one, with the source of each figure.

genmote devices
genmote devices pi-zero-2w
genmote devices ./my-board.toml --json
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from genmote.cli._output import Output, columns
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.device.profile import Profile


@dataclass(frozen=True)
class Settings:
    name: str | None = setting("a device's name, or a profile file (.toml)", default=None, positional=True)


def run(settings: Settings, out: Output) -> None:
    from genmote.device import profile

    if settings.name is not None:
        found = profile.load(settings.name)
        out.result({"name": settings.name, **asdict(found)}, detail(found))
        return
    devices = {name: profile.load(name) for name in profile.names()}
    out.result({"devices": [{"name": name, **asdict(d)} for name, d in devices.items()]}, columns(table(devices)))


def table(devices: dict[str, Profile]) -> list[list[str]]:
    """The devices' main figures, one row each, heads first."""
    rows = [["name", "memory", "usable", "reads", "cores", "kernels", "float32", "int8", "storage", "idle", "load"]]
    for name, d in devices.items():
        power = ["", ""] if d.power is None else [f"{d.power.idle_w:g} W", f"{d.power.load_w:g} W"]
        rows.append(
            [
                name,
                f"{d.memory.total_mib} MiB",
                "refused" if d.refused else f"{d.memory.usable_mib} MiB",
                f"{d.bandwidth.read_gb_s:g} GB/s",
                str(d.compute.cores),
                d.compute.isa,
                f"{d.compute.f32_gflops:g} G/s",
                f"{d.compute.int8_gops:g} G/s",
                f"{d.storage.kind} {d.storage.read_mb_s:g} MB/s",
                *power,
            ]
        )
    return rows


def detail(device: Profile) -> str:
    """All figures of one device, each group with its source."""
    lines = [device.title, f"{device.chip}, {device.arch}"]
    if device.refused:
        lines.append(f"genmote does not run there: {device.refused}")
    if device.measured:
        lines.append(device.how_measured + (": the figures are too low" if device.under_load else ""))
    for f in fields(device):
        part: Any = getattr(device, f.name)
        if not hasattr(part, "source"):
            continue
        values = {inner.name: getattr(part, inner.name) for inner in fields(part) if inner.name != "source"}
        lines.append(f"\n{f.name}")
        rows = [
            ["", name.replace("_", " "), f"{v:g}" if isinstance(v, float) else str(v)] for name, v in values.items()
        ]
        lines.append(columns([row for row in rows if row[2] != "None"]))
        lines.append(f"  source: {part.source}")
    return "\n".join(lines)
