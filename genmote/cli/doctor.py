"""Tell what genmote finds here: folders, kernels, threads, memory, models, extras, and what is wrong.

Settings that cannot work (a GENMOTE_HOME that is a file, an unknown GENMOTE_OPS or GENMOTE_ISA) are told one a line at
the end; the exit status is 2 then.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

from genmote.cli._output import Output, columns, size
from genmote.errors import SpecError, UserError
from genmote.spec import dataclass

#: Extra → (a package of it that must be there, what it is for).
EXTRAS = {
    "grammar": ("llguidance", "JSON schemas and grammars"),
    "server": ("uvicorn", "genmote serve"),
    "workbench": ("torch", "the torch op set"),
    "mqtt": ("paho-mqtt", "genmote signal watch"),
    "signals": ("pyarrow", "Parquet, FLAC, pictures"),
    "bench": ("xllamacpp", "comparison with llama.cpp"),
}


@dataclass(frozen=True)
class Settings:
    pass


def run(settings: Settings, out: Output) -> int:
    from genmote import __version__, home, records
    from genmote.device.sensors import Sensors
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
        "sensors": Sensors().found(),
        "models": [entry.name for entry in store.list_models()],
        "extras": {name: version(package) for name, (package, _) in EXTRAS.items()},
        "offline": os.environ.get("GENMOTE_OFFLINE", "") not in ("", "0"),
    }
    values["problems"] = problems = faults(kernels)
    out.result(values, "\n".join([_text(values), *(f"PROBLEM  {problem}" for problem in problems)]))
    return UserError.exit_status if problems else 0


def faults(kernels: dict[str, Any]) -> list[str]:
    """What cannot work as it is set, one line each."""
    from genmote import home, ops

    found = []
    if (root := home.home()).exists() and not root.is_dir():
        found.append(f"GENMOTE_HOME: {root} is a file, wanted a folder")
    try:
        home.check_layout()
    except SpecError as fault:
        found.append(str(fault))
    wanted, isa = os.environ.get("GENMOTE_OPS"), os.environ.get("GENMOTE_ISA")
    if wanted and wanted not in ops.names():
        found.append(f"GENMOTE_OPS={wanted}: there are {', '.join(ops.names())}; choose one of these or unset it")
    elif wanted == "native" and not kernels["native"]:
        found.append("GENMOTE_OPS=native: the kernels are not here; unset it, or install a C++ compiler and reinstall")
    elif wanted == "torch" and importlib.util.find_spec("torch") is None:
        found.append("GENMOTE_OPS=torch: PyTorch is not here; unset it, or pip install 'genmote[workbench]'")
    if isa and not kernels["native"]:
        found.append(f"GENMOTE_ISA={isa} has no effect without the native kernels: unset it")
    elif isa and isa not in kernels["runnable"]:
        found.append(f"GENMOTE_ISA={isa}: this machine runs {', '.join(kernels['runnable'])}; choose one of these")
    return found


def native() -> dict[str, Any]:
    """Whether the native kernels are here, which instruction sets they have and which is used."""
    if importlib.util.find_spec("genmote.ops._native") is None:
        return {"native": False, "why": "not built: no working C++ compiler when genmote was installed"}
    try:
        _native = importlib.import_module("genmote.ops._native")
    except ImportError as fault:
        # The loader's word on a shared object tells what is wrong with it; Python's on modules tells a user nothing.
        said = f": {fault}" if fault.path and str(fault.path) in str(fault) else ""
        return {"native": False, "why": f"built, but they cannot be loaded{said}; reinstall genmote"}
    names = list(_native.isa_names())
    runnable = [name for name in names if _native.isa_runs(name)]
    wanted = os.environ.get("GENMOTE_ISA")
    return {
        "native": True,
        "built": names,
        "runnable": runnable,
        "used": _native.best_isa() if not wanted else wanted if wanted in runnable else None,
    }


def folder(path: Path) -> dict[str, Any]:
    """A state folder: what it holds and whether it can be written (an absent one: whether it could be made)."""
    there = path
    while not there.exists():
        there = there.parent
    used = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0
    writable = there.is_dir() and os.access(there, os.W_OK)
    return {"path": path, "exists": path.is_dir(), "writable": writable, "size_bytes": used}


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
        rows.append(
            ["kernels", f"native, {kernels['used'] or 'none'} (runnable here: {', '.join(kernels['runnable'])})"]
        )
    else:
        rows.append(["kernels", f"none ({kernels['why']}); NumPy computes instead, tens of times slower"])
    rows.append(["sensors", "what the governor (--governor) sees here"])
    rows += [[f"  {sensor}", told] for sensor, told in values["sensors"].items()]
    rows.append(["home", f"{values['home']['path']} ({values['home']['from']})"])
    for name in ("models", "cache"):
        place = values["home"][name]
        told = "writable" if place["writable"] else "not writable"
        rows.append([f"  {name}/", f"{size(place['size_bytes'])}, {told}" if place["exists"] else f"absent, {told}"])
    rows.append(["models", ", ".join(values["models"]) or "none; try genmote pull smollm2-135m"])
    rows.append(
        ["network", "shut by GENMOTE_OFFLINE" if values["offline"] else "used by genmote pull and signal watch alone"]
    )
    for name, (package, purpose) in EXTRAS.items():
        found = values["extras"][name]
        told = f"{package} {found}" if found else f"absent: pip install 'genmote[{name}]'"
        rows.append([f"[{name}]", f"{told} ({purpose})"])
    return columns(rows)
