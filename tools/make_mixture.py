"""Train a small mixture-of-experts language model on text, on a CPU, and write it with its card.

    python tools/make_mixture.py TEXT ... --out FOLDER [--minutes 40] [--threads 1] [--start FOLDER/weights.gguf]

TEXT are text files, or folders whose .txt files are read. The last tenth of each is held out: half of it chooses the
step that is kept, half is what the card's figures are measured on. The model is a `qwen3moe` (arXiv 2505.09388) of
some nine million weights with its own byte-level vocabulary; FOLDER gets `FOLDER.gguf` (the matrices as --type says),
`weights.gguf` (the same in F16) and `train.jsonl`. Needs the extra `workbench` and the package `tokenizers`.

The router is trained with the load-balancing loss of Fedus et al. 2021 (arXiv 2101.03961), the z-loss of Zoph et al.
2022 (arXiv 2202.08906), and a term that asks neighbouring tokens for the same experts, so that a small cache of them is
worth something on a device: the share of the router's softmax that goes to other experts than the token before chose.
--locality is its factor; 0 trains without it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn

from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.ops import quant

END = "<|endoftext|>"


@dataclass(frozen=True)
class Form:
    """What is trained; widths in numbers."""

    vocab_size: int = 2048
    context_length: int = 256
    width: int = 192
    layers: int = 8
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 16
    experts_used: int = 2
    expert_width: int = 96
    eps: float = 1e-6
    rope_base: float = 10000.0


@dataclass(frozen=True)
class Course:
    """How it is trained."""

    minutes: float = 40.0
    steps: int = 0  # 0: as many as fit into the minutes, by the pace of the first ones
    rows: int = 8  # texts of context_length tokens in a step
    rate: float = 3e-3
    decay: float = 0.1
    dropout: float = 0.0
    balance: float = 0.01
    z: float = 1e-3
    locality: float = 0.05
    seed: int = 0


class Mixture(nn.Module):
    """Experts of one layer: router (E, D), gate and up (E, F, D), down (E, D, F)."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        e, d, f = form.experts, form.width, form.expert_width
        self.router = nn.Parameter(torch.randn(e, d) * d**-0.5)
        self.gate = nn.Parameter(torch.randn(e, f, d) * d**-0.5)
        self.up = nn.Parameter(torch.randn(e, f, d) * d**-0.5)
        self.down = nn.Parameter(torch.randn(e, d, f) * (f * 2 * form.layers) ** -0.5)
        self.losses: tuple[Tensor, Tensor, Tensor] | None = None  # balance, z, locality of the last call

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        scores = F.linear(x, self.router)  # (B, T, E)
        shares = scores.softmax(-1)
        weights, chosen = shares.topk(self.form.experts_used, dim=-1)
        if self.training:
            busy = F.one_hot(chosen, self.form.experts).float().mean((0, 1, 2))  # (E,), sums to 1
            balance = self.form.experts * (busy * shares.mean((0, 1))).sum()
            moved = 1 - shares[:, 1:].gather(-1, chosen[:, :-1]).sum(-1)
            self.losses = balance, scores.logsumexp(-1).square().mean(), moved.mean()
        weights = (weights / weights.sum(-1, keepdim=True)).reshape(b * t, -1)
        flat, chosen = x.reshape(b * t, d), chosen.reshape(b * t, -1)
        order = chosen.flatten().argsort()  # one expert's rows after the other's
        counts = chosen.flatten().bincount(minlength=self.form.experts).tolist()
        parts = []
        for e, h in enumerate(flat[order // self.form.experts_used].split(counts)):
            inner = F.silu(F.linear(h, self.gate[e])) * F.linear(h, self.up[e])
            parts.append(F.linear(inner, self.down[e]))
        out = torch.cat(parts)[order.argsort()].view(b * t, -1, d)
        return (out * weights[:, :, None]).sum(1).view(b, t, d)


class Block(nn.Module):
    """Qwen3's attention, then the mixture."""

    def __init__(self, form: Form, dropout: float) -> None:
        super().__init__()
        self.form, self.drop = form, nn.Dropout(dropout) if dropout else nn.Identity()
        queries, keys = form.heads * form.head_dim, form.kv_heads * form.head_dim
        self.attn_norm, self.ffn_norm = (nn.RMSNorm(form.width, form.eps) for _ in range(2))
        self.q_norm, self.k_norm = (nn.RMSNorm(form.head_dim, form.eps) for _ in range(2))
        self.q, self.k, self.v = (nn.Linear(form.width, n, bias=False) for n in (queries, keys, keys))
        self.o = nn.Linear(queries, form.width, bias=False)
        nn.init.normal_(self.o.weight, std=(queries * 2 * form.layers) ** -0.5)
        self.mixture = Mixture(form)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        h = self.attn_norm(x)
        q = self.q_norm(self.q(h).view(b, t, self.form.heads, -1)).transpose(1, 2)
        k = self.k_norm(self.k(h).view(b, t, self.form.kv_heads, -1)).transpose(1, 2)
        v = self.v(h).view(b, t, self.form.kv_heads, -1).transpose(1, 2)
        q, k = (turned(a, cos[:t], sin[:t]) for a in (q, k))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.drop(self.o(h.transpose(1, 2).reshape(b, t, -1)))
        return x + self.drop(self.mixture(self.ffn_norm(x)))


class Model(nn.Module):
    """Token ids (B, T) → logits (B, T, V)."""

    def __init__(self, form: Form, dropout: float) -> None:
        super().__init__()
        self.form = form
        self.embed = nn.Embedding(form.vocab_size, form.width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(form, dropout) for _ in range(form.layers))
        self.norm = nn.RMSNorm(form.width, form.eps)
        self.head = nn.Linear(form.width, form.vocab_size, bias=False)
        half = form.head_dim // 2
        angle = torch.arange(form.context_length)[:, None] * form.rope_base ** (-torch.arange(half) / half)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits: Tensor = self.head(self.norm(x))
        return logits


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding over halves, (B, H, T, Dh)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


# -- text -------------------------------------------------------------------------------------------------------------


def read(paths: list[Path]) -> tuple[str, str, str]:
    """Text to train on, to choose by, and to measure on: nine tenths and two twentieths of each file, in order."""
    files = [file for path in paths for file in (sorted(path.rglob("*.txt")) if path.is_dir() else [path])]
    if not files:
        raise SystemExit(f"no text in {', '.join(map(str, paths))}: name text files, or folders with .txt files")
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        ends = [0, round(len(lines) * 0.9), round(len(lines) * 0.95), len(lines)]
        for part, start, end in zip(parts, ends, ends[1:], strict=False):
            part.append("".join(lines[start:end]))
    return "".join(parts[0]), "".join(parts[1]), "".join(parts[2])


def vocabulary(text: str, size: int) -> tuple[ByteLevelBPETokenizer, dict[str, Any]]:
    """A tokenizer trained on the text, and the GGUF keys that describe it."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([text], vocab_size=size, special_tokens=[END], show_progress=False)
    state = json.loads(bpe._tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    if len(tokens) != size:
        raise SystemExit(f"the text gives {len(tokens)} tokens, {size} were wanted: give more text")
    return bpe, {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3] + [1] * (size - 1), np.int32),
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in state["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }


def batches(tokens: Tensor, form: Form, course: Course) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless rows of the text from random places: inputs and what follows them, (rows, context_length)."""
    draw = torch.Generator().manual_seed(course.seed)
    while True:
        starts = torch.randint(len(tokens) - form.context_length - 1, (course.rows,), generator=draw)
        rows = torch.stack([tokens[s : s + form.context_length + 1] for s in starts.tolist()])
        yield rows[:, :-1], rows[:, 1:]


# -- training ---------------------------------------------------------------------------------------------------------


def train(model: Model, tokens: Tensor, choose: Tensor, course: Course, keep: Callable[[], None], log: Any) -> None:
    """Train; `keep` is called whenever the model is better on `choose` than it ever was."""
    form = model.form
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": course.decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=course.rate, betas=(0.9, 0.95))
    steps, started, best = course.steps, time.perf_counter(), math.inf
    for step, (inputs, wanted) in enumerate(batches(tokens, form, course)):
        if step == 10 and not course.steps:
            steps = int(10 * course.minutes * 60 / (time.perf_counter() - started))
        spent = (time.perf_counter() - started) / (course.minutes * 60)
        done = step / steps if course.steps else max(spent, step / steps if steps else 0.0)
        rate = course.rate * min((step + 1) / 50, 0.05 + 0.95 * (1 + math.cos(math.pi * min(done, 1.0))) / 2)
        for group in optimiser.param_groups:
            group["lr"] = rate
        model.train()
        logits = model(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        sides = [sum(part) for part in zip(*(b.mixture.losses for b in model.blocks), strict=True)]
        balance, z, moved = sides
        (loss + course.balance * balance + course.z * z + course.locality * moved).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        last = done >= 1.0
        if step % 100 == 99 or last:
            held = nll(model, choose)
            note = {
                "step": step + 1,
                "seconds": round(time.perf_counter() - started, 1),
                "loss": round(loss.item(), 4),
                "held_out": round(held, 4),
                "balance": round(balance.item() / form.layers, 4),
                "moved": round(moved.item() / form.layers, 4),
            }
            print(json.dumps(note), file=log, flush=True)
            print(f"step {step + 1} of about {steps}: loss {loss.item():.3f}, held out {held:.3f}", flush=True)
            if held < best:
                best = held
                keep()
        if last:
            break


@torch.no_grad()
def nll(model: Model, tokens: Tensor) -> float:
    """Mean nats for a token over windows of the model's context, each begun anew."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, model.form.context_length):
        row = tokens[start : start + model.form.context_length + 1]
        total += F.cross_entropy(model(row[None, :-1])[0], row[1:], reduction="sum").item()
        count += len(row) - 1
    return total / count


# -- the file ---------------------------------------------------------------------------------------------------------


def tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Every weight under the name that a converter of the family gives it."""
    yield "token_embd.weight", model.embed.weight
    yield "output_norm.weight", model.norm.weight
    yield "output.weight", model.head.weight
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        named = {
            "attn_norm": block.attn_norm.weight,
            "attn_q": block.q.weight,
            "attn_k": block.k.weight,
            "attn_v": block.v.weight,
            "attn_q_norm": block.q_norm.weight,
            "attn_k_norm": block.k_norm.weight,
            "attn_output": block.o.weight,
            "ffn_norm": block.ffn_norm.weight,
            "ffn_gate_inp": block.mixture.router,
            "ffn_gate_exps": block.mixture.gate,
            "ffn_up_exps": block.mixture.up,
            "ffn_down_exps": block.mixture.down,
        }
        for name, weight in named.items():
            yield f"blk.{i}.{name}.weight", weight


def read_weights(model: Model, path: Path) -> None:
    """Take over the weights of a file that `write` made, to go on from them."""
    file = ModelFile.open(path)
    with torch.no_grad():
        for name, weight in tensors(model):
            weight.copy_(torch.from_numpy(file.tensor(name).copy()))


def write(model: Model, path: Path, type: str, keys: dict[str, Any]) -> None:
    """The model as a GGUF file: matrices as `type`, norms and routers in F32."""
    form = model.form
    numbers = {
        "context_length": form.context_length,
        "embedding_length": form.width,
        "block_count": form.layers,
        "feed_forward_length": form.expert_width,
        "expert_feed_forward_length": form.expert_width,
        "attention.head_count": form.heads,
        "attention.head_count_kv": form.kv_heads,
        "attention.key_length": form.head_dim,
        "attention.value_length": form.head_dim,
        "attention.layer_norm_rms_epsilon": form.eps,
        "rope.freq_base": form.rope_base,
        "expert_count": form.experts,
        "expert_used_count": form.experts_used,
    }
    plan = []
    for name, weight in tensors(model):
        array = weight.detach().float().numpy()
        stored = "F32" if array.ndim == 1 or "ffn_gate_inp" in name else type
        data = array if stored == "F32" else quant.quantize(stored, np.ascontiguousarray(array))
        plan.append((name, stored, array.shape, data))
    metadata = {
        "general.architecture": "qwen3moe",
        "general.type": "model",
        "general.quantization_version": 2,
        **{f"qwen3moe.{key}": value for key, value in numbers.items()},
        **keys,
    }
    write_gguf(path, metadata, plan)


def main() -> None:
    parser = argparse.ArgumentParser(description="train a small mixture of experts on text")
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights.gguf of an earlier run on the same text to go on from")
    parser.add_argument("--name", default="mixture-16x")
    parser.add_argument("--licence", default="unknown")
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--threads", type=int, default=1)
    for field, value in asdict(Course()).items():
        parser.add_argument(f"--{field}", type=type(value), default=value)
    given = parser.parse_args()
    course = Course(**{field: getattr(given, field) for field in asdict(Course())})
    form = Form()
    torch.set_num_threads(given.threads)
    torch.manual_seed(course.seed)
    given.out.mkdir(parents=True, exist_ok=True)

    texts = read(given.text)
    bpe, keys = vocabulary(texts[0], form.vocab_size)
    parts = [torch.tensor(bpe.encode(text).ids) for text in texts]
    print(
        f"tokens: {len(parts[0])} to train on, {len(parts[1])} to choose by, {len(parts[2])} to measure on", flush=True
    )
    keys |= {"general.name": given.name, "general.license": given.licence}
    model = Model(form, course.dropout)
    if given.start:
        read_weights(model, given.start)

    def keep() -> None:
        write(model, given.out / f"{given.out.resolve().name}.gguf", given.type, keys)
        write(model, given.out / "weights.gguf", "F16", keys)
        print(f"kept: perplexity {math.exp(nll(model, parts[2])):.2f} on the measured part", flush=True)

    with open(given.out / "train.jsonl", "w", encoding="utf-8") as log:
        train(model, parts[0], parts[1], course, keep, log)


if __name__ == "__main__":
    main()
