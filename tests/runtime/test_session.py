"""Sessions: reuse, growth, interruption and saving never change what the model says next."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmote.errors import ContextError, ModelFileError, SpecError
from genmote.runtime import saved
from genmote.runtime.fake import fake_engine
from genmote.runtime.pool import SessionPool
from genmote.runtime.prompt import Rows, common_prefix
from genmote.runtime.session import Session, Work, run_batch

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


def fresh(tokens: list[int]) -> np.ndarray:
    return fake_engine().session().prefill(tokens)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=6))
def test_whatever_was_held_a_prompt_gives_the_same_logits(prompts: list[list[int]]) -> None:
    session = fake_engine().session()
    for prompt in prompts:
        np.testing.assert_array_equal(session.prefill(prompt), fresh(prompt))
        assert session.ids == prompt


def test_a_held_beginning_is_not_run_again() -> None:
    engine = fake_engine()
    session = engine.session()
    session.prefill(TOKENS)
    before = engine.decoder.rows
    session.prefill([*TOKENS, 7, 8])
    assert engine.decoder.rows == before + 2
    session.prefill([*TOKENS, 7, 8])  # all of it is held: only the last row is run, for its logits
    assert engine.decoder.rows == before + 3
    session.prefill([*TOKENS[:4], 0])
    assert engine.decoder.rows == before + 4


def test_long_prompts_go_in_chunks_and_caches_grow() -> None:
    prompt = [i * 7 % 200 for i in range(1500)]
    engine = fake_engine()
    session = engine.session()
    logits = session.prefill(prompt)
    assert engine.decoder.steps == 3  # 512 rows each
    one_by_one = fake_engine().session()
    for token in prompt:
        last = one_by_one.step(token)  # grows from 256 rows, several times
    np.testing.assert_array_equal(logits, last)


def test_steps_and_verification_rows_agree() -> None:
    session = fake_engine().session()
    session.prefill(TOKENS)
    together = session.feed([1, 4, 1], 3)
    session.truncate(len(TOKENS))
    for row, token in enumerate([1, 4, 1]):
        np.testing.assert_array_equal(session.step(token), together[row])


def test_sessions_in_a_batch_are_as_alone() -> None:
    engine = fake_engine()
    prompts = [TOKENS, TOKENS[::-1], [5] * 4]
    works = [Work(Session(engine), Rows(p), 0, len(p), wanted) for p, wanted in zip(prompts, (1, 3, 0), strict=True)]
    first, second, third = run_batch(engine, works)
    assert first is not None and second is not None and third is None
    np.testing.assert_array_equal(first[0], fresh(prompts[0]))
    for back in range(3):
        np.testing.assert_array_equal(second[-1 - back], fresh(prompts[1][: len(prompts[1]) - back]))


@pytest.mark.parametrize("late", [False, True])
def test_an_interrupted_call_leaves_the_session_as_it_was(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before the cache's lengths move, and after."""
    engine = fake_engine()
    session, other = engine.session(), engine.session()
    session.prefill(TOKENS)
    other.prefill([1, 2])
    real = engine.decoder.forward

    def interrupted(*args: object, **kwargs: object) -> None:
        if late:
            real(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.decoder, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.step(7)
    with pytest.raises(KeyboardInterrupt):
        run_batch(engine, [Work(session, Rows([7]), 0, 1, 1), Work(other, Rows([7]), 0, 1, 1)])
    monkeypatch.undo()
    np.testing.assert_array_equal(session.step(8), fresh([*TOKENS, 8]))
    np.testing.assert_array_equal(other.step(8), fresh([1, 2, 8]))


def test_embeddings_beside_tokens() -> None:
    engine = fake_engine()
    vectors = engine.decoder.embed([4, 1, 5])
    rows = engine.rows([[3, 1], vectors, [9, 2]])
    np.testing.assert_array_equal(engine.session().prefill(rows), fresh([3, 1, 4, 1, 5, 9, 2]))
    session = engine.session()
    session.prefill(rows)
    before = engine.decoder.rows
    session.prefill(engine.rows([[3, 1], vectors.copy(), [9, 2, 8]]))  # equal embeddings are recognised
    assert engine.decoder.rows == before + 1
    session.prefill(engine.rows([[3, 1], vectors + 1, [9, 2, 8]]))
    assert engine.decoder.rows == before + 1 + 6


def test_embeddings_across_chunk_borders() -> None:
    engine = fake_engine()
    tokens = [i % 50 for i in range(1100)]
    rows = engine.rows([tokens[:100], engine.decoder.embed(tokens[100:900]), tokens[900:]])
    np.testing.assert_array_equal(engine.session().prefill(rows), fresh(tokens))


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (np.zeros((2, 3), np.float32), r"embeddings of shape \(2, 3\): this model takes \(N, 4\)"),
        (np.zeros((0, 4), np.float32), r"embeddings of shape \(0, 4\)"),
        (np.full((1, 4), np.nan, np.float32), "embeddings with NaN or infinity"),
    ],
)
def test_wrong_embeddings_are_told(vectors: np.ndarray, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        fake_engine().rows([[1], vectors])


def test_a_full_context_is_told() -> None:
    engine = fake_engine(context=4)
    session = engine.session()
    session.prefill([1, 2, 3])
    session.step(4)
    with pytest.raises(ContextError, match=r"the text has 5 tokens, the context is 4: shorten it$"):
        session.step(5)
    np.testing.assert_array_equal(session.prefill([1, 2, 9]), fresh([1, 2, 9]))
    with pytest.raises(ContextError, match="the prompt has no rows"):
        session.prefill([])


# -- saved prefixes ---------------------------------------------------------------------------------------------------


def test_a_restored_session_goes_on_as_the_saved_one(tmp_path: Path) -> None:
    engine = fake_engine()
    session = engine.session()
    session.prefill(TOKENS)
    session.save(tmp_path / "prefix")
    other_engine = fake_engine()
    other = other_engine.session()
    other.prefill([9, 9, 9])
    other.restore(tmp_path / "prefix")
    assert other.ids == TOKENS
    np.testing.assert_array_equal(other.step(7), session.step(7))
    before = other_engine.decoder.rows
    again = other_engine.session()
    again.restore(tmp_path / "prefix")
    again.prefill([*TOKENS, 1])
    assert other_engine.decoder.rows == before + 1
    assert [p.name for p in tmp_path.iterdir()] == ["prefix"]


def test_an_empty_session_can_be_saved(tmp_path: Path) -> None:
    fake_engine().session().save(tmp_path / "p")
    session = fake_engine().session()
    session.restore(tmp_path / "p")
    np.testing.assert_array_equal(session.step(3), fresh([3]))


def test_a_prefix_of_another_model_is_refused(tmp_path: Path) -> None:
    session = fake_engine().session()
    session.prefill(TOKENS)
    session.save(tmp_path / "p")
    engine = fake_engine()
    engine._identity = "another"
    with pytest.raises(SpecError, match=r"saved with another model or other adapters \(echo…, this is another…\)"):
        engine.session().restore(tmp_path / "p")
    with pytest.raises(ContextError, match="the context is 4"):
        fake_engine(context=4).session().restore(tmp_path / "p")


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_prefix_is_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("saved") / "p"
    session = fake_engine().session()
    session.prefill(TOKENS)
    session.save(path)
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] ^= data.draw(st.integers(1, 255))
    else:
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    path.write_bytes(raw)
    with pytest.raises(ModelFileError, match="is no whole saved prefix: .*; delete it and save it anew"):
        fake_engine().session().restore(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}",
        b'{"model": "m", "ids": [1], "arrays": {"k": ["object", [1]]}}',
        b'{"model": "m", "ids": [1], "arrays": {"k": ["float16", [1000000000000]]}}',
        b'{"model": "m", "ids": [1], "arrays": {"k": ["float16", [-1]]}}',
        b'{"model": "m", "ids": ["x"], "arrays": {}}',
        b'{"model": "m", "ids": [1], "arrays": {}, "more": 1} ',
        b"\xff",
    ],
)
def test_a_lying_prefix_is_refused(tmp_path: Path, header: bytes) -> None:
    """A right checksum over wrong contents."""
    import hashlib

    extra = b"xx" if b"more" in header else b""
    raw = saved.MAGIC + len(header).to_bytes(4, "little") + header + extra
    (tmp_path / "p").write_bytes(raw + hashlib.sha256(raw).digest())
    with pytest.raises(ModelFileError, match="is no whole saved prefix"):
        saved.read(tmp_path / "p", "m")


