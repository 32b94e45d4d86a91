"""Tell what genmote finds here: folders, kernels, threads, memory, models, extras."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

from genmote.cli._output import Output, columns, size
from genmote.spec import dataclass

#: Extra → (a package of it that must be there, what it is for).
EXTRAS = {
    "grammar": ("llguidance", "JSON schemas and grammars"),
    "server": ("uvicorn", "genmote serve"),
    "workbench": ("torch", "the torch op set"),
    "bench": ("xllamacpp", "comparison with llama.cpp"),
}


@dataclass(frozen=True)
class Settings:
    pass


def run(settings: Settings, out: Output) -> None:
    from genmote import __version__, home, records
    from genmote.models import store
    from genmote.runtime.threads import default_threads

    kernels = native()
    values: dict[str, Any] = {
        "genmote": __version__,
        "python": platform.python_version(),
        "device": records.device(),
        "home": {
            "path": home.home(),
            "models": folder(home.models_dir()),
            "cache": folder(home.cache_dir()),
            "from": "GENMOTE_HOME" if os.environ.get("GENMOTE_HOME") else "the user's data folder",
        },
        "kernels": kernels,
        "threads": default_threads(),
        "models": [entry.name for entry in store.list_models()],
        "extras": {name: version(package) for name, (package, _) in EXTRAS.items()},
        "offline": os.environ.get("GENMOTE_OFFLINE", "") not in ("", "0"),
    }
    out.result(values, _text(values))


def native() -> dict[str, Any]:
    """Whether the native kernels are here, which instruction sets they have and which is used."""
    if importlib.util.find_spec("genmote.ops._native") is None:
        return {"native": False, "why": "not built: no working C++ compiler when genmote was installed"}
    try:
        _native = importlib.import_module("genmote.ops._native")
    except ImportError as fault:
        return {"native": False, "why": str(fault)}
    names = list(_native.isa_names())
    return {
        "native": True,
        "built": names,
        "runnable": [name for name in names if _native.isa_runs(name)],
        "used": os.environ.get("GENMOTE_ISA") or _native.best_isa(),
    }


def folder(path: Path) -> dict[str, Any]:
    """A state folder: what it holds and whether it can be written (an absent one: whether it could be made)."""
    there = path
    while not there.exists():
        there = there.parent
    used = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0
    return {"path": path, "exists": path.is_dir(), "writable": os.access(there, os.W_OK), "size_bytes": used}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _text(values: dict[str, Any]) -> str:
    device, kernels = values["device"], values["kernels"]
    memory = "unknown" if device["memory_bytes"] is None else size(device["memory_bytes"])
    rows = [
        ["genmote", f"{values['genmote']} on Python {values['python']}, {device['system']} {device['machine']}"],
        ["processor", f"{device['cpu']}, {device['cores']} cores, {values['threads']} threads used by default"],
        ["memory", memory],
    ]
    if kernels["native"]:
        rows.append(["kernels", f"native, {kernels['used']} (runnable here: {', '.join(kernels['runnable'])})"])
    else:
        rows.append(["kernels", f"none ({kernels['why']}); NumPy computes instead, tens of times slower"])
    rows.append(["home", f"{values['home']['path']} ({values['home']['from']})"])
    for name in ("models", "cache"):
        place = values["home"][name]
        told = "writable" if place["writable"] else "not writable"
        rows.append([f"  {name}/", f"{size(place['size_bytes'])}, {told}" if place["exists"] else f"absent, {told}"])
    rows.append(["models", ", ".join(values["models"]) or "none; try genmote pull smollm2-135m"])
    rows.append(["network", "shut by GENMOTE_OFFLINE" if values["offline"] else "used by genmote pull alone"])
    for name, (package, purpose) in EXTRAS.items():
        found = values["extras"][name]
        told = f"{package} {found}" if found else f"absent: pip install 'genmote[{name}]'"
        rows.append([f"[{name}]", f"{told} ({purpose})"])
    return columns(rows)
