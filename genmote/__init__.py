"""Generative AI on IoT devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Engine", "__version__"]

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine


def __getattr__(name: str) -> Any:
    # Lazy, so that `import genmote` stays far below its 150 ms budget.
    if name == "Engine":
        from genmote.runtime.engine import Engine

        return Engine
    raise AttributeError(f"module 'genmote' has no attribute {name!r}")