def test_places_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    session = fake_engine().session()
    with pytest.raises(SpecError, match="no saved prefix can be read there"):
        session.restore(tmp_path / "absent")
    with pytest.raises(SpecError, match="cannot save the prefix there"):
        session.save(tmp_path / "no" / "folder")


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    saved.write(tmp_path / "p", "m", [1, -2], {"k": np.arange(6, dtype=np.float16).reshape(1, 2, 3, 1)})
    raw = (tmp_path / "p").read_bytes()
    size = int.from_bytes(raw[17:21], "little")
    assert json.loads(raw[21 : 21 + size]) == {"model": "m", "ids": [1, -2], "arrays": {"k": ["float16", [1, 2, 3, 1]]}}
    assert raw[21 + size : -32] == np.arange(6, dtype=np.float16).tobytes()


# -- the pool ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    wanted = next((i for i in range(min(len(a), len(b))) if a[i] != b[i]), min(len(a), len(b)))
    assert common_prefix(a, b) == wanted


def test_the_pool_continues_a_text_and_copies_a_shared_beginning() -> None:
    engine = fake_engine()
    pool = SessionPool(engine, keep=4)
    system = list(range(20, 60))
    first = pool.take(Rows([*system, 1]))
    first.prefill([*system, *range(100, 160)])
    pool.give(first)
    second = pool.take(Rows([*system, 2]))
    assert second is not first and second.ids == system  # a copy, and the first is still whole
    assert len(first) == 100
    np.testing.assert_array_equal(second.step(2), fresh([*system, 2]))
    pool.give(second)
    third = pool.take(Rows([*system, *range(100, 160), 3]))
    assert third is first and len(third) == 100
    active = pool.take(Rows([*system, *range(100, 160), 4]), [third])  # from a text at work
    assert active is not third and len(active) == 100
    np.testing.assert_array_equal(active.step(4), fresh([*system, *range(100, 160), 4]))


def test_the_pool_keeps_the_most_recent() -> None:
    engine = fake_engine()
    pool = SessionPool(engine, keep=2)
    sessions = [Session(engine) for _ in range(3)]
    for number, session in enumerate(sessions):
        session.prefill([number] * 5)
        pool.give(session)
    assert len(pool.take(Rows([0] * 6))) == 0
    assert pool.take(Rows([2] * 6)) is sessions[2]


def test_a_pool_of_none_keeps_nothing() -> None:
    engine = fake_engine()
    pool = SessionPool(engine, keep=0)
    session = pool.take(Rows([1, 2]))
    session.prefill([1, 2])
    pool.give(session)
    assert len(pool.take(Rows([1, 2, 3]))) == 0
