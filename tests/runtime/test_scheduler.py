"""The scheduler: in company every text is as alone, nobody starves, and what ends frees its place."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from genmote.errors import ContextError, GenmoteError, GrammarError, ServeError, SpecError
from genmote.runtime.engine import Engine
from genmote.runtime.fake import EchoDecoder, EchoTokenizer, fake_engine
from genmote.runtime.handle import Event, Handle
from genmote.runtime.scheduler import QueueFull, Scheduler
from genmote.runtime.session import BESIDE


class Watched(EchoDecoder):
    """Notes the rows of each step, and may be held before a step or made to fail."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.log: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.before: Callable[[Any, Any], None] = lambda inputs, spans: None

    def forward(self, inputs: Any, spans: Any, *, logits: Any = "last") -> Any:
        assert self.gate.wait(20)
        self.before(inputs, spans)
        self.log.append([span.count for span in spans])
        return super().forward(inputs, spans, logits=logits)


def watched_engine(**settings: Any) -> tuple[Engine, Watched]:
    decoder = Watched(**settings)
    return Engine(decoder, EchoTokenizer(), identity="echo"), decoder  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while any(t.name == "genmote-scheduler" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [t for t in threading.enumerate() if t.name == "genmote-scheduler"]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


PROMPTS = ["ab ab", "hello there", "x", "to be or not to be, " * 20, "ab abc", "q" * 700]


@pytest.mark.parametrize("max_sessions", [1, 2, 5])
@pytest.mark.parametrize("sure", [2.0, 20.0])
def test_every_text_is_as_alone(max_sessions: int, sure: float) -> None:
    options = [
        {"max_tokens": 20 + 7 * i, "temperature": (i % 3) * 0.7, "seed": i, "speculate": i % 2 == 1, "top_p": 0.9}
        for i in range(12)
    ]
    alone = [fake_engine(sure=sure).generate(PROMPTS[i % 6], **o) for i, o in enumerate(options)]
    engine = fake_engine(sure=sure)
    order = list(range(12))
    random.Random(max_sessions).shuffle(order)
    with Scheduler(engine, max_sessions=max_sessions) as scheduler:
        handles = {i: scheduler.submit(engine.request(PROMPTS[i % 6], **options[i])) for i in order}
        for i, handle in handles.items():
            result = handle.result(20)
            assert (result.text, result.tokens) == (alone[i].text, alone[i].tokens)
            assert result.finish_reason == alone[i].finish_reason
            assert "".join(piece.text for piece in handle) == result.text


def test_several_texts_share_steps() -> None:
    engine, decoder = watched_engine()
    with Scheduler(engine, max_sessions=4) as scheduler:
        decoder.gate.clear()
        handles = [scheduler.submit(engine.request("ab ab", max_tokens=50)) for _ in range(4)]
        until(lambda: scheduler.load() == {"active": 4, "waiting": 0} or bool(scheduler.load()["waiting"]))
        decoder.gate.set()
        for handle in handles:
            handle.result(20)
    assert len(decoder.log) < 60  # alone they would take 200
    assert max(len(step) for step in decoder.log) == 4


def test_a_long_prompt_does_not_hold_up_running_texts() -> None:
    engine, decoder = watched_engine()
    with Scheduler(engine, max_sessions=2) as scheduler:
        running = scheduler.submit(engine.request("ab ab", max_tokens=2000))
        until(lambda: len(decoder.log) > 5)
        decoder.gate.clear()
        at = len(decoder.log) + 1  # a step may be in the gate
        newcomer = scheduler.submit(engine.request("x" * 1000, max_tokens=1))
        decoder.gate.set()
        newcomer.result(20)
        running.cancel()
    steps = decoder.log[at : at + 10]
    assert [step[0] for step in steps] == [1] * 10  # the running text takes part in every step
    assert all(sum(step) <= BESIDE + 1 for step in decoder.log[at:])
    assert steps[1] == [1, BESIDE]


def test_newcomers_share_the_slice_evenly() -> None:
    engine, decoder = watched_engine()
    with Scheduler(engine, max_sessions=3) as scheduler:
        running = scheduler.submit(engine.request("ab ab", max_tokens=2000))
        until(lambda: len(decoder.log) > 5)
        decoder.gate.clear()
        long = scheduler.submit(engine.request("x" * 1000, max_tokens=1))
        short = scheduler.submit(engine.request("y" * 40, max_tokens=1))
        decoder.gate.set()
        short.result(20)
        long.result(20)
        running.cancel()
    assert [1, BESIDE // 2, BESIDE // 2] in decoder.log


def test_those_who_wait_come_in_order() -> None:
    engine, decoder = watched_engine()
    ended: list[int] = []
    with Scheduler(engine, max_sessions=1) as scheduler:
        decoder.gate.clear()

        def note(i: int) -> Callable[[Event], None]:
            return lambda event: ended.append(i) if getattr(event, "finish_reason", None) else None

        handles = [scheduler.submit(engine.request("ab", max_tokens=3), note(i)) for i in range(6)]
        decoder.gate.set()
        for handle in handles:
            handle.result(20)
    assert ended == list(range(6))


def test_the_queue_has_a_limit() -> None:
    engine, decoder = watched_engine()
    with Scheduler(engine, max_sessions=1, queue_limit=2) as scheduler:
        decoder.gate.clear()
        handles = [scheduler.submit(engine.request("ab", max_tokens=2)) for _ in range(3)]
        with pytest.raises(QueueFull, match="1 texts are being generated and 2 wait: try again later"):
            scheduler.submit(engine.request("ab", max_tokens=2))
        decoder.gate.set()
        for handle in handles:
            handle.result(20)
        assert scheduler.submit(engine.request("ab ab", max_tokens=2)).result(20).text == " a"


def test_a_cancelled_text_frees_its_place() -> None:
    engine, decoder = watched_engine()
    with Scheduler(engine, max_sessions=1) as scheduler:
        first = scheduler.submit(engine.request("ab ab", max_tokens=4000))
        waiting = scheduler.submit(engine.request("cd cd", max_tokens=4))
        given_up = scheduler.submit(engine.request("ef ef", max_tokens=4))
        until(lambda: len(decoder.log) > 5)
        given_up.cancel()
        assert given_up.result(20).finish_reason == "cancelled"  # while it waited
        first.cancel()
        first.cancel()
        assert waiting.result(20).text == " cd "
        result = first.result(20)
        assert result.finish_reason == "cancelled" and " ab ab".startswith(result.text[:6])
        assert [piece.finish_reason for piece in first][-1] == "cancelled"
        assert scheduler.load() == {"active": 0, "waiting": 0}


def test_held_text_comes_when_cancelled() -> None:
    engine, decoder = watched_engine()
    with Scheduler(engine) as scheduler:
        decoder.before = lambda inputs, spans: decoder.gate.clear() if len(decoder.log) == 2 else None
        handle = scheduler.submit(engine.request("ab ab", max_tokens=100, stop=" ab ab!"))
        until(lambda: len(decoder.log) == 3)
        handle.cancel()
        decoder.gate.set()
        assert handle.result(20).text == " ab "


def test_an_error_in_one_text_ends_only_that_one() -> None:
    engine, decoder = watched_engine()

    def poisoned(inputs: Any, spans: Any) -> None:
        if any(token == ord("!") for token in inputs):
            raise GenmoteError("a poisoned row")

    decoder.before = poisoned
    with Scheduler(engine, max_sessions=3) as scheduler:
        good = scheduler.submit(engine.request("ab ab", max_tokens=200))
        until(lambda: len(decoder.log) > 3)
        bad = scheduler.submit(engine.request("ab! ab", max_tokens=5))
        also_good = scheduler.submit(engine.request("cd cd", max_tokens=5))
        with pytest.raises(GenmoteError, match="a poisoned row"):
            bad.result(20)
        with pytest.raises(GenmoteError, match="a poisoned row"):
            list(bad)
        assert good.result(20).tokens == fake_engine().generate("ab ab", max_tokens=200).tokens
        assert also_good.result(20).text == " cd c"
        assert scheduler.load() == {"active": 0, "waiting": 0}


def test_an_unforeseen_error_is_told_too() -> None:
    engine, decoder = watched_engine()

    def broken(inputs: Any, spans: Any) -> None:
        raise ZeroDivisionError("oops")

    decoder.before = broken
    with Scheduler(engine) as scheduler:
        with pytest.raises(GenmoteError, match=r"the engine failed: ZeroDivisionError\('oops'\)"):
            scheduler.submit(engine.request("ab")).result(20)
        decoder.before = lambda inputs, spans: None
        assert scheduler.submit(engine.request("ab ab", max_tokens=2)).result(20).text == " a"


def test_a_draft_model_that_fails_ends_only_the_text_it_guesses_for() -> None:
    engine, _ = watched_engine()
    small, decoder = watched_engine()

    def broken(inputs: Any, spans: Any) -> None:
        if spans[0].count > 60:
            raise ZeroDivisionError("oops")

    decoder.before, engine.draft = broken, small
    with Scheduler(engine) as scheduler:
        good = scheduler.submit(engine.request("ab ab", max_tokens=40))
        bad = scheduler.submit(engine.request("x" * 80, max_tokens=40))
        with pytest.raises(GenmoteError, match=r"the engine failed: ZeroDivisionError\('oops'\)"):
            bad.result(20)
        assert good.result(20).finish_reason == "length"


def test_a_listener_that_fails_gives_its_place_up() -> None:
    engine, _ = watched_engine()
    seen: list[Event] = []

    def gone(event: Event) -> None:
        seen.append(event)
        raise ConnectionResetError

    with Scheduler(engine) as scheduler:
        handle = scheduler.submit(engine.request("ab ab", max_tokens=4000), gone)
        assert handle.result(20).finish_reason == "cancelled"
    assert len(seen) == 2


def test_what_is_wrong_is_told_at_once() -> None:
    engine = fake_engine(context=4)
    with Scheduler(engine) as scheduler:
        with pytest.raises(ContextError, match="the context is 4"):
            scheduler.submit(engine.request("too long"))
        with pytest.raises(GrammarError, match="bad json_schema"):
            scheduler.submit(engine.request("a", json_schema={"type": "nothing"}))
    with pytest.raises(ServeError, match="the scheduler is closed: make a new one"):
        scheduler.submit(engine.request("a"))
    with pytest.raises(SpecError, match=r"max_sessions=0: use a whole number of at least 1; queue_limit=-1: use"):
        Scheduler(engine, max_sessions=0, queue_limit=-1)


@pytest.mark.parametrize("drain", [False, True])
def test_closing_cancels_or_finishes(drain: bool) -> None:
    engine, decoder = watched_engine()
    scheduler = Scheduler(engine, max_sessions=1)
    decoder.gate.clear()
    handles = [scheduler.submit(engine.request("ab ab", max_tokens=20)) for _ in range(3)]
    threading.Timer(0.05, decoder.gate.set).start()
    scheduler.close(drain=drain)
    reasons = {handle.result(0).finish_reason for handle in handles}
    assert reasons == ({"length"} if drain else {"cancelled"})
    scheduler.close()


def test_a_shared_beginning_is_run_once() -> None:
    engine, decoder = watched_engine()
    system = "be kind and brief. " * 20
    with Scheduler(engine, max_sessions=2) as scheduler:
        scheduler.submit(engine.request(system + "one", max_tokens=2)).result(20)
        rows = decoder.rows
        handles = [scheduler.submit(engine.request(system + tail, max_tokens=2)) for tail in ("two", "six")]
        results = [handle.result(20) for handle in handles]
    assert decoder.rows - rows <= 2 * (3 + 2)
    assert all(result.cached_tokens >= len(system) for result in results)
    assert handles[0].cached_tokens == results[0].cached_tokens
    assert results[1].tokens == fake_engine().generate(system + "six", max_tokens=2).tokens


def test_other_adapters_meanwhile() -> None:
    engine, _ = watched_engine()
    with Scheduler(engine) as scheduler:
        first = scheduler.submit(engine.request("ab ab", max_tokens=3)).result(20)
        engine.set_adapters(None)
        assert scheduler.submit(engine.request("ab ab", max_tokens=3)).result(20).cached_tokens == 0
        again = scheduler.submit(engine.request("ab ab", max_tokens=3)).result(20)
    assert again.cached_tokens == 5 and again.tokens == first.tokens


def test_async_readers_do_not_block_the_loop() -> None:
    engine, _ = watched_engine(sure=2.0)

    async def read(handle: Handle) -> str:
        return "".join([piece.text async for piece in handle])

    async def leave_early(handle: Handle) -> None:
        async for _ in handle:
            break

    async def main(scheduler: Scheduler) -> list[str]:
        handles = [scheduler.submit(engine.request(p, max_tokens=30)) for p in PROMPTS[:3]]
        left = scheduler.submit(engine.request("ab", max_tokens=4000))
        *texts, _ = await asyncio.gather(*(read(h) for h in handles), leave_early(left))
        await asyncio.to_thread(left.result, 20)
        assert left.result().finish_reason == "cancelled"
        return texts

    with Scheduler(engine, max_sessions=4) as scheduler:
        texts = asyncio.run(main(scheduler))
    assert texts == [fake_engine(sure=2.0).generate(p, max_tokens=30).text for p in PROMPTS[:3]]


def test_waiting_has_an_end() -> None:
    engine, decoder = watched_engine()
    with Scheduler(engine) as scheduler:
        decoder.gate.clear()
        handle = scheduler.submit(engine.request("ab", max_tokens=2))
        with pytest.raises(TimeoutError, match="the text was not finished after 0.01 s"):
            handle.result(0.01)
        decoder.gate.set()


def test_schedulers_leave_nothing_behind() -> None:
    before = set(threading.enumerate())  # some may end meanwhile: other tests'
    for _ in range(5):
        engine = fake_engine()
        with Scheduler(engine, max_sessions=3) as scheduler:
            for handle in [scheduler.submit(engine.request("ab ab", max_tokens=20)) for _ in range(6)]:
                handle.result(20)
    gc.collect()
    assert set(threading.enumerate()) <= before
