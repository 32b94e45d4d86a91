"""The plan of a model's memory: it adds up, it is the loader's own arithmetic, more memory never hurts, and what cannot
be is told with what would help."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import BudgetError, ModelFileError, OpsError, SpecError
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.make_model import make_model, shape_names
from genmote.runtime import footprint, roofline
from genmote.runtime.plan import plan
from genmote.runtime.roofline import Machine
from tests.conftest import settled_bytes

BOARD = Machine(4e9, 2e9, 30e9, 15e9, 40e6, 4, "a board")
BASE = 40 << 20  # of the interpreter, so that no test depends on the process that runs it
TINY = [name for name in shape_names() if name.startswith("tiny-")]


def made(tmp_path: Path, shape: str, kind: str = "q4_0") -> ModelFile:
    make_model(shape, kind, tmp_path / f"{shape}.gguf", seed=1)
    return ModelFile.open(tmp_path / f"{shape}.gguf")


def with_context(folder, tokens):
    """A tiny model that takes texts of so many tokens."""
    file = made(folder, "tiny-llama-256")
    metadata = file.typed_metadata() | {"llama.context_length": np.uint32(tokens)}
    tensors = [(name, info.type, info.shape, file.raw(name)) for name, info in file.tensors.items()]
    write_gguf(folder / "long.gguf", metadata, tensors)
    return ModelFile.open(folder / "long.gguf")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> ModelFile:
    """A model of some 8 MB in 6 layers, so that budgets between nothing and all of it make a difference."""
    folder = tmp_path_factory.mktemp("plan")
    metadata = ModelFile.open(made(folder, "tiny-llama").path).typed_metadata()
    metadata |= {"llama.block_count": np.uint32(6), "llama.embedding_length": np.uint32(256)}
    metadata |= {"llama.feed_forward_length": np.uint32(704), "llama.rope.dimension_count": np.uint32(64)}
    shapes = {"token_embd.weight": (320, 256), "output_norm.weight": (256,)}
    for layer in range(6):
        shapes |= {f"blk.{layer}.attn_{name}.weight": (256, 256) for name in ("q", "output")}
        shapes |= {f"blk.{layer}.attn_{name}.weight": (128, 256) for name in ("k", "v")}
        shapes |= {f"blk.{layer}.ffn_{name}.weight": (704, 256) for name in ("gate", "up")}
        shapes |= {f"blk.{layer}.ffn_down.weight": (256, 704)}
        shapes |= {f"blk.{layer}.{name}_norm.weight": (256,) for name in ("attn", "ffn")}
    tensors = [(name, "F16" if len(s) > 1 else "F32", s, _zeros(s)) for name, s in shapes.items()]
    write_gguf(folder / "small.gguf", metadata, tensors)
    return ModelFile.open(folder / "small.gguf")


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float16 if len(shape) > 1 else np.float32).reshape(-1).view(np.uint8)


@pytest.mark.parametrize("shape", TINY)
def test_weights_are_those_that_a_load_takes(tmp_path, shape):
    native = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)
    from genmote.models import packed
    from genmote.models.weights import GgufWeights

    file, ops = made(tmp_path, shape), native.create(threads=1)
    taken = {}
    vectors = 0

    class Counting:
        def vector(self, values):
            nonlocal vectors
            vectors += values.nbytes
            return values

    def wanted(name, info):
        taken[name] = -(-ops.packed_bytes(info.type, info.shape[-2:]) // packed.ALIGN) * packed.ALIGN

    GgufWeights(file, Counting(), wanted)
    found = footprint.weights(file)
    experts = sum(size for name, size in taken.items() if name.endswith("]"))
    assert found.total - found.vectors == pytest.approx(sum(taken.values()), abs=64 * len(taken))
    assert found.experts == pytest.approx(experts, abs=64 * len(taken))
    assert found.vectors == vectors
    assert sum(found.by_type.values()) == found.total - found.vectors
    assert found.macs + found.float_macs <= sum(info.shape[0] * info.shape[-1] * 64 for info in file.tensors.values())


@pytest.mark.parametrize("shape", TINY)
@pytest.mark.parametrize("spare", [None, 0, 20_000, 100_000_000])
def test_parts_add_up_and_keep_the_budget(tmp_path, shape, spare):
    file = made(tmp_path, shape)
    memory = None if spare is None else least(file) + spare
    found = plan(file, memory=memory, context=64, interpreter=BASE)
    assert found.predicted_bytes == sum(found.parts.values())
    names = {"interpreter", "tables", "adapters", "weights", "ring", "kv", "queries", "activations", "experts"}
    assert set(found.parts) == names
    assert min(found.parts.values()) >= 0
    if memory is not None:
        assert found.predicted_bytes <= memory
    sizes = footprint.weights(file)
    assert found.streamed_bytes == max(0, sizes.dense - found.pinned_bytes)
    assert found.streams or found.pinned_bytes == sizes.dense + sizes.embedding
    assert json.loads(json.dumps(found.values()))["predicted_bytes"] == found.predicted_bytes


def test_what_is_left_to_slack_goes_by_what_is_used(small):
    """A budget of a thousand times as much takes no more."""
    whole = plan(small, context=64, interpreter=BASE).predicted_bytes
    roomy = [plan(small, memory=memory, context=64, interpreter=BASE).parts for memory in (2 * whole, 10**12)]
    assert roomy[0] == roomy[1]
    assert sum(roomy[0].values()) == whole + whole // 400


def least(file: ModelFile, **settings) -> int:
    """The smallest budget, as the refusal tells it."""
    with pytest.raises(BudgetError) as refused:
        plan(file, memory=1_000_000, interpreter=BASE, **{"context": 64} | settings)
    bytes_ = refused.value.least_bytes
    assert f"the least is {-(-bytes_ // 1_000_000)} MB" in str(refused.value)
    return bytes_


def test_the_least_that_is_told_does(small):
    for context in (16, 64, 256):
        for kv in ("f16", "int4"):
            told = least(small, context=context, kv=kv)
            assert plan(small, memory=told, context=context, kv=kv, interpreter=BASE).predicted_bytes <= told
            with pytest.raises(BudgetError):
                plan(small, memory=told - 1, context=context, kv=kv, interpreter=BASE)


@pytest.mark.parametrize("context", [64, 256])
def test_more_memory_is_never_slower(small, context):
    """Neither reading a prompt nor writing, at the beginning or with the context full."""
    settings = {"context": context, "machine": BOARD, "threads": 4, "prompt_tokens": context * 3 // 4}
    start = least(small, **settings)
    found = [
        plan(small, memory=start + more, interpreter=BASE, **settings).expected
        for more in range(0, 13_000_000, 125_000)
    ]
    a_piece = 1.03  # what 16 rows of a prompt take more is not there for weights, while pieces are growing
    for before, later in itertools.pairwise(found):
        # Where all weights come to stay, pieces can be smaller: each starts its operations once more.
        begins = before.full_bound == "storage" != later.full_bound
        assert later.first_token_s <= before.first_token_s * (1.15 if begins else a_piece)
        assert later.decode_tokens_per_s * a_piece >= before.decode_tokens_per_s
        assert later.full_decode_tokens_per_s * a_piece >= before.full_decode_tokens_per_s
    assert found[-1].first_token_s < found[0].first_token_s / 4  # all in memory in the end
    assert found[-1].full_decode_tokens_per_s > 10 * found[0].full_decode_tokens_per_s


def test_pieces_of_a_prompt_do_not_shrink_with_more_memory(small):
    start = least(small, context=256)
    tight = [plan(small, memory=start + more, context=256, interpreter=BASE) for more in range(0, 2_000_000, 50_000)]
    assert all(made.streamed_bytes for made in tight)
    sizes = [made.chunk_rows for made in tight]
    assert sizes == sorted(sizes) and sizes[0] < 64 <= sizes[-1]


def test_a_text_is_written_more_slowly_as_it_grows(small):
    """Weights have the memory of keys and values until the text needs it; a full context has none of it left."""
    memory = least(small, context=256, machine=BOARD) + 1_500_000
    made = plan(small, memory=memory, context=256, machine=BOARD, prompt_tokens=16, interpreter=BASE)
    speed = made.expected
    assert speed.text_tokens == 80
    assert speed.decode_tokens_per_s > speed.text_decode_tokens_per_s > speed.full_decode_tokens_per_s
    assert 1 / speed.full_decode_tokens_per_s == pytest.approx(made.streamed_bytes / (40e6 * 0.9))
    assert speed.full_bound == "storage"


def test_less_context_never_takes_more(small):
    sizes = [plan(small, context=n, interpreter=BASE).predicted_bytes for n in (16, 32, 64, 128, 256)]
    assert sizes == sorted(sizes)


def test_sessions_and_kinds_of_cache(small):
    one = plan(small, context=256, interpreter=BASE)
    assert plan(small, context=256, sessions=3, interpreter=BASE).parts["kv"] == 3 * one.parts["kv"]
    kv = [plan(small, context=256, kv=kind, interpreter=BASE).parts["kv"] for kind in ("f16", "int8", "int4")]
    assert kv == sorted(kv, reverse=True) and kv[0] > kv[-1]


def test_nothing_lossy_unless_allowed(small):
    tight = least(small, context=256) - 1
    with pytest.raises(BudgetError):
        plan(small, memory=tight, context=256, interpreter=BASE)
    found = plan(small, memory=tight, context=256, kv="auto", interpreter=BASE)
    assert found.lossy and set(found.lossy) <= set(found.steps)
    roomy = plan(small, memory=tight + 50_000_000, context=256, kv="auto", interpreter=BASE)
    assert roomy.kv == "f16" and not roomy.lossy


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [({}, 16_384), ({"kv": "auto"}, 16_384), ({"kv": "int8"}, 32_768), ({"kv_tokens": 512}, 1 << 17)],
)
def test_texts_are_as_long_as_fits_beside_all_weights(tmp_path, settings, tokens):
    """Whatever keys and values are kept as; fewer bits of them make room for more."""
    file = with_context(tmp_path, 1 << 17)
    memory = plan(file, context=20_000, interpreter=BASE).predicted_bytes
    found = plan(file, memory=memory, interpreter=BASE, **settings)
    assert not found.streams and found.context == tokens


def test_what_was_asked_for_is_told_too(small):
    found = plan(small, context=256, kv="int8", kv_tokens=64, interpreter=BASE)
    assert (found.kv, found.kv_tokens) == ("int8", 64)
    assert found.lossy == (
        "keys and values are rounded to int8",
        "rows beyond 64 a layer are evicted (expected+retrieval)",
    )


def test_refusal_says_what_would_help(small):
    with pytest.raises(BudgetError, match=r"small.gguf does not fit 2 MB: with a context of 256 tokens the least is"):
        plan(small, memory=2_000_000, context=256, interpreter=BASE)


def test_what_helps_in_a_refusal_does_fit(small):
    """Only what fits this budget is told, and where nothing does the least of all is."""
    short = {"context": 256, "interpreter": BASE}
    tight = least(small, context=256) - 1
    with pytest.raises(BudgetError, match=re.escape("what helps: --kv auto (from ")):
        plan(small, memory=tight, **short)
    assert plan(small, memory=tight, kv="auto", **short).lossy
    with pytest.raises(BudgetError, match="with --kv auto it is .* MB, the least of all; what helps: more memory"):
        plan(small, memory=BASE, **short)


def test_a_refusal_names_the_longest_context_that_fits(tmp_path):
    file = with_context(tmp_path, 8192)
    memory = plan(file, context=5000, interpreter=BASE).predicted_bytes
    with pytest.raises(BudgetError, match=re.escape("what helps: --context 4096 (from ")):
        plan(file, memory=memory, context=8192, interpreter=BASE)
    assert plan(file, memory=memory, context=4096, interpreter=BASE)


def test_a_refusal_with_eviction_names_what_takes_less(tmp_path):
    """Finding out which layers look back can be what does not fit, whatever the text's own rows are stored as."""
    file = with_context(tmp_path, 2048)
    given = {"context": 2000, "kv_tokens": 64, "interpreter": BASE}
    kinds = [plan(file, kv=kind, **given) for kind in ("f16", "int4")]
    assert all(each.finding for each in kinds) and kinds[0].parts["kv"] == kinds[1].parts["kv"]
    simple = plan(file, kv="int4", evict="window", **given)
    assert not simple.finding and simple.parts["kv"] < kinds[1].parts["kv"] / 4
    assert not plan(file, kv="f16", **given | {"kv_tokens": 1000}).finding
    memory = least(file, kv="int4", context=2000, kv_tokens=64) - 1
    with pytest.raises(BudgetError, match=re.escape("what helps: --evict window (from ")) as refused:
        plan(file, memory=memory, kv="int4", **given)
    assert plan(file, memory=memory, kv="int4", evict="window", **given).evict == "window"
    context = re.search(r"--context (\d+) and no eviction", str(refused.value))
    assert context and plan(file, memory=memory, kv="int4", context=int(context[1]), interpreter=BASE)


