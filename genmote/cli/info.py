"""Tell what a model file holds: architecture, sizes, tensor types, tokenizer, chat template, metadata.

genmote info smollm2-135m
genmote info model.gguf --tensors
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from genmote.cli._model import find
from genmote.cli._output import Output, columns, size
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.models.gguf import ModelFile


@dataclass(frozen=True)
class Settings:
    model: str = setting("a model's name or path", positional=True)
    tensors: bool = setting("list every tensor", default=False)
    metadata: bool = setting("list every metadata key", default=False)


def run(settings: Settings, out: Output) -> None:
    from genmote.models.gguf import ModelFile
    from genmote.models.store import describe

    path = find(settings.model)
    model = ModelFile.open(path)
    entry = describe(path)
    meta = model.metadata
    architecture = model.architecture

    def own(key: str) -> Any:
        return meta.get(f"{architecture}.{key}")

    vocabulary = meta.get("tokenizer.ggml.tokens")
    values: dict[str, Any] = {
        "path": path,
        "name": meta.get("general.name"),
        "architecture": architecture,
        "size_bytes": path.stat().st_size,
        "sha256": model.sha256(),
        "gguf_version": model.version,
        "parameters": entry.parameters,
        "bits_per_weight": entry.bits_per_weight,
        "licence": meta.get("general.license"),
        "layers": own("block_count"),
        "width": own("embedding_length"),
        "heads": own("attention.head_count"),
        "kv_heads": own("attention.head_count_kv"),
        "context": own("context_length"),
        "vocabulary": None if vocabulary is None else len(vocabulary),
        "tokenizer": meta.get("tokenizer.ggml.model"),
        "chat_template": "tokenizer.chat_template" in meta,
        "tensor_types": _types(model),
    }
    values = {key: _short(value) for key, value in values.items()}
    if settings.metadata:
        values["metadata"] = {key: _short(value) for key, value in meta.items()}
    if settings.tensors:
        values["tensors"] = [
            {"name": t.name, "type": t.type, "shape": list(t.shape), "size_bytes": t.nbytes}
            for t in model.tensors.values()
        ]
    out.result(values, _text(values))


def _types(model: ModelFile) -> dict[str, int]:
    """Bytes of each tensor type, the greatest first."""
    counted: Counter[str] = Counter()
    for tensor in model.tensors.values():
        counted[tensor.type] += tensor.nbytes
    return dict(counted.most_common())


def _short(value: Any) -> Any:
    """A metadata value that can be printed: arrays as their kind and length, unless they are short."""
    if hasattr(value, "__len__") and not isinstance(value, (str, dict, list, tuple)):
        return [_short(item) for item in value] if len(value) <= 16 else f"{len(value)} values"
    return value


def _text(values: dict[str, Any]) -> str:
    apart = ("tensors", "metadata")
    shown = {key: value for key, value in values.items() if value is not None and key not in apart}
    shown["size_bytes"] = f"{values['size_bytes']} ({size(values['size_bytes'])})"
    shown["chat_template"] = "yes" if values["chat_template"] else "no"
    shown["tensor_types"] = ", ".join(f"{name} {size(count)}" for name, count in values["tensor_types"].items())
    text = columns([[key.replace("_", " "), str(value)] for key, value in shown.items()])
    if "metadata" in values:
        lines = [[key, str(value).replace("\n", "\\n")[:100]] for key, value in values["metadata"].items()]
        text += "\n\n" + columns(lines)
    if "tensors" in values:
        rows = [
            [t["name"], t["type"], "x".join(map(str, t["shape"])), size(t["size_bytes"])] for t in values["tensors"]
        ]
        text += "\n\n" + columns([["tensor", "type", "shape", "size"], *rows])
    return text
