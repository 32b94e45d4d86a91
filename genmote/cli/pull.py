"""Fetch models by name, so that they are here.

    genmote pull smollm2-135m
    genmote pull hf:ORG/REPO/FILE.gguf

A model that is here is not fetched again. An interrupted pull leaves nothing half. Hub files use HF_TOKEN and
HF_ENDPOINT where they are set; GENMOTE_OFFLINE=1 forbids fetching.
"""

from __future__ import annotations

from genmote.cli._output import Bar, Output, size
from genmote.spec import dataclass, setting


@dataclass(frozen=True)
class Settings:
    models: tuple[str, ...] = setting("names: a named model or hf:ORG/REPO/FILE.gguf", positional=True)


def run(settings: Settings, out: Output) -> None:
    from genmote.models import store

    done = []
    for name in settings.models:
        here = store.find(name) if name in store.names() or name.startswith("hf:") else None
        with Bar() as bar:
            path = store.pull(name, progress=bar)
        entry = {"name": name, "path": path, "size_bytes": path.stat().st_size, "fetched": here is None}
        done.append(entry)
        out.say(f"{name}: {path} ({size(path.stat().st_size)}{'' if here is None else ', was here'})")
    out.result({"models": done}, "")