def test_an_amount_without_its_unit_is_asked_about(small):
    for memory, told in ((150, "150 bytes (was 150MB meant?)"), (1000, "1000 bytes (was 1MB meant?)")):
        with pytest.raises(BudgetError, match=re.escape(f"does not fit {told}")):
            plan(small, memory=memory, context=64)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"context": 0}, "context=0: this model takes 1 to 256 tokens"),
        ({"context": 257}, "context=257"),
        ({"kv": "int3"}, "kv='int3': keys and values are kept as f16, int8, int4, or auto"),
        ({"kv_tokens": 3}, "kv_tokens=3 with a context of 256: use a whole number from 32 up"),
        ({"evict": "lru"}, "no eviction policy is called 'lru'"),
        ({"sessions": 0}, "sessions=0: wanted 1 or more"),
        ({"memory": 0}, "memory=0: wanted bytes above 0"),
    ],
)
def test_settings_that_nothing_supports(small, settings, told):
    with pytest.raises(SpecError, match=re.escape(told)):
        plan(small, **settings)


def test_expected_speed_follows_the_machine(small):
    fast = Machine(8e9, 4e9, 60e9, 30e9, 80e6, 4, "twice as fast")
    slow, quick = (plan(small, context=64, machine=m, threads=4, interpreter=BASE).expected for m in (BOARD, fast))
    assert quick.decode_tokens_per_s == pytest.approx(2 * slow.decode_tokens_per_s)
    assert quick.first_token_s == pytest.approx(slow.first_token_s / 2)
    assert quick.full_decode_tokens_per_s == pytest.approx(2 * slow.full_decode_tokens_per_s)
    assert slow.source == "a board" and slow.bound in ("memory", "arithmetic")
    tight = plan(small, memory=least(small, threads=4), context=64, machine=BOARD, threads=4, interpreter=BASE)
    assert tight.expected.bound == "storage"
    # Storage bound: a token takes what reading the streamed weights takes, while all else is done.
    assert 1 / tight.expected.full_decode_tokens_per_s == pytest.approx(tight.streamed_bytes / (40e6 * 0.9))
    assert plan(small, context=64, interpreter=BASE).expected is None  # of an unknown machine nothing is told


