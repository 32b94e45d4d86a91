"""The encoder while it is trained: the very code that runs it (`models/encoder.py`), over PyTorch.

Roundings of the engine's pass (inputs of 8-bit matrices, keys and values to float16) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from genmote.models import encoder
from genmote.models.encoder import Form, Weights
from genmote.models.patches import NAMES, Patches, letters
from genmote.ops.layer import Layer, Linear, Norm
from genmote.ops.protocol import Span
from genmote.ops.torch_ops import Matrix, TorchOps

Tensor = torch.Tensor
STILL = ("portrait_mean.weight", "portrait_scale.weight")  # found out of the signals before training, and not learnt


class SpanOps(TorchOps):
    """The torch op set for many short sequences, each from its beginning: those of one length in one call."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), torch.float32, round_inputs=False)

    def cache(self, *shape: Any, **settings: Any) -> Any:
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], layer: Layer) -> Tensor:
        starts: dict[int, list[int]] = {}
        for span in spans:
            starts.setdefault(span.count, []).append(span.start)
        out = torch.empty(len(q), layer.spec.n_heads * layer.spec.head_dim)
        for length, some in starts.items():
            rows = torch.from_numpy(np.add.outer(np.array(some), np.arange(length)))  # (B, length)
            own, keys, values = (x[rows].transpose(1, 2) for x in (q, k, v))
            found = F.scaled_dot_product_attention(own, keys, values, is_causal=True, scale=layer.spec.scale)
            out = out.index_put((rows.reshape(-1),), found.transpose(1, 2).reshape(rows.numel(), -1))
        return out


class Network(torch.nn.Module):
    """An encoder's numbers as parameters. `numbers`: by the names of the file's tensors, as `encoder.fresh` gives."""

    def __init__(self, form: Form, numbers: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__()
        self.form, self.ops = form, SpanOps()
        self.held = torch.nn.ParameterDict()
        for name, x in numbers.items():
            if name in STILL:
                self.register_buffer(name.replace(".", "/"), torch.from_numpy(x.copy()))
            else:
                self.held[name.replace(".", "/")] = torch.nn.Parameter(torch.from_numpy(x.copy()))
        self.weights = Weights(form, self)

    def linear(self, name: str, out: int, cols: int) -> Linear:
        return Linear(Matrix(self.held[f"{name}.weight".replace(".", "/")], False))

    def norm(self, name: str, length: int, eps: float) -> Norm:
        return Norm(self.held[f"{name}.weight".replace(".", "/")], eps=eps)

    def vector_numbers(self, name: str, length: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.get_buffer(f"{name}/weight").numpy()
        return found

    def embed(self, signals: Sequence[Patches]) -> Tensor:
        """Embeddings of some signals, one after the other, (sum of T / join, out)."""
        found: Tensor = encoder.forward(self.ops, self.weights, signals)
        return found

    def numbers(self) -> dict[str, NDArray[np.float32]]:
        found = {name.replace("/", "."): x.detach().numpy() for name, x in self.held.items()}
        return found | {name: self.get_buffer(name.replace(".", "/")).numpy() for name in STILL}

    def bridge(self) -> list[Tensor]:
        """What stands between the blocks and the language model: the projector."""
        parts = ("joined_norm", "bridge_gate", "bridge_up", "bridge_down", "output_norm", "portrait_out")
        return [self.held[f"{part}/weight"] for part in parts]


class Heads(torch.nn.Module):
    """What asks the encoder directly, before there is a language model: a question, told by its letters, looks at the
    embeddings of its signals, and their mean, and says which of its choices is so, and how large a number is. Thrown
    away after."""

    def __init__(self, form: Form, seed: int, width: int = 256) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.parts = 4
        # Where an embedding stands among its signals', which a language model knows, too.
        self.places = torch.nn.Parameter(0.5 * torch.randn(4 * form.embeddings, form.out))
        self.question = torch.nn.Sequential(torch.nn.Linear(NAMES, width), torch.nn.SiLU())
        self.query = torch.nn.Linear(width, self.parts * width)
        self.key = torch.nn.Linear(form.out, width)
        self.value = torch.nn.Linear(form.out, width)
        self.all = torch.nn.Sequential(torch.nn.LayerNorm(form.out), torch.nn.Linear(form.out, width))
        self.mixed = torch.nn.Sequential(
            torch.nn.Linear((self.parts + 2) * width, 2 * width), torch.nn.SiLU(), torch.nn.Linear(2 * width, width)
        )
        self.answer = torch.nn.Linear(NAMES, width)
        self.number = torch.nn.Linear(width, 8)

    def forward(self, embeddings: Sequence[Tensor], questions: Sequence[str]) -> Tensor:
        """(B, width) of each question about its own embeddings (E, out)."""
        asked = self.question(told(questions))  # (B, W)
        count, width = asked.shape
        most = max(map(len, embeddings))
        held = torch.nn.utils.rnn.pad_sequence(list(embeddings), batch_first=True)  # (B, E, out)
        size = held.detach().square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-6)
        hidden = torch.arange(most)[None] >= torch.tensor([len(one) for one in embeddings])[:, None]
        # The mean of them all is what is learnt from first: without it kinds of movements are not, in so many steps.
        parts = torch.split((held / size)[~hidden], [len(one) for one in embeddings])
        mean = torch.stack([one.mean(dim=0) for one in parts])
        held = held / size + self.places[torch.arange(most) % len(self.places)]
        scores = torch.einsum("bpw,bew->bpe", self.query(asked).reshape(count, self.parts, width), self.key(held))
        shares = torch.softmax((scores / width**0.5).masked_fill(hidden[:, None], -torch.inf), dim=-1)
        seen = torch.einsum("bpe,bew->bpw", shares, self.value(held)).reshape(count, -1)
        mixed: Tensor = self.mixed(torch.cat([asked, seen, self.all(mean)], dim=1))
        return mixed

    def choices(self, found: Tensor, choices: Sequence[str]) -> Tensor:
        """(len(choices),) logits of what one question's (width,) says of its choices."""
        width = found.shape[0]
        logits: Tensor = F.layer_norm(self.answer(told(choices)), (width,)) @ F.layer_norm(found, (width,)) / width**0.5
        return logits


def told(texts: Sequence[str]) -> Tensor:
    """(B, NAMES) of texts, by their letters."""
    return torch.from_numpy(np.stack([letters(text) for text in texts]) * np.float32(8))
