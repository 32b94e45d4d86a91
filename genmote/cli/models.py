"""List the models that are here, and the named ones that could be fetched."""

from __future__ import annotations

from genmote.cli._output import Output, columns, size
from genmote.spec import dataclass


@dataclass(frozen=True)
class Settings:
    pass


def run(settings: Settings, out: Output) -> None:
    from genmote import home
    from genmote.models import store

    entries = store.list_models()
    absent = {name: store.source(name) for name in store.names() if store.find(name) is None}
    values = {
        "folder": home.models_dir(),
        "models": [vars(entry) for entry in entries],
        "to_pull": [
            {"name": name, "title": s.title, "licence": s.licence, "size_bytes": s.size_bytes}
            for name, s in absent.items()
        ],
    }
    rows = [["name", "size", "bits/weight", "architecture", "licence"]]
    for entry in entries:
        bits = "" if entry.bits_per_weight is None else f"{entry.bits_per_weight:.2f}"
        told = entry.fault or entry.licence or "not stated"
        rows.append([entry.name, size(entry.size_bytes), bits, entry.architecture or "", told])
    text = columns(rows) if entries else f"no models in {home.models_dir()}"
    if absent:
        listed = (f"{name} ({size(s.size_bytes)}, {s.licence})" for name, s in absent.items())
        text += "\n\nto fetch with genmote pull: " + ", ".join(listed)
    values["shipped"] = store.zoo()
    text += "\n\nin the package: " + ", ".join(store.zoo())
    out.result(values, text)
