"""The forward pass over every op set: the same text, the same bits in any company, nothing moved by an error."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from genmote import ops as op_sets
from genmote.errors import ContextError, OpsError, SpecError
from genmote.models.config import Config
from genmote.models.decoder import Decoder, block
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.models.rope import RopeTable, frequencies
from genmote.models.weights import GgufWeights
from genmote.ops.layer import Layer, LayerSpec, Linear, Norm
from genmote.ops.numpy_ops import NumpyOps
from genmote.ops.protocol import Ops, Span

OP_SETS = ["numpy", "native", "torch"]
EXACT_ROWS = ["numpy", "native"]  # a row's bits do not depend on its company
SHAPES = [
    "tiny-llama",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-gemma3",
    "tiny-opt",
    "tiny-mixtral",
    "tiny-olmoe",
    "tiny-qwen3moe",
    "tiny-deci",
    "tiny-low-rank",
]

# Greatest difference of a logit from the reference's, in standard deviations of the logits, on the tiny models.
# `native` has none at all. `torch` adds in another order; where inputs are rounded to 8 bits, a difference in the last
# bit of a float can become one step of that rounding.
TORCH_BOUND = {"F32": 1e-3, "Q8_0": 0.1, "Q4_0": 0.1}


def loaded(name: str) -> Ops:
    try:
        return op_sets.load(name)
    except OpsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], ModelFile]:
    """A tiny model of a shape and tensor type, made once."""
    folder, made = tmp_path_factory.mktemp("tiny"), {}

    def make(shape: str, type_name: str) -> ModelFile:
        path = folder / f"{shape}-{type_name}.gguf"
        if path not in made:
            make_model(shape, type_name, path, seed=5)
            made[path] = ModelFile.open(path)
        return made[path]

    return make


def decoder_of(model: ModelFile, ops: Ops, **options: Any) -> Decoder:
    weights = GgufWeights(model, ops)
    return Decoder(weights.config, weights, ops, **options)


def tokens(count: int, vocab_size: int = 300, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(3, vocab_size, count).tolist()


def all_logits(decoder: Decoder, ids: list[int], chunks: list[int] | None = None) -> np.ndarray:
    cache, parts, start = decoder.cache(len(ids)), [], 0
    for count in chunks or [len(ids)]:
        parts.append(decoder.forward(ids[start : start + count], [Span(cache, 0, count)], logits="all"))
        start += count
    return np.concatenate(parts)


def greedy(decoder: Decoder, ids: list[int], count: int) -> list[int]:
    cache, out = decoder.cache(len(ids) + count), []
    logits = decoder.forward(ids, [Span(cache, 0, len(ids))])
    for _ in range(count):
        out.append(int(logits[0].argmax()))
        logits = decoder.forward(out[-1:], [Span(cache, 0, 1)])
    return out


# -- op sets agree ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("type_name", ["F32", "F16", "Q8_0", "Q4_1"])
def test_native_gives_the_bits_of_the_reference(
    type_name: str, shape: str, model_of: Callable[[str, str], ModelFile]
) -> None:
    model, ids = model_of(shape, type_name), tokens(40)
    wanted = all_logits(decoder_of(model, loaded("numpy")), ids)
    assert wanted.std() > 0.05
    assert np.array_equal(all_logits(decoder_of(model, loaded("native")), ids), wanted)


@pytest.mark.parametrize(
    "type_name", ["BF16", "Q4_0", "Q5_0", "Q5_1", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
)
def test_native_gives_the_bits_of_the_reference_in_every_type(
    type_name: str, model_of: Callable[[str, str], ModelFile]
) -> None:
    model, ids = model_of("tiny-llama-256", type_name), tokens(20)
    wanted = all_logits(decoder_of(model, loaded("numpy")), ids)
    assert np.array_equal(all_logits(decoder_of(model, loaded("native")), ids), wanted)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("type_name", TORCH_BOUND)
def test_torch_stays_within_its_bound(type_name: str, shape: str, model_of: Callable[[str, str], ModelFile]) -> None:
    model, ids = model_of(shape, type_name), tokens(40)
    wanted = all_logits(decoder_of(model, loaded("numpy")), ids)
    got = all_logits(decoder_of(model, loaded("torch")), ids)
    assert np.abs(got - wanted).max() <= TORCH_BOUND[type_name] * wanted.std()


# -- a row does not depend on its company ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-gemma3", "tiny-mixtral", "tiny-opt"])
@pytest.mark.parametrize("type_name", ["F32", "Q4_1"])
@pytest.mark.parametrize("name", EXACT_ROWS)
def test_chunks_and_batches_change_no_bit(
    name: str, type_name: str, shape: str, model_of: Callable[[str, str], ModelFile]
) -> None:
    decoder = decoder_of(model_of(shape, type_name), loaded(name))
    ids, other = tokens(70), tokens(33, seed=2)
    alone = all_logits(decoder, ids)
    assert np.array_equal(all_logits(decoder, ids, [1] * 70), alone)
    assert np.array_equal(all_logits(decoder, ids, [32, 1, 37]), alone)

    first, second = decoder.cache(80), decoder.cache(80)
    decoder.forward(other[:30], [Span(second, 0, 30)])
    spans = [Span(second, 0, 3), Span(first, 3, 70)]
    together = decoder.forward(other[30:] + ids, spans, logits="all")
    assert np.array_equal(together[3:], alone)
    assert np.array_equal(together[:3], all_logits(decoder, other)[30:])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("type_name", ["F32", "Q8_0"])
def test_fused_blocks_change_no_bit(shape: str, type_name: str, model_of: Callable[[str, str], ModelFile]) -> None:
    ops = loaded("native")
    plain = decoder_of(model_of(shape, type_name), ops, fused=False)
    fused = decoder_of(model_of(shape, type_name), ops, fused=True)
    ids = tokens(40)
    assert np.array_equal(all_logits(fused, ids), all_logits(plain, ids))
    assert np.array_equal(all_logits(fused, ids, [20, 1, 19]), all_logits(plain, ids))


def test_a_fused_block_is_used_where_there_is_one(model_of: Callable[[str, str], ModelFile]) -> None:
    calls = []

    class Fusing(NumpyOps):
        def block(self, x: Any, layer: Layer, rotary: Any, spans: Any) -> Any:
            calls.append(layer.spec.index)
            return block(self, x, layer, rotary, spans)

    model = model_of("tiny-llama", "F32")
    wanted = all_logits(decoder_of(model, NumpyOps()), [1, 2, 3])
    assert np.array_equal(all_logits(decoder_of(model, Fusing()), [1, 2, 3]), wanted)
    assert calls == [0, 1]
    all_logits(decoder_of(model, Fusing(), fused=False), [1, 2, 3])
    assert calls == [0, 1]


# -- what comes back -------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(model_of: Callable[[str, str], ModelFile]) -> Decoder:
    return decoder_of(model_of("tiny-llama", "Q8_0"), NumpyOps())


def test_rows_asked_for(tiny: Decoder) -> None:
    ids = tokens(9)
    every = all_logits(tiny, ids)
    a, b = tiny.cache(9), tiny.cache(9)
    assert np.array_equal(tiny.forward(ids, [Span(a, 0, 9)]), every[8:])
    tiny.forward(ids, [Span(b, 0, 9)], logits=None)
    assert np.array_equal(b.export()["v"], a.export()["v"])
    picked = tiny.forward(ids, [Span(tiny.cache(9), 0, 9)], logits=[7, 2])
    assert np.array_equal(picked, every[[7, 2]])
    two = tiny.forward(ids + ids[:4], [Span(tiny.cache(9), 0, 9), Span(tiny.cache(9), 9, 4)])
    assert np.array_equal(two, every[[8, 3]])


def test_nothing_comes_back_where_nothing_is_asked(tiny: Decoder) -> None:
    cache = tiny.cache(4)
    assert tiny.forward([5, 6], [Span(cache, 0, 2)], logits=None) is None
    assert (cache.length, cache.position) == (2, 2)


def test_hidden_states_are_what_the_head_reads(tiny: Decoder) -> None:
    ids = tokens(6)
    states = tiny.hidden(ids, [Span(tiny.cache(6), 0, 6)])
    assert states.shape == (6, tiny.config.width)
    assert np.array_equal(tiny.ops.linear(states, tiny.weights.head), all_logits(tiny, ids))
    last = tiny.hidden(ids, [Span(tiny.cache(6), 0, 6)], rows="last")
    assert np.array_equal(last, states[5:])


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-gemma3", "tiny-opt"])
@pytest.mark.parametrize("name", OP_SETS)
def test_embeddings_go_in_beside_tokens(name: str, shape: str, model_of: Callable[[str, str], ModelFile]) -> None:
    decoder = decoder_of(model_of(shape, "Q8_0"), loaded(name))
    ids = tokens(8)
    vectors = decoder.ops.numpy(decoder.embed(ids))
    wanted = all_logits(decoder, ids)
    got = decoder.forward(vectors, [Span(decoder.cache(8), 0, 8)], logits="all")
    np.testing.assert_array_equal(got, wanted)


def test_gemma_scales_its_embeddings(model_of: Callable[[str, str], ModelFile]) -> None:
    decoder = decoder_of(model_of("tiny-gemma3", "F32"), NumpyOps())
    table = decoder.ops.embed(decoder.weights.embedding, np.array([4], np.int32))
    assert np.array_equal(decoder.embed([4]), table * np.float32(64**0.5))


@pytest.mark.parametrize("name", OP_SETS)
def test_a_saved_prefix_goes_on_with_the_same_bits(name: str, model_of: Callable[[str, str], ModelFile]) -> None:
    decoder = decoder_of(model_of("tiny-gemma3", "Q8_0"), loaded(name))
    ids, cache = tokens(30), decoder.cache(40)
    decoder.forward(ids, [Span(cache, 0, 30)])
    saved = cache.export()
    wanted = decoder.forward([9, 8], [Span(cache, 0, 2)], logits="all")
    cache.truncate(30)
    assert np.array_equal(decoder.forward([9, 8], [Span(cache, 0, 2)], logits="all"), wanted)
    fresh = decoder.cache(40)
    fresh.restore(saved)
    assert np.array_equal(decoder.forward([9, 8], [Span(fresh, 0, 2)], logits="all"), wanted)


def test_final_soft_cap_bounds_the_logits(tiny: Decoder) -> None:
    capped = Decoder(replace(tiny.config, logit_cap=0.5), tiny.weights, tiny.ops)
    np.testing.assert_allclose(all_logits(capped, [3, 4]), 0.5 * np.tanh(all_logits(tiny, [3, 4]) / 0.5), rtol=1e-5)


# -- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OP_SETS)
def test_an_error_in_the_middle_moves_nothing(name: str, model_of: Callable[[str, str], ModelFile]) -> None:
    decoder = decoder_of(model_of("tiny-llama", "Q8_0"), loaded(name))
    ids, cache = tokens(12), decoder.cache(40)
    decoder.forward(ids, [Span(cache, 0, 12)])

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(decoder.weights, name)

        @property
        def layers(self) -> Any:
            yield decoder.weights.layers[0]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Decoder(decoder.config, Failing(), decoder.ops).forward([1, 2, 3], [Span(cache, 0, 3)])
    assert (cache.length, cache.position) == (12, 12)
    after = decoder.forward([9], [Span(cache, 0, 1)])
    assert np.array_equal(after, all_logits(decoder, [*ids, 9], [12, 1])[12:])


@pytest.mark.parametrize("bad", [-1, 320, 2**40])
def test_tokens_outside_the_vocabulary(tiny: Decoder, bad: int) -> None:
    cache = tiny.cache(4)
    with pytest.raises(SpecError, match=f"token {bad}: the vocabulary has 320"):
        tiny.forward([1, bad], [Span(cache, 0, 2)])
    assert cache.length == 0


def test_a_full_context(tiny: Decoder) -> None:
    cache = tiny.cache(4)
    tiny.forward([1, 2, 3], [Span(cache, 0, 3)])
    with pytest.raises(ContextError, match="3 \\+ 2 tokens: the context holds 4; shorten the text"):
        tiny.forward([4, 5], [Span(cache, 0, 2)])
    assert tiny.forward([4], [Span(cache, 0, 1)]).shape == (1, 320)


def test_learned_positions_end(model_of: Callable[[str, str], ModelFile]) -> None:
    decoder = decoder_of(model_of("tiny-opt", "Q8_0"), NumpyOps())
    cache = decoder.cache(400)
    cache.position = decoder.config.context_length - 1
    with pytest.raises(ContextError, match=f"the model learned {decoder.config.context_length}; shorten the text"):
        decoder.forward([1, 2], [Span(cache, 0, 2)])


def test_spans_that_do_not_cover_the_rows(tiny: Decoder) -> None:
    a, b = tiny.cache(9), tiny.cache(9)
    for spans, message in [
        ([Span(a, 0, 1), Span(b, 2, 1)], "a span of 1 rows at 2: spans cover the rows in order, from 1"),
        ([Span(a, 0, 0)], "a span of 0 rows at 0"),
        ([Span(a, 0, 2)], "3 rows but spans for 2: each row belongs to one span"),
        ([], "3 rows but spans for 0"),
        ([Span(a, 0, 1), Span(a, 1, 2)], "two spans of one batch share a cache"),
    ]:
        with pytest.raises(SpecError, match=message):
            tiny.forward([1, 2, 3], spans)
    with pytest.raises(SpecError, match="0 rows but spans for 0"):
        tiny.forward([], [])


def test_a_block_without_feed_forward(tiny: Decoder) -> None:
    headless = replace(tiny.weights.layers[0], up=None)
    with pytest.raises(SpecError, match="layer 0 has no feed-forward: give it up and down, or experts"):
        block(tiny.ops, tiny.embed([1]), headless, None, [Span(tiny.cache(1), 0, 1)])


# -- a published model of 260 000 weights ----------------------------------------------------------------------------


@dataclass
class Stories:
    """The llama2.c file: sizes, then float32 arrays in a fixed order."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    arrays: dict[str, np.ndarray]
    pieces: list[bytes]

    @classmethod
    def read(cls, folder: Path) -> Stories:
        data = (folder / "stories260K.bin").read_bytes()
        sizes = struct.unpack_from("<7i", data)
        dim, hidden, layers, heads, kv_heads, vocab, _ = sizes
        kv = dim // heads * kv_heads
        floats, at, arrays = np.frombuffer(data, "<f4", offset=28), 0, {}
        for name, shape in {
            "embedding": (vocab, dim),
            "attn_norm": (layers, dim),
            "q": (layers, dim, dim),
            "k": (layers, kv, dim),
            "v": (layers, kv, dim),
            "o": (layers, dim, dim),
            "ffn_norm": (layers, dim),
            "gate": (layers, hidden, dim),
            "down": (layers, dim, hidden),
            "up": (layers, hidden, dim),
            "norm": (dim,),
        }.items():
            size = int(np.prod(shape))
            arrays[name] = floats[at : at + size].reshape(shape)
            at += size
        words, pieces, place = (folder / "tok512.bin").read_bytes(), [], 4
        for _ in range(vocab):
            _, length = struct.unpack_from("<fi", words, place)
            pieces.append(words[place + 8 : place + 8 + length])
            place += 8 + length
        return cls(*sizes, arrays, pieces)

    def decoder(self, ops: Ops) -> Decoder:
        head_dim = self.dim // self.heads

        def linear(values: np.ndarray) -> Linear:
            return Linear(ops.matrix("F32", values.shape, np.ascontiguousarray(values).view(np.uint8).reshape(-1)))

        def norm(values: np.ndarray) -> Norm:
            return Norm(ops.vector(np.array(values)))

        spec = LayerSpec(0, self.heads, self.kv_heads, head_dim, head_dim**-0.5, rope_interleaved=True)
        config = Config(
            architecture="llama",
            width=self.dim,
            vocab_size=self.vocab,
            context_length=self.context,
            layers=tuple(replace(spec, index=index) for index in range(self.layers)),
            ffn_widths=(self.hidden,) * self.layers,
            ropes=(RopeTable(frequencies(10000.0, head_dim)),),
        )
        embedding = linear(self.arrays["embedding"])
        layers = [
            Layer(
                spec=config.layers[i],
                attn_norm=norm(self.arrays["attn_norm"][i]),
                ffn_norm=norm(self.arrays["ffn_norm"][i]),
                **{name: linear(self.arrays[name][i]) for name in ("q", "k", "v", "o", "gate", "up", "down")},
            )
            for i in range(self.layers)
        ]
        source = SimpleNamespace(
            embedding=embedding.matrix,
            position_embedding=None,
            output_norm=norm(self.arrays["norm"]),
            head=embedding,
            layers=layers,
        )
        return Decoder(config, source, ops)

    def plain_greedy(self, count: int) -> list[int]:
        """The algorithm without any of our code, one token after another, from the start token."""
        w, head_dim, group = self.arrays, self.dim // self.heads, self.heads // self.kv_heads
        keys: list[list[np.ndarray]] = [[] for _ in range(self.layers)]
        values: list[list[np.ndarray]] = [[] for _ in range(self.layers)]

        def rms(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
            return x / np.sqrt((x * x).mean() + 1e-5) * gain

        def turn(x: np.ndarray, position: int) -> np.ndarray:
            pairs = x.reshape(-1, head_dim // 2, 2)
            angle = position * 10000.0 ** -(np.arange(0, head_dim, 2) / head_dim)
            turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)
            return np.stack([turned.real, turned.imag], -1).reshape(-1, head_dim)

        token, out = 1, []
        for position in range(count):
            x = w["embedding"][token].astype(np.float64)
            for i in range(self.layers):
                h = rms(x, w["attn_norm"][i])
                q = turn(w["q"][i] @ h, position)
                keys[i].append(turn(w["k"][i] @ h, position))
                values[i].append((w["v"][i] @ h).reshape(-1, head_dim))
                heads = []
                for head in range(self.heads):
                    scores = np.array([key[head // group] @ q[head] for key in keys[i]]) / head_dim**0.5
                    shares = np.exp(scores - scores.max())
                    mixed = sum(s * v[head // group] for s, v in zip(shares, values[i], strict=True))
                    heads.append(mixed / shares.sum())
                x = x + w["o"][i] @ np.concatenate(heads)
                h = rms(x, w["ffn_norm"][i])
                gate = w["gate"][i] @ h
                x = x + w["down"][i] @ (gate / (1 + np.exp(-gate)) * (w["up"][i] @ h))
            token = int((w["embedding"] @ rms(x, w["norm"])).argmax())
            out.append(token)
        return out


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Stories:
    folder = shared_data / "stories260k_f32"
    if not folder.is_dir():
        pytest.skip("the published story model is not here")
    return Stories.read(folder)


@pytest.fixture(scope="module")
def plain_text(stories: Stories) -> list[int]:
    return stories.plain_greedy(80)


@pytest.mark.parametrize("name", OP_SETS)
def test_tells_the_same_story_as_the_plain_algorithm(name: str, stories: Stories, plain_text: list[int]) -> None:
    decoder = stories.decoder(loaded(name))
    told = greedy(decoder, [1], 80)
    text = b"".join(stories.pieces[token] for token in told).decode()
    assert text.startswith(
        " Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )
    assert told == plain_text


@pytest.fixture(scope="module")
def ten_stories(stories: Stories) -> dict[int, list[int]]:
    """The reference's stories by the token that they open with."""
    reference = stories.decoder(loaded("numpy"))
    return {start: greedy(reference, [1, start], 32) for start in range(403, 503, 10)}


@pytest.mark.parametrize("name", OP_SETS[1:])
def test_op_sets_tell_the_same_ten_stories(name: str, stories: Stories, ten_stories: dict[int, list[int]]) -> None:
    decoder = stories.decoder(loaded(name))
    for start, told in ten_stories.items():
        assert greedy(decoder, [1, start], 32) == told, stories.pieces[start]


# -- real models -----------------------------------------------------------------------------------------------------

PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "A small robot in the garden",
    "def add(a, b):\n    return",
    "The most important thing about a heart is",
    "Once upon a time",
    "Dear customer, thank you for",
    "In physics, energy is",
    "The temperature in the room rose, so",
    "My favourite book is about",
]


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_native_writes_a_real_model_s_text_with_the_reference_s_bits(prompt: str, smollm2: Path) -> None:
    from genmote.models.tokenizer import load_tokenizer

    model = ModelFile.open(smollm2)
    reference, native = (decoder_of(model, loaded(name)) for name in ("numpy", "native"))
    ids = load_tokenizer(model).encode(prompt)
    text = greedy(native, ids, 32)
    assert np.array_equal(all_logits(reference, ids + text), all_logits(native, ids + text))
    assert greedy(reference, ids, 4) == text[:4]


@pytest.mark.slow
def test_torch_stays_within_its_bound_on_a_real_model(smollm2: Path) -> None:
    from genmote.models.tokenizer import load_tokenizer

    model = ModelFile.open(smollm2)
    reference, other = (decoder_of(model, loaded(name)) for name in ("native", "torch"))
    tokenizer, same, steps = load_tokenizer(model), 0, 0
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        text = greedy(reference, ids, 32)
        wanted, got = (all_logits(d, ids + text)[len(ids) - 1 : -1] for d in (reference, other))
        assert np.abs(got - wanted).max() < 0.5 * wanted.std()
        assert np.sqrt(np.square(got - wanted).mean()) < 0.08 * wanted.std()
        same, steps = same + int((got.argmax(axis=1) == wanted.argmax(axis=1)).sum()), steps + len(text)
    assert same >= 0.95 * steps  # the rest are near ties