def test_loading_reads_what_is_held(small):
    """And the first time the file, and writes its weights re-laid, before."""
    whole = plan(small, context=64, machine=BOARD, interpreter=BASE)
    assert whole.load_bytes == whole.parts["weights"] + whole.parts["tables"]
    assert whole.first_load_bytes == pytest.approx(2 * whole.load_bytes + small.nbytes, rel=0.01), "read, written, read"
    tight = plan(small, memory=least(small) + 500_000, context=64, machine=BOARD, interpreter=BASE)
    assert tight.load_bytes < whole.load_bytes - tight.streamed_bytes / 2
    assert tight.first_load_bytes - tight.load_bytes == whole.first_load_bytes - whole.load_bytes
    for made in (whole, tight):
        assert made.expected.load_s == pytest.approx(made.load_bytes / (40e6 * 0.9))
        assert made.expected.first_load_s == pytest.approx(made.first_load_bytes / (40e6 * 0.9))


def test_what_a_load_reads_is_what_a_plan_says(tmp_path, monkeypatch):
    """The weights that an engine holds before its first pass; and the file that it writes."""
    pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)
    from genmote import Engine
    from genmote.models import packed

    monkeypatch.setenv("GENMOTE_HOME", str(tmp_path / "home"))
    file = made(tmp_path, "tiny-llama-256")
    room = settled_bytes() + 400_000_000
    with Engine.load(file.path, memory=room, context=64, threads=1) as engine:
        told = engine.plan
        beside = told.parts["tables"] + footprint.weights(file).vectors
        assert engine.streaming.pinned_bytes == pytest.approx(told.load_bytes - beside, rel=0.05)  # pages
    written = packed.path_of(file).stat().st_size
    assert told.first_load_bytes - told.load_bytes == pytest.approx(file.nbytes + written, rel=0.1)


