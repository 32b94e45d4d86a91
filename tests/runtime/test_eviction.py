"""Eviction: every policy keeps what it must, and a text does not depend on chunks, company, forks or files."""

from __future__ import annotations

import functools
import itertools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import Engine, ops
from genmote.errors import ModelFileError, SpecError
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.models.tokenizer import load_tokenizer
from genmote.models.weights import GgufWeights
from genmote.runtime import eviction
from genmote.runtime.evict import _layers
from genmote.runtime.evict._base import Evict, Seen
from genmote.runtime.fake import fake_engine
from genmote.runtime.prompt import Rows
from genmote.runtime.scheduler import Scheduler
from genmote.runtime.session import Session, Work, run_batch

POLICIES = eviction.names()
LAYERS = ["even", "pyramid", "retrieval"]


def seen(rows: int = 40, heads: int = 2, group: int = 3, dim: int = 8, queries: int = 16, seed: int = 0) -> Seen:
    rng = np.random.default_rng(seed)
    keys, values = rng.standard_normal((2, rows, heads, dim)).astype(np.float32)
    asked = rng.standard_normal((queries, heads * group, dim)).astype(np.float32) * 2
    return Seen(keys, values, asked, rng.random((heads, rows)).astype(np.float32), 0.4)


def plain_attention(x: Seen) -> np.ndarray:
    """(H, n, T), one number at a time."""
    rows, heads, _ = x.keys.shape
    count, all_heads, _ = x.queries.shape
    found = np.zeros((all_heads, count, rows))
    for h in range(all_heads):
        for i in range(count):
            last = rows - count + i
            scores = [float(x.queries[i, h] @ x.keys[t, h // (all_heads // heads)]) * x.scale for t in range(last + 1)]
            powers = np.exp(np.array(scores) - max(scores))
            found[h, i, : last + 1] = powers / powers.sum()
    return found


# -- every member -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_keeps_so_many_rows_the_first_and_the_latest_among_them(name: str) -> None:
    policy, _ = eviction.policy(f"{name}:sinks=3,recent=0.25")
    for rows, budget in ((40, 20), (21, 20), (20, 20), (33, 8)):
        x = seen(rows)
        kept = policy.keep(policy.score(x), budget)
        assert kept.rows.shape == kept.scores.shape == (2, budget)
        assert (np.diff(kept.rows, axis=1) > 0).all() and kept.rows.min() >= 0 and kept.rows.max() < rows
        assert (kept.rows[:, :3] == [0, 1, 2]).all()
        latest = round(0.25 * budget)
        assert (kept.rows[:, budget - latest :] == np.arange(rows - latest, rows)).all()
        again = policy.keep(policy.score(x), budget)
        assert (again.rows == kept.rows).all() and (again.scores == kept.scores).all()


@pytest.mark.parametrize("name", POLICIES)
def test_what_scores_highest_stays(name: str) -> None:
    policy, _ = eviction.policy(f"{name}:sinks=0,recent=0.0")
    x = seen(60)
    scores = policy.together(policy.score(x))
    kept = policy.keep(scores, 30)
    assert scores.shape == (2, 60) and scores.dtype == np.float32 and np.isfinite(scores).all()
    for head in range(2):
        gone = np.setdiff1d(np.arange(60), kept.rows[head])
        assert scores[head, kept.rows[head]].min() >= scores[head, gone].max()
    assert (np.take_along_axis(scores, kept.rows, 1) == kept.scores).all()


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_reads_what_it_says_of_one_head_at_a_time(tiny: Path, name: str) -> None:
    """The scores of heads one by one, without what is not read, are those of the whole layer; what a policy does not
    read is never decoded."""
    policy, _ = eviction.policy(name)
    x = seen(60)
    nothing = np.zeros((0, 1, 8), np.float32)
    each = [
        policy.score(
            Seen(
                x.keys[:, [head]] if "keys" in policy.reads else nothing,
                x.values[:, [head]] if "values" in policy.reads else nothing,
                x.queries[:, 3 * head : 3 * head + 3],
                x.carried[[head]],
                x.scale,
            )
        )
        for head in range(2)
    ]
    np.testing.assert_allclose(np.concatenate(each), policy.score(x), rtol=1e-5, atol=1e-7)
    session = engine_of(tiny, evict=name).session()
    session.prefill(TEXT[:40])
    cache: Any = session._cache
    asked: set[str] = set()

    def spied(what: str, given: Any, layer: int, head: int) -> Any:
        asked.add(what)
        return given(layer, head)

    for what in ("keys", "values"):
        setattr(cache, what, functools.partial(spied, what, getattr(cache, what)))
    session.step(5)
    assert session.floor == 40 and asked == set(policy.reads)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_needs_no_more_queries_than_a_block_has(name: str) -> None:
    policy, _ = eviction.policy(name)
    for block in (8, 64, 512):
        assert 0 <= policy.queries(block) <= block


# -- against their definitions -----------------------------------------------------------------------------------------


def test_attention_is_its_definition() -> None:
    x = seen()
    np.testing.assert_allclose(x.attention(), plain_attention(x), atol=1e-6)
    capped = Seen(x.keys, x.values, x.queries, x.carried, x.scale, cap=0.5)
    scores = 0.5 * np.tanh(np.einsum("hd,td->ht", x.queries[-1, :3], x.keys[:, 0]) * x.scale / 0.5)
    np.testing.assert_allclose(capped.attention(15)[:3, 0], np.exp(scores) / np.exp(scores).sum(1)[:, None], atol=1e-6)


def test_mass_is_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = seen()
    monkeypatch.setattr("genmote.runtime.evict._base.PART_NUMBERS", 700)
    for last in (1, 7, 16, 99):
        wanted = plain_attention(x)[:, -last:].sum(1).reshape(2, 3, -1).mean(1)
        np.testing.assert_allclose(x.mass(last), wanted, atol=1e-5)


def test_scores_are_their_definitions() -> None:
    x = seen()
    each = plain_attention(x)
    np.testing.assert_array_equal(eviction.policy("window")[0].score(x), np.tile(np.arange(40.0), (2, 1)))
    np.testing.assert_allclose(eviction.policy("keynorm")[0].score(x), -np.linalg.norm(x.keys, axis=2).T, rtol=1e-5)
    tova = eviction.policy("tova")[0]
    np.testing.assert_allclose(tova.together(tova.score(x)), np.tile(each[:, -1].mean(0), (2, 1)), atol=1e-6)
    heavy = x.carried + each.sum(1).reshape(2, 3, -1).mean(1)
    np.testing.assert_allclose(eviction.policy("h2o")[0].score(x), heavy, rtol=1e-5)
    looked = each[:, -5:].sum(1).reshape(2, 3, -1).mean(1)
    pooled = np.stack([np.convolve(row, np.ones(3) / 3, mode="same") for row in looked])
    np.testing.assert_allclose(eviction.policy("snapkv:observe=5,pool=3")[0].score(x), pooled, atol=1e-6)


def test_expected_attention_is_the_mean_over_drawn_queries() -> None:
    """E[exp(q . k)] under the normal distribution that the queries have, against a million draws."""
    x = seen(rows=12, heads=1, group=1, dim=4, queries=12)
    rng = np.random.default_rng(1)
    asked = x.queries[:, 0] * x.scale
    drawn = rng.multivariate_normal(asked.mean(0), np.cov(asked.T, bias=True), 1_000_000)
    wanted = np.exp(drawn @ x.keys[:, 0].T).mean(0)
    wanted = wanted / wanted.sum() * np.linalg.norm(x.values[:, 0], axis=1)
    np.testing.assert_allclose(eviction.policy("expected")[0].score(x)[0], wanted, rtol=0.05)


def test_rows_are_shared_out_whole() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        weight = rng.random(9) * (rng.random(9) > 0.4)
        found = _layers.shared(weight, mean=7, least=3, most=20)
        assert found.min() >= 3 and found.max() <= 20 and found.sum() <= 63
        if weight.any():
            assert found.sum() == 63 or (found[weight > 0] == 20).all()
    assert _layers.shared(np.ones(4), 7, 7, 100).tolist() == [7] * 4
    assert _layers.shared(np.ones(4), 7, 7, 5).tolist() == [5] * 4
    assert (np.diff(_layers.shared(np.linspace(1, 0, 6), 7, 3, 99)) <= 0).all()


# -- sessions ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-deci"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers that are alike, and layers of which each has heads of its own."""
    path = tmp_path_factory.mktemp("evict") / "tiny.gguf"
    make_model(request.param, "q8_0", path)
    return path


def engine_of(path: Path, opset: str | None = None, **settings: Any) -> Engine:
    file = ModelFile.open(path)
    chosen = ops.load(opset or ("native" if find_spec("genmote.ops._native") else "numpy"))
    weights = GgufWeights(file, chosen)
    settings = {"context": 200, "kv_tokens": 40} | settings
    return Engine(Decoder(weights.config, weights, chosen), load_tokenizer(file), identity="tiny", **settings)


TEXT = [int(t) for t in np.random.default_rng(5).integers(10, 250, 150)]


def one_by_one(engine: Engine, tokens: list[int]) -> np.ndarray:
    session = engine.session()
    for token in tokens:
        last = session.step(token)
    return last


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("layers", LAYERS)
def test_chunks_and_company_change_nothing(tiny: Path, name: str, layers: str) -> None:
    engine = engine_of(tiny, evict=f"{name}+{layers}")
    wanted = engine.session().prefill(TEXT)
    for chunk in (7, 64):
        engine.chunk = chunk
        np.testing.assert_array_equal(engine.session().prefill(TEXT), wanted)
    first, second = engine.session(), engine.session()
    other = TEXT[::-1]
    at = [0, 0]
    last: list[Any] = [None, None]
    while min(at) < len(TEXT):
        works = []
        for i, (session, text) in enumerate(((first, TEXT), (second, other))):
            stop = min(at[i] + min(session.ahead, 5 + 6 * i), len(text))
            if at[i] < stop:
                works.append((i, stop, Work(session, Rows(text), at[i], stop, 1)))
        for (i, stop, _), logits in zip(works, run_batch(engine, [w for *_, w in works]), strict=True):
            at[i], last[i] = stop, logits
    np.testing.assert_array_equal(last[0][-1], wanted)
    np.testing.assert_array_equal(last[1][-1], engine.session().prefill(other))
    assert first.evicted > 60 and max(first._cache.lengths) <= first._cache.capacity  # type: ignore[union-attr]
    assert sum(first._cache.lengths) <= 40 * engine.config.n_layers  # type: ignore[union-attr]


def test_logits_of_rows_on_both_sides_of_a_cut(tiny: Path) -> None:
    engine = engine_of(tiny, evict="window")
    session, single = engine.session(), engine.session()
    for wanted in (0, 1, 3, 45, 50):
        together = session.extend(Rows(TEXT), len(session), len(session) + 50, wanted)
        each = [single.step(token) for token in TEXT[len(session) - 50 : len(session)]]
        assert (together is None) == (wanted == 0)
        if together is not None:
            np.testing.assert_array_equal(together, np.stack(each[50 - wanted :]))
        if len(session) == 150:
            session.truncate(0), single.truncate(0)


def test_one_by_one_and_native_are_the_same(tiny: Path) -> None:
    pytest.importorskip("genmote.ops._native")
    plain, native = engine_of(tiny, "numpy", evict="h2o"), engine_of(tiny, "native", evict="h2o")
    wanted = plain.session().prefill(TEXT)
    np.testing.assert_array_equal(one_by_one(native, TEXT), wanted)
    np.testing.assert_array_equal(native.session().prefill(TEXT), wanted)


def test_the_peak_never_holds_the_whole_text(tiny: Path) -> None:
    engine = engine_of(tiny, evict="window")
    session, held = engine.session(), []
    for start in range(0, 150, 10):
        session.extend(Rows(TEXT), start, start + 10, 0)
        held.append(session._cache.length)  # type: ignore[union-attr]
    assert max(held) <= 40 and session.ids == TEXT
    assert engine.cache()[0].capacity == 40


def test_below_the_context_nothing_is_evicted(tiny: Path) -> None:
    """A text that fits is the very same as without eviction."""
    engine, whole = engine_of(tiny, evict="tova", kv_tokens=64), engine_of(tiny, kv_tokens=None)
    np.testing.assert_array_equal(engine.session().prefill(TEXT[:64]), whole.session().prefill(TEXT[:64]))
    assert not np.array_equal(engine.session().prefill(TEXT), whole.session().prefill(TEXT))


@pytest.mark.parametrize("name", POLICIES)
def test_whatever_was_held_a_prompt_gives_the_same_logits(tiny: Path, name: str) -> None:
    """Going back within what is held, and starting over where rows were evicted since."""
    engine = engine_of(tiny, evict=name)
    rng = np.random.default_rng(2)
    session, fresh = engine.session(), {}
    for _ in range(12):
        length = int(rng.integers(1, 150))
        if length not in fresh:
            fresh[length] = engine.session().prefill([*TEXT[:length], 9])
        np.testing.assert_array_equal(session.prefill([*TEXT[:length], 9]), fresh[length])
        assert session.ids == [*TEXT[:length], 9]


def test_a_fork_and_a_file_go_on_as_the_session(tiny: Path, tmp_path: Path) -> None:
    engine = engine_of(tiny, evict="h2o+pyramid")
    session = engine.session()
    session.prefill(TEXT[:100])
    fork = session.fork(98)
    session.save(tmp_path / "prefix")
    other = engine_of(tiny, evict="h2o+pyramid").session()
    other.restore(tmp_path / "prefix")
    wanted = engine.session().prefill(TEXT)
    for it in (session, fork, other):
        before = len(it)
        np.testing.assert_array_equal(it.prefill(TEXT), wanted)
        assert before >= it.floor - engine.eviction.block * 8 and len(it) == 150  # type: ignore[union-attr]
    for wrong in ({"evict": "h2o", "kv_tokens": 40}, {"evict": None, "kv_tokens": None}):
        with pytest.raises(SpecError, match=r"a prefix saved with eviction h2o\+pyramid 40 of 200, this engine evicts"):
            engine_of(tiny, **wrong).session().restore(tmp_path / "prefix")
    with pytest.raises(SpecError, match="40 of 200, this engine evicts .* 40 of 199"):  # what a layer keeps hangs on it
        engine_of(tiny, evict="h2o+pyramid", context=199).session().restore(tmp_path / "prefix")


def test_the_pool_reuses_only_what_can_be_gone_on_from(tiny: Path) -> None:
    engine = engine_of(tiny, evict="window")
    first = engine.generate(TEXT[:100], max_tokens=4, ignore_eos=True)
    again = engine.generate([*TEXT[:100], *first.tokens, 7], max_tokens=4, ignore_eos=True)
    assert again.cached_tokens >= 100 and again.evicted > 50
    assert engine.generate(TEXT[:50], max_tokens=4, ignore_eos=True).cached_tokens == 0
    alone = engine.generate([*TEXT[:100], *first.tokens, 7], max_tokens=4, ignore_eos=True, session=engine.session())
    assert alone.tokens == again.tokens


@pytest.mark.parametrize("name", ["window", "h2o", "expected+pyramid"])
def test_speculation_and_the_scheduler_give_the_same_text(tiny: Path, name: str) -> None:
    engine = engine_of(tiny, evict=name)
    prompt = TEXT[:20] * 4
    options = {"max_tokens": 60, "ignore_eos": True}
    plain = engine.generate(prompt, session=engine.session(), **options)
    guessed = engine.generate(prompt, session=engine.session(), speculate=True, **options)
    assert guessed.tokens == plain.tokens and guessed.evicted == plain.evicted > 0
    with Scheduler(engine, max_sessions=3) as scheduler:
        handles = [
            scheduler.submit(engine.request(p, speculate=s, **options))
            for p, s in ((prompt, False), (prompt[3:], True), (prompt, True))
        ]
        results = [handle.result(60) for handle in handles]
    assert results[0].tokens == results[2].tokens == plain.tokens and results[0].evicted > 0


def test_measures_see_what_the_policy_left(tiny: Path) -> None:
    engine, whole = engine_of(tiny, evict="window"), engine_of(tiny, kv_tokens=None)
    assert engine.perplexity(TEXT, context=32).value == whole.perplexity(TEXT, context=32).value
    session = engine.session()
    losses = []
    for token, following in itertools.pairwise(TEXT[:100]):
        logits = session.step(token).astype(np.float64)
        losses.append(np.log(np.exp(logits - logits.max()).sum()) - (logits - logits.max())[following])
    found = engine.perplexity(TEXT[:100], context=100)
    np.testing.assert_allclose(np.log(found.value), np.mean(losses[50:]), rtol=1e-5)
    assert found.value != whole.perplexity(TEXT[:100], context=100).value
    assert np.isfinite(engine.embed(TEXT)).all()


def test_an_interrupted_cut_changes_nothing_or_is_told(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(tiny, evict="keynorm")
    wanted = engine.session().prefill(TEXT[:60])
    session = engine.session()
    session.prefill(TEXT[:40])

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Evict, "keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.step(TEXT[40])
    assert session.ids == TEXT[:40]
    np.testing.assert_array_equal(session.extend(Rows(TEXT), 40, 60, 1)[0], wanted)  # type: ignore[index]

    session = engine.session()
    session.prefill(TEXT[:40])
    with monkeypatch.context() as patch:
        patch.setattr(type(session._cache), "keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.step(TEXT[40])
    with pytest.raises(SpecError, match="interrupted while it evicted rows: truncate it to 0"):
        session.step(TEXT[40])
    np.testing.assert_array_equal(session.prefill(TEXT[:60]), wanted)


def test_another_setting_is_for_texts_to_come(tiny: Path) -> None:
    engine = engine_of(tiny, kv_tokens=None)
    wanted = engine.session().prefill(TEXT)
    session = engine.session()
    session.prefill(TEXT[:70])
    engine.set_cache(evict="expected", kv_tokens=40)
    np.testing.assert_array_equal(session.extend(Rows(TEXT), 70, 150, 1)[0], wanted)  # type: ignore[index]
    assert session.evicted == 0 and session.match(Rows(TEXT)) == 0  # a new prompt is read anew
    session.prefill(TEXT)
    assert session.evicted > 60
    with pytest.raises(SpecError, match="no eviction policy is called 'x'"):
        engine.set_cache(evict="x")
    assert engine.eviction is not None and engine.eviction.name == "expected"


def test_going_back_too_far_is_told(tiny: Path) -> None:
    engine = engine_of(tiny, evict="window")
    session = engine.session()
    session.prefill(TEXT[:100])
    with pytest.raises(SpecError, match=r"rows before 96 were evicted: cannot go back to 50; start over, with 0 rows"):
        session.truncate(50)
    with pytest.raises(SpecError, match=r"50 rows at once, the next eviction is after 4: run so many at most"):
        run_batch(engine, [Work(session, Rows(TEXT), 100, 150, 1)])
    session.truncate(0)
    assert session.ids == [] and session.nbytes == 0 and session.floor == 0


def test_a_damaged_state_is_told(tiny: Path, tmp_path: Path) -> None:
    from genmote.runtime import saved

    engine = engine_of(tiny, evict="h2o")
    session = engine.session()
    session.prefill(TEXT)
    session.save(tmp_path / "prefix")
    ids, state = saved.read(tmp_path / "prefix", engine.identity())
    saved.write(tmp_path / "worse", engine.identity(), ids, state | {"evict_scores": np.zeros(3, np.float32)})
    with pytest.raises(ModelFileError, match="no whole saved prefix"):
        engine.session().restore(tmp_path / "worse")


def test_windowed_layers_keep_the_latest_rows(tiny: Path) -> None:
    """A layer that sees 16 rows loses nothing while it keeps as many."""
    from dataclasses import replace

    def windowed(**settings: Any) -> Engine:
        engine = engine_of(tiny, **settings)
        for layer in engine.decoder.weights.layers:
            layer.spec = replace(layer.spec, window=16)
        return engine

    wanted = windowed(kv_tokens=None).session().prefill(TEXT)
    for name in ("snapkv", "h2o+retrieval"):
        engine = windowed(evict=name)
        session = engine.session()
        np.testing.assert_array_equal(session.prefill(TEXT), wanted)
        assert max(session._cache.lengths) <= 24  # type: ignore[union-attr]


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evict", "kv_tokens", "said"),
    [
        ("windw", 64, r"no eviction policy is called 'windw', did you mean window\?; known: expected, h2o"),
        ("window+pyramd", 64, "no way to share out rows is called 'pyramd', did you mean pyramid"),
        ("window:sink=3", 64, "sink is no setting, did you mean sinks"),
        ("window:sinks=x", 64, "'sinks=x' is no number; write it like sinks=8"),
        ("window:sinks=-1", 64, "sinks=-1: use 0 or more"),
        ("window:recent=2", 64, "recent=2: use a share from 0 to 1"),
        ("snapkv:pool=4", 64, "pool=4: use an odd number"),
        ("snapkv:observe=0", 64, "observe=0: use 1 or more"),
        ("expected:observe=0", 64, "observe=0: use 2 or more"),
        ("expected:floor=-1", 64, "floor=-1: use 0 or more"),
        ("window", 8, "kv_tokens=8 with a context of 4096: use a whole number from 32 up, or a share"),
        ("window", 0.001, "kv_tokens=0.001 with a context"),
        ("window", 64.5, "kv_tokens=64.5 with a context"),
        ("window", -1, "kv_tokens=-1 with a context"),
        ("window", True, "kv_tokens=True with a context"),
    ],
)
def test_wrong_settings_are_told(evict: str, kv_tokens: float, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        eviction.eviction(evict, kv_tokens, 4096)


def test_what_is_left_out_is_filled_in() -> None:
    assert eviction.eviction(None, None, 4096) is None
    assert eviction.eviction("window", 4096, 4096) is None
    found = eviction.eviction("window", None, 4096)
    assert found is not None and found.rows == 1024 and found.block == 64
    other = eviction.eviction(None, 0.5, 4096)
    assert other is not None and (other.rows, other.name) == (2048, eviction.DEFAULT)


def test_the_engine_tells_what_is_lost(tiny: Path) -> None:
    assert engine_of(tiny, kv_tokens=None).lossy == () == fake_engine().lossy
    assert engine_of(tiny, evict="window").lossy == ("rows beyond 40 a layer are evicted (window)",)
    assert Session(engine_of(tiny, evict="window")).evicted == 0


def test_heads_that_find_the_first_saying_are_found(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries that are keys of the token after, and of the token itself, in the layers that should look back."""
    engine = engine_of(tiny)
    assert _layers.look_back(engine.decoder).max() == 0  # random weights look nowhere
    monkeypatch.setattr(_layers, "SLICE", 7)
    made, config = engine.decoder.cache, engine.config

    def looking(capacity: int, **settings: Any) -> Any:
        cache = made(capacity, **settings)
        keys, queries = cache.keys, cache.queries
        first = capacity // 2

        def unit(layer: int, heads: tuple[int, ...]) -> np.ndarray:
            return np.eye(capacity, config.head_dim * 20, dtype=np.float32)[:, None].repeat(heads[layer], 1) * 90

        def asked(layer: int) -> Any:
            place = {0: 0, 1: 1}.get(layer)  # echo in layer 0, induction in layer 1
            if place is None:
                return queries(layer)
            return unit(layer, config.heads)[place : place + first]

        def held(layer: int, head: int) -> Any:
            return unit(layer, config.kv_heads)[:, head : head + 1] if layer < 2 else keys(layer, head)

        monkeypatch.setattr(cache, "keys", held, raising=False)
        monkeypatch.setattr(cache, "queries", asked, raising=False)
        return cache

    monkeypatch.setattr(engine.decoder, "cache", looking)
    found = _layers.look_back(engine.decoder) / config.heads
    assert found[1] > found[0] > 0.3 * found[1] and (found[2:] == 0).all()
