"""Libraries of the extra `signals`, for files that we do not read ourselves."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from genmote.errors import SignalError


def library(name: str, path: Path) -> Any:
    """The module `name`, for reading the file; SignalError where it is not installed, or does not load."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        package = name.partition(".")[0].replace("PIL", "pillow")
        raise SignalError(f"{path}: to be read it needs {package}: run pip install 'genmote[signals]'") from None