@pytest.mark.parametrize(
    ("storage_s", "told"), [(6e-3, "memory"), (12e-3, "storage")], ids=["read beside", "read last"]
)
def test_storage_bounds_a_pass_where_all_else_is_done_before(storage_s: float, told: str) -> None:
    """Reading goes on beside the rest: 6 ms of it are not waited for where memory and starting take 5.1 and 5 ms."""
    machine = Machine(10e9, 10e9, 1e12, roofline.CORE_FLOAT_OPS_S, 1e9, 1, "a machine")
    streamed = storage_s * 1e9 * roofline.STORAGE_SHARE
    moved = 5.1e-3 * 10e9 * roofline.MEMORY_SHARE
    load = roofline.Load(moved - streamed, 0.0, 0.0, 0.0, streamed, 5e-3 / machine.operation_s)
    assert roofline.bound(load, machine, 1) == told
    assert roofline.pass_s(load, machine, 1) == pytest.approx(max(10.1e-3, storage_s))


def test_starting_operations_bounds_a_small_model(tmp_path):
    """As many as its layers and the experts that run start, at what one core takes for each."""
    quick = Machine(1e15, 1e15, 1e18, 61e9, 1e15, 1, "no limits but one core's")
    file = made(tmp_path, "tiny-qwen3moe")
    config, given = footprint.read_config(file), {"context": 64, "machine": quick, "prompt_tokens": 16}
    few = plan(file, interpreter=BASE, **given).expected
    wanted = 10 + config.n_layers * (2 + 18 + config.n_experts_used)
    assert few.bound == "operations"
    assert 1 / few.decode_tokens_per_s == pytest.approx(wanted * 6e-6, rel=0.05)
    slow = Machine(1e15, 1e15, 1e18, 61e9, 1e15, 4, "cores of a quarter of the speed")
    slower = plan(file, interpreter=BASE, **given | {"machine": slow, "threads": 1}).expected
    assert few.decode_tokens_per_s / slower.decode_tokens_per_s == pytest.approx(4, rel=0.1)
    dense = made(tmp_path, "tiny-llama")
    wanted = 10 + 2 * footprint.read_config(dense).n_layers
    told = plan(dense, interpreter=BASE, **given).expected
    assert 1 / told.decode_tokens_per_s == pytest.approx(wanted * 6e-6, rel=0.05)


