"""The small files of a Hugging Face model folder, read when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from genmote.errors import ModelFileError
from genmote.models.gguf_values import one_line
from genmote.models.safetensors import parse_json


class Folder:
    """A model folder; the same file is parsed once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.json = cache(self._json)

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def _json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file; empty where there is none. ``ModelFileError`` for a damaged one."""
        return parse_json(self.path / name) if self.has(name) else {}

    def text(self, name: str) -> str | None:
        """A text file; None where there is none."""
        if not self.has(name):
            return None
        try:
            return (self.path / name).read_bytes().decode("utf-8")
        except OSError as error:
            raise ModelFileError(f"{self.path / name}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            raise ModelFileError(f"{self.path / name}: is no UTF-8 text; fetch it again") from None

    def fail(self, name: str, what: str) -> ModelFileError:
        """The error to raise about one of the files; it may hold anything, so what cannot be shown is escaped."""
        return ModelFileError(f"{self.path / name}: {one_line(what)}")


def steps_of(value: Any, inner: str) -> list[Mapping[str, Any]]:
    """A tokenizer.json's step, or the steps of a sequence, which lie under `inner`."""
    return mappings(value.get(inner, [value])) if isinstance(value, Mapping) else []


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list; a file may hold anything in their place."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []
