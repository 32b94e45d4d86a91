"""List the kinds of signals that genmote knows, or tell all about one.

genmote signal modalities
genmote signal modalities ecg --json
"""

from __future__ import annotations

from dataclasses import asdict

from genmote.cli._output import Output, columns
from genmote.spec import dataclass, setting


@dataclass(frozen=True)
class Settings:
    name: str | None = setting("a modality's name", default=None, positional=True)


def run(settings: Settings, out: Output) -> None:
    from genmote.signals import modality

    if settings.name is not None:
        found = modality.load(settings.name)
        rows = [[channel, unit or "-"] for channel, unit in zip(found.channels, found.units, strict=True)]
        text = [
            found.title,
            f"{found.kind}, codec {found.codec}, for {', '.join(found.domains)}",
            f"readers  {', '.join(found.readers) or 'none yet'}",
            f"sample   {_sample(found)}: genmote signal show {settings.name}",
            "",
            columns([["channel" if found.kind != "records" else "field", "unit"], *rows]),
        ]
        out.result({"name": settings.name, **asdict(found)}, "\n".join(text))
        return
    known = {name: modality.load(name) for name in modality.names()}
    table = [["name", "kind", "what", "units", "readers", "codec", "sample"]]
    for name, one in known.items():
        units = ", ".join(dict.fromkeys(unit for unit in one.units if unit)) or "-"
        table.append([name, one.kind, one.title, units, ", ".join(one.readers) or "-", one.codec, _sample(one)])
    out.result({"modalities": [{"name": name, **asdict(one)} for name, one in known.items()]}, columns(table))


def _sample(found: object) -> str:
    recording = getattr(found, "recording", None)
    return f"recording {recording}" if recording else "synthetic"