def test_choosing_which_rows_go_takes_time(tmp_path):
    """By what rows are kept as, and only once a layer is full; windows of attention choose nothing."""
    quick = Machine(1e15, 1e15, 1e18, 61e9, 1e15, 1, "no limits but one core's")
    file = made(tmp_path, "tiny-llama-256")
    config = footprint.read_config(file)
    given = {"context": 256, "machine": quick, "prompt_tokens": 16, "interpreter": BASE}
    start_s = (10 + 2 * config.n_layers) * 6e-6
    numbers = sum(config.kv_heads) * 64 * config.head_dim  # of the keys that layers of 64 rows hold
    for kind, scored, moved in (("f16", 240, 3000), ("int8", 130, 1200), ("int4", 110, 600)):
        for evict, looks in (("expected", True), ("window", False)):
            told = plan(file, kv=kind, evict=evict, kv_tokens=64, **given).expected
            assert 1 / told.decode_tokens_per_s == pytest.approx(start_s, rel=0.05), "16 tokens: nothing goes"
            cut_s = (15 * sum(config.kv_heads) + looks * numbers / scored + numbers / moved) * 6e-6
            assert 1 / told.full_decode_tokens_per_s == pytest.approx(start_s + cut_s / 8, rel=0.05)
            # 32 pieces of 8 rows, and a cut with each but the first 8.
            assert told.full_first_token_s == pytest.approx(32 * start_s + 24 * cut_s, rel=0.1)
    gemma = made(tmp_path, "tiny-gemma3")
    config = footprint.read_config(gemma)
    from genmote.runtime.eviction import eviction
    from genmote.runtime.plan_speed import cut_operations

    whole = [layer for layer in config.layers if not layer.window]
    assert 0 < len(whole) < config.n_layers
    heads = config.kv_heads[0] * len(whole)
    window = eviction("window", 32, 64)
    assert cut_operations(config, "f16", window) == pytest.approx(15 * heads + heads * 32 * config.head_dim / 3000)


def test_experts_that_are_not_in_memory_are_waited_for(tmp_path):
    """By one row some, by the rows of a prompt together nearly all."""
    from genmote.runtime.plan_speed import load_of

    class Asked:
        weights = config = None
        sessions, adapters, kv_spill = 1, 0, None

    file = made(tmp_path, "tiny-qwen3moe")
    asked = Asked()
    asked.weights, asked.config = footprint.weights(file), footprint.read_config(file)
    whole = plan(file, context=64, interpreter=BASE)
    half = dataclasses.replace(whole, expert_bytes=whole.expert_bytes // 2)
    experts, layers, used = asked.config.n_experts, asked.config.n_layers, asked.config.n_experts_used
    for rows in (1, 40):
        here, away = (load_of(asked, each, 0, rows) for each in (whole, half))
        run = experts * (1 - (1 - used / experts) ** rows)
        assert here.streamed_bytes == 0
        assert away.streamed_bytes == pytest.approx(asked.weights.experts * run / experts / 2)
        assert away.operations - here.operations == pytest.approx(125 * layers * run / 2)
    one = load_of(asked, whole, 0, 1)
    assert one.weight_bytes == pytest.approx(asked.weights.active, rel=0.01)
    assert load_of(asked, whole, 0, 1000).weight_bytes == pytest.approx(asked.weights.dense + asked.weights.experts)


def test_small_pieces_of_a_prompt_read_streamed_weights_again(small):
    """Eviction cuts a prompt wherever rows go: the bytes of each piece are in the time that is told."""
    settings = {"context": 256, "machine": BOARD, "threads": 4, "prompt_tokens": 64}
    memory = least(small, context=256) + 500_000
    for more in ({}, {"evict": "window", "kv_tokens": 64}):
        found = plan(small, memory=memory, interpreter=BASE, **settings, **more)
        # A text takes memory from weights as it grows; without rows that stay, all is streamed from the beginning.
        fewest = found.streamed_bytes - found.parts["kv"]
        pieces, speed = -(-256 // found.chunk_rows), found.expected
        assert found.chunk_rows <= (8 if more else 512) and fewest > 0
        assert speed.full_first_token_s >= pieces * fewest / (0.9 * 40e6)
        assert speed.full_first_token_s > 3.9 * speed.first_token_s
    assert plan(small, context=256, machine=BOARD, prompt_tokens=256).expected.full_first_token_s == pytest.approx(
        plan(small, context=256, machine=BOARD, prompt_tokens=256).expected.first_token_s
    )


def test_a_tensor_that_no_plan_knows(tmp_path):
    file = made(tmp_path, "tiny-llama")
    file.tensors["blk.0.attn_odd.weight"] = file.tensors["blk.0.attn_q.weight"]
    with pytest.raises(ModelFileError, match="a tensor blk.0.attn_odd.weight, which no plan knows"):
        plan(file)


def test_cold_rows_on_disk_are_not_counted(tmp_path):
    from genmote.models.store import find
    from genmote.runtime.trial import load_settings

    path = find("smollm2-135m")
    if path is None:
        pytest.skip("smollm2-135m is not here")
    file = ModelFile.open(path)
    given = {"memory": 96_000_000, "context": 8192, "interpreter": BASE}
    with pytest.raises(BudgetError):
        plan(file, **given)
    made = plan(file, kv_spill=str(tmp_path), **given)
    config = footprint.read_config(file)
    whole = footprint.kv_bytes(config, "f16", 8192)
    assert 2 * whole // config.n_layers < made.parts["kv"] < whole // 4
    assert load_settings(made)["kv_spill"] == str(tmp_path)
    few = {"context": 64, "interpreter": BASE}  # all rows are in memory anyway
    assert plan(file, kv_spill=str(tmp_path), **few).parts == plan(file, **few).parts
