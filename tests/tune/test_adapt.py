"""Adapting: when it begins, when it is put off, what is taken and what is not; the journal; the whole way once."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import records
from genmote.cli import main
from genmote.device.sensors import Battery, Heat, Seen
from genmote.errors import ModelFileError, SpecError
from genmote.models.gguf import ModelFile
from genmote.models.write_lora import write_lora
from genmote.signals import chart
from genmote.tune import adapt, journal, picture
from genmote.tune.adapt import Adapting
from genmote.tune.drift._base import Change
from genmote.tune.examples import Examples
from genmote.tune.follow import LAST, Followed, follow, rollback
from genmote.tune.journal import Journal
from genmote.tune.run import tune
from genmote.tune.settings import Tuning
from genmote.tune.watch import Watch

ENDED = {
    "since": 121,
    "examples": 36,
    "replayed": 12,
    "steps": 60,
    "share": 0.75,
    "recent_before": 3.0,
    "recent_after": 2.0,
    "guard_before": 1.0,
    "guard_after": 1.1,
    "seconds": 8.51,
}
OLD, NEW = 10, 20  # the first token of an example is its kind


def example(kind: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([kind, number, number % 7]), np.array([False, True, True])


class FakeTrainer:
    """Has a loss for each kind: `numbers["kind"]`. A step halves the way to 0.5 for the kinds it sees, and adds
    `forgets` to that of the old kind."""

    forgets = 0.0
    fails = False
    learns = True

    def __init__(self, decoder: Any, tuning: Tuning, numbers: dict[str, np.ndarray] | None = None) -> None:
        self.tuning = tuning
        self.numbers = {str(k): np.array([v]) for k, v in ((OLD, 1.0), (NEW, 4.0))} if numbers is None else numbers

    def judge(self, examples: Examples) -> float:
        one = [float(self.numbers[str(int(examples[n][0][0]))][0]) for n in range(len(examples))]
        wobble = [0.1 * np.sin(float(examples[n][0][1])) for n in range(len(examples))]
        return float(np.mean(one) + np.mean(wobble))

    def step(self, examples: Examples, some: list[int], step: int) -> float:
        if self.fails and step == 3:
            raise FloatingPointError("step 3: the loss is nan")
        kinds = {str(int(examples[n][0][0])) for n in some}
        for kind, loss in self.numbers.items():
            if kind in kinds and self.learns:
                loss += (0.5 - loss) / 2
            if kind == str(OLD):
                loss += self.forgets
        return 0.0


class Conditions:
    def __init__(self, *seen: Seen) -> None:
        self.seen = list(seen)

    def read(self) -> Seen:
        return self.seen.pop(0) if len(self.seen) > 1 else self.seen[0]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeTrainer]:
    class Own(FakeTrainer):
        pass

    monkeypatch.setattr(adapt, "Trainer", Own)
    return Own


def run(adapting: Adapting, kinds: list[int], start: int = 0) -> list[adapt.Event]:
    return [event for n, kind in enumerate(kinds, start) for event in adapting.see(*example(kind, n))]


def adapting(**changed: Any) -> Adapting:
    watch = Watch(**{"detector": "page-hinkley", "enough": 24, "recent": 100, **changed.pop("watch", {})})
    return Adapting(None, Tuning(steps=changed.pop("steps", 8)), watch, **changed)  # type: ignore[arg-type]


def test_a_change_is_seen_learnt_and_taken(fake: type[FakeTrainer]) -> None:
    model = adapting()
    events = run(model, [OLD] * 300 + [NEW] * 40)
    assert [event.what for event in events] == ["drift", "accepted"]
    drift, taken = events
    assert 300 < drift.example <= 320 and abs(drift.values["since"] - 301) <= 5
    assert drift.values["loss_before"] == pytest.approx(1, abs=0.1) and drift.values["loss_since"] > 1.5
    assert taken.example == drift.values["since"] + 23  # with the 24th example since the change
    values = taken.values
    assert values["examples"] == 18 and values["replayed"] == 18 and values["steps"] == 8
    assert values["recent_before"] > 3.3 and values["recent_after"] < 1
    assert values["guard_after"] <= values["guard_before"] + 0.1
    assert model.trainer.judge(Examples.of([example(NEW, 1)], np.int32)) < 1
    assert model.trained == 8 * 4 * 2, "rows: 8 steps of 4 examples of 3 tokens"


def test_what_was_taken_learns_on_while_that_is_better(fake: type[FakeTrainer]) -> None:
    """With twice the examples since the change, and twice again; then it is as good as it gets."""
    model = adapting()
    events = run(model, [OLD] * 300 + [NEW] * 40)
    since = events[0].values["since"]
    model.numbers[str(NEW)][:] = 2.0  # there is more to learn
    events += run(model, [NEW] * 20, 340)
    fake.learns = False
    events += run(model, [NEW] * 90, 360)
    assert [event.what for event in events] == ["drift", "accepted", "accepted", "refused"]
    assert [event.example - since for event in events[1:]] == [23, 47, 95]
    assert [event.values["examples"] for event in events[1:]] == [18, 36, 72]
    assert all(event.values["since"] == since for event in events)
    assert events[2].values["recent_before"] > 1.8 and events[3].values["why"].endswith("not better by 2%")
    assert model.changed is None, "the change is over"


def test_a_change_while_it_learns_on_is_another_one(fake: type[FakeTrainer]) -> None:
    model = adapting(watch={"recent": 200, "enough": 40})
    events = run(model, [OLD] * 300 + [NEW] * 60)
    model.numbers["30"] = np.array([6.0])
    events += run(model, [30] * 60, 360)
    assert [event.what for event in events][:4] == ["drift", "accepted", "drift", "accepted"]
    assert abs(events[2].values["since"] - 361) <= 5 and events[3].values["since"] == events[2].values["since"]
    assert events[3].example == events[2].values["since"] + 39


def test_without_a_change_nothing_happens(fake: type[FakeTrainer]) -> None:
    for seed in range(10):
        model = adapting(watch={"detector": ("adwin", "kswin", "page-hinkley")[seed % 3]})
        random = np.random.default_rng(seed)
        model.trainer.judge = lambda examples, random=random: float(random.gamma(4, 0.5))  # type: ignore[method-assign]
        assert run(model, [OLD] * 600) == []


def test_a_change_for_the_better_is_told_and_no_more(fake: type[FakeTrainer]) -> None:
    events = run(adapting(), [NEW] * 200 + [OLD] * 200)
    assert [event.what for event in events] == ["eased"]


def test_what_is_no_better_is_refused_and_tried_with_more(fake: type[FakeTrainer]) -> None:
    fake.learns = False
    model = adapting()
    before = {name: array.copy() for name, array in model.numbers.items()}
    events = run(model, [OLD] * 300 + [NEW] * 300)
    assert [event.what for event in events] == ["drift", "refused", "refused", "refused"]
    since = events[0].values["since"]
    assert [event.example - since for event in events[1:]] == [23, 47, 95]
    why = events[1].values["why"]
    assert why.startswith("loss on recent examples 4.0") and why.endswith(": not better by 2%")
    assert model.changed is None and all(np.array_equal(before[name], model.numbers[name]) for name in before)


def test_what_forgets_is_refused(fake: type[FakeTrainer]) -> None:
    fake.forgets = 0.5
    events = run(adapting(watch={"replay": 0, "recent": 24}), [OLD] * 300 + [NEW] * 100)
    assert [event.what for event in events][:2] == ["drift", "accepted"], "nothing from before is left to guard"
    guard = Examples.of([example(OLD, n) for n in range(9)], np.int32)
    events = run(adapting(watch={"replay": 0, "recent": 24}, guard=guard), [OLD] * 300 + [NEW] * 100)
    assert events[1].what == "refused" and "loss on the guard set" in events[1].values["why"]
    assert "worse by over 0.1 nats" in events[1].values["why"]
    events = run(adapting(watch={"replay": 0, "recent": 24, "guard_loss": 9.0}, guard=guard), [OLD] * 300 + [NEW] * 100)
    assert events[1].what == "accepted"


def test_a_share_of_what_was_learnt_is_taken_where_all_of_it_forgets(fake: type[FakeTrainer]) -> None:
    fake.forgets = 0.5
    guard = Examples.of([example(OLD, n) for n in range(9)], np.int32)
    watch = {"replay": 0, "recent": 24, "guard_loss": 3.3}
    _, taken = run(adapting(watch=watch, guard=guard), [OLD] * 300 + [NEW] * 30)
    assert taken.what == "accepted" and taken.values["share"] == 0.75
    rise = taken.values["guard_after"] - taken.values["guard_before"]
    assert rise == pytest.approx(0.75 * 8 * 0.5), "of 4 nats that all of it costs"
    assert taken.values["recent_after"] == pytest.approx(taken.values["recent_before"] - 0.75 * 3.5, abs=0.1)


def test_replay_keeps_what_was_known(fake: type[FakeTrainer]) -> None:
    """Each step forgets some of it, and what is seen again is learnt again."""
    fake.forgets = 0.2
    kinds = [OLD] * 300 + [NEW] * 100
    events = run(adapting(), kinds)
    assert events[1].what == "accepted" and events[1].values["guard_after"] < events[1].values["guard_before"]
    guard = Examples.of([example(OLD, n) for n in range(9)], np.int32)
    assert run(adapting(watch={"replay": 0, "recent": 24}, guard=guard), kinds)[1].what == "refused"


def test_a_loss_that_is_no_number_is_refused(fake: type[FakeTrainer]) -> None:
    fake.fails, fake.learns = True, False
    refused = run(adapting(), [OLD] * 300 + [NEW] * 40)[1]
    assert refused.what == "refused" and refused.values["stopped"] == "step 3: the loss is nan"
    assert refused.values["steps"] == 2, "as many as were made"


COLD = Heat("cpu", 40.0, 80.0, "trip point")
HOT = Heat("cpu", 78.0, 80.0, "trip point")
LOW, FULL = Battery("BAT0", 12.0, True), Battery("BAT0", 90.0, True)


@pytest.mark.parametrize(
    ("seen", "watch", "why"),
    [
        (Seen(battery=LOW), {}, "battery BAT0 at 12%, below 30%"),
        (Seen(heat=HOT), {}, "cpu 78 °C, limit 80 °C .*: nearer than 5 degrees"),
        (Seen(), {"hours": "22-6"}, "it is 12 o'clock, outside of 22-6"),
        (Seen(), {"hours": "13-18"}, "it is 12 o'clock, outside of 13-18"),
    ],
)
def test_it_waits_for_the_conditions(fake: type[FakeTrainer], seen: Seen, watch: dict[str, Any], why: str) -> None:
    hour = [12]
    conditions = Conditions(seen)
    model = adapting(sensors=conditions, watch=watch, hour=lambda: hour[0])
    events = run(model, [OLD] * 300 + [NEW] * 60)
    assert [event.what for event in events] == ["drift", "postponed"]
    assert re.fullmatch(why, events[1].values["why"])
    conditions.seen, hour[0] = [Seen(battery=FULL, heat=COLD)], 23 if watch.get("hours") == "22-6" else 14
    assert [event.what for event in run(model, [NEW], 360)] == ["accepted"]


def test_full_batteries_on_the_mains_and_nights_are_allowed() -> None:
    watch = Watch(hours="22-6")
    assert all(watch.forbidden(Seen(), hour) is None for hour in (22, 23, 0, 5))
    assert all(watch.forbidden(Seen(), hour) for hour in (6, 12, 21))
    assert Watch().forbidden(Seen(battery=Battery("BAT0", 5.0, False), heat=COLD), 3) is None


def test_a_training_ends_at_its_limits(fake: type[FakeTrainer]) -> None:
    ticks = iter(range(10**6))
    model = adapting(clock=lambda: float(next(ticks)), watch={"max_seconds": 3.0})
    taken = run(model, [OLD] * 300 + [NEW] * 40)[1]
    assert taken.values["steps"] == 3 and taken.values["stopped"] == "after 3 s"
    conditions = Conditions(*[Seen(heat=COLD)] * 3, Seen(heat=HOT))
    model = adapting(sensors=conditions)
    taken = run(model, [OLD] * 300 + [NEW] * 40)[1]
    assert taken.values["steps"] == 2 and "nearer than 5 degrees" in taken.values["stopped"]


def test_it_goes_on_from_its_state(fake: type[FakeTrainer]) -> None:
    kinds = [OLD] * 310 + [NEW] * 100
    whole = adapting()
    told = run(whole, kinds)
    for cut in (150, 315, 330):
        first, second = adapting(), adapting()
        events = run(first, kinds[:cut])
        second.trainer.numbers = first.numbers
        second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
        events += run(second, kinds[cut:], cut)
        assert [(e.what, e.example) for e in events] == [(e.what, e.example) for e in told]
        assert second.state() == whole.state()


def test_a_loss_that_is_no_number_is_no_change(fake: type[FakeTrainer]) -> None:
    model = adapting()
    model.trainer.judge = lambda examples: float("nan")  # type: ignore[method-assign]
    assert run(model, [OLD] * 50) == []
    assert json.dumps(model.state(), allow_nan=False)


def test_what_was_for_a_while_only_is_not_learnt(fake: type[FakeTrainer]) -> None:
    hours = {"hours": "3-4"}
    model = adapting(watch={"detector": "adwin:every=8", **hours}, hour=lambda: 12)
    events = run(model, [OLD] * 200 + [NEW] * 40 + [OLD] * 80)
    assert [event.what for event in events][:2] == ["drift", "postponed"] and events[-1].what == "eased"
    assert model.changed is None


def test_easing_after_what_was_taken_does_not_end_it(fake: type[FakeTrainer]) -> None:
    model = adapting(watch={"recent": 200, "enough": 40})
    events = run(model, [OLD] * 300 + [NEW] * 60)
    assert [event.what for event in events] == ["drift", "accepted"]
    model.losses[-1], model.detector.change = 0.0, Change(1, 1, 0.0)
    assert model._changed().what == "eased" and model.changed == events[0].values["since"]


def test_a_change_began_where_the_losses_stepped(fake: type[FakeTrainer]) -> None:
    """A detector may think it began earlier: what grew by chance before it counts for it, too."""
    model = adapting()
    run(model, [OLD] * 90 + [NEW] * 5)
    model.detector.change = Change(95, 60, 0.0)
    assert model._changed().values["since"] == 91
    model.detector.change = Change(95, 93, 0.0)
    assert model._changed().values["since"] >= 93, "it is the earliest"


def test_a_second_change_is_adapted_to_as_well(fake: type[FakeTrainer]) -> None:
    """The losses from before the first adapter do not count any more."""
    model = adapting()
    assert [e.what for e in run(model, [OLD] * 200 + [NEW] * 120)][:2] == ["drift", "accepted"]
    model.numbers["30"] = np.array([3.0])
    assert [e.what for e in run(model, [30] * 60, 320)][:2] == ["drift", "accepted"]
    assert {int(tokens[0]) for tokens, _ in model.before} >= {OLD, NEW}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"enough": 4}, "enough=4, recent=200: wanted at least 8, and no fewer recent than enough"),
        ({"recent": 20}, "enough=48, recent=20"),
        ({"replay": -1}, "replay=-1, wanted 0 or more"),
        ({"gain": 1.0}, "gain=1.0, guard_loss=0.1: wanted such as 2% and 0.1"),
        ({"max_seconds": 0.0}, "max_seconds=0.0, wanted more than 0"),
        ({"battery_low": 200.0}, "battery_low=200.0, cool_c=5.0: wanted 0 to 100 percent, 0 to 50 degrees"),
        ({"hours": "late"}, "hours=late, wanted such as 22-6"),
        ({"hours": "3-30"}, "hours=3-30, wanted such as 22-6"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], told: str) -> None:
    assert [fault for fault in Watch(**settings).faults() if told in fault]


NUMBERS = {"blk.0.attn_q.weight.lora_a": np.ones((2, 64), np.float32)}


class TestJournal:
    def test_it_goes_back_as_far_as_it_came(self, tmp_path: Path) -> None:
        kept = Journal.open(tmp_path / "a", "sha")
        for _ in range(3):
            kept.take(NUMBERS, "llama", 8.0, {"loss": 1.0})
        stream = {"seen": 3, "recent": [1], "losses": [2.0], "changed": 2, "detector": {}, "lines": 7}
        kept.keep(stream)
        again = Journal.open(tmp_path / "a", "sha")
        assert again.current == 3 and again.stream == stream
        assert again.adapter == tmp_path / "a" / "adapters" / "0003.gguf"
        assert [rollback(tmp_path / "a") for _ in range(3)] == [kept.path(2), kept.path(1), None]
        with pytest.raises(SpecError, match="no adapter is in use, so there is nothing to go back from"):
            rollback(tmp_path / "a")
        lines = list(records.read(tmp_path / "a" / "log.jsonl"))
        assert [line.what for line in lines] == ["adapt.accepted"] * 3 + ["adapt.rollback"] * 3
        assert lines[-1].values == {"adapter": None, "instead_of": "0001.gguf"}
        again = Journal.open(tmp_path / "a", "sha")
        assert again.stream is not None and (again.stream["lines"], again.stream["detector"]) == (7, None)
        (again.path(1).with_name("0002 good.gguf")).write_text("somebody's copy")
        again.take(NUMBERS, "llama", 8.0, {})
        assert again.adapter == again.path(4), "no file is written over"

    def test_faults_are_told(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="has no state.json: name the folder that genmote adapt --state wrote"):
            rollback(tmp_path)
        kept = Journal.open(tmp_path, "sha")
        kept.keep(None)
        with pytest.raises(SpecError, match="is of another model: give that one, or another folder with --state"):
            Journal.open(tmp_path, "other")
        with kept.alone(), pytest.raises(SpecError, match="is in use: another genmote adapt runs there"):
            rollback(tmp_path)
        (tmp_path / "state.json").write_text('{"version": 9}')
        with pytest.raises(SpecError, match="state.json has version 9: this genmote reads 1"):
            Journal.open(tmp_path, "sha")
        (tmp_path / "state.json").write_text('{"version": 1')
        with pytest.raises(SpecError, match="is damaged .*: the adapters beside it are whole"):
            Journal.open(tmp_path, "sha")
        (tmp_path / "file").write_text("")
        with pytest.raises(SpecError, match="cannot be made .*: name another folder with --state"):
            Journal.open(tmp_path / "file", "sha")


WORDS = ["ab", "cd", "ef", "gh"]
TUNING = Tuning(steps=60, rate=1e-2, context=32, rank=4)


def line(kind: str, number: int) -> dict[str, str]:
    """In one home the first word is said again, in the other, which asks otherwise, the second."""
    at = np.random.default_rng([number, 7]).integers(0, 4, 2)
    said = WORDS[at[0]] if kind == "old" else WORDS[at[1]].upper()
    return {"prompt": f"{kind} {WORDS[at[0]]} {WORDS[at[1]]} =", "completion": f" {said}"}


@pytest.fixture(scope="module")
def known(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that knows the old home."""
    folder = tmp_path_factory.mktemp("known")
    (folder / "old.jsonl").write_text("".join(json.dumps(line("old", n)) + "\n" for n in range(60)))
    tune(tiny, folder / "old.jsonl", folder / "old.gguf", Tuning(steps=120, rate=1e-2, context=32, rank=4), threads=1)
    return folder / "old.gguf"


def test_the_whole_way(tiny: Path, known: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stream from a file, cut in two and gone on with; bad lines; back again."""
    stream = tmp_path / "stream.jsonl"
    kinds = ["old"] * 120 + ["new"] * 50
    rows = [json.dumps(line(kind, 100 + n)).encode() for n, kind in enumerate(kinds)]
    rows[3:3] = [b"no json", b"\xff\xfe", b'{"a": 1}', b'{"prompt": "", "completion": ""}']
    stream.write_bytes(b"\n".join(rows[:90]))
    base = ["adapt", str(tiny), str(stream), "--state", str(tmp_path / "state"), "--threads", "1", "--json"]
    base += [
        "--detector",
        "page-hinkley",
        "--enough",
        "24",
        "--guard-loss",
        "0.6",
        "--rank",
        "4",
        "--rate",
        "1e-2",
        "--context",
        "32",
    ]
    assert main([*base, "--adapter", str(known)]) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert result["left_out"] >= 3 and result["changes"] == 0 and result["examples"] + result["left_out"] == 90
    assert "line 4 is left out: no json: not JSON" in told.err and "line 5 is left out: not UTF-8" in told.err
    stream.write_bytes(b"\n".join(rows))
    assert main(base) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["examples"] == len(rows) - 90
    assert result["changes"] == 1 and result["accepted"] >= 1
    last = 1 + result["accepted"]
    assert result["adapter"].endswith(f"adapters/000{last}.gguf")
    assert [e["what"] for e in result["events"]][:2] == ["drift", "accepted"]
    assert result["training_tokens"] > 0 and result["training_tokens_per_s"] > 0 and result["peak_rss_bytes"] > 0
    assert result["wall_s"] >= result["training_s"] > 0 and result["energy"] in ("measured", "unavailable")
    taken = next(r.values for r in records.read(tmp_path / "state" / "log.jsonl") if r.what == "adapt.accepted")
    assert taken["recent_after"] < taken["recent_before"] and taken["guard_after"] <= taken["guard_before"] + 0.6
    assert ModelFile.open(result["adapter"]).tensors
    for earlier in reversed(range(1, last)):
        assert main(["adapt", "--state", str(tmp_path / "state"), "--rollback"]) == 0
        assert capsys.readouterr().out.strip().endswith(f"adapters/000{earlier}.gguf")
    assert main(base) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["examples"] == 0 and result["adapter"].endswith("adapters/0001.gguf"), (
        "it goes on after the last line"
    )
    one = [str(tiny), "--prompt", "new ab cd =", "--max-tokens", "3", "--json", "--temperature", "0"]
    assert main(["generate", *one, "--adapter", result["adapter"]]) == 0
    assert json.loads(capsys.readouterr().out)


def test_a_full_disk_leaves_what_was(tiny: Path, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = [json.dumps(line("old", n)) for n in range(60)]
    new = [json.dumps(line("new", n)) for n in range(30)]
    watch = Watch(detector="page-hinkley", enough=16, recent=40, gain=0.0, guard_loss=99.0)
    folder = tmp_path / "state"
    follow(tiny, old, folder, TUNING, watch, adapter=known, threads=1)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full(*args: Any, **settings: Any) -> None:
        raise ModelFileError("adapters/0002.gguf cannot be written (No space left on device)")

    monkeypatch.setattr(journal, "write_lora", full)
    with pytest.raises(ModelFileError, match="No space left"):
        follow(tiny, old + new, folder, TUNING, watch, again=True, threads=1)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed <= {"log.jsonl", "state.json"} and after.keys() == before.keys()
    monkeypatch.undo()
    told = follow(tiny, old + new, folder, TUNING, watch, again=True, threads=1)
    assert told.count("accepted") == 1 and told.adapter == folder / "adapters" / "0002.gguf"


def test_a_disk_without_room_is_told_before_the_stream_is_read(tiny: Path, tmp_path: Path, full_disk: Any) -> None:
    rows = (json.dumps(line("old", n)) for n in range(60))
    with full_disk(10_000), pytest.raises(SpecError, match=r"s takes no 1 MB .*: make room, or name another --state$"):
        follow(tiny, rows, tmp_path / "s", TUNING, threads=1)
    assert len(list(rows)) == 60


KILLED = """
    import os, signal
    from pathlib import Path
    from genmote.tune.adapt import Trainer
    from genmote.tune.follow import follow
    from genmote.tune.settings import Tuning
    from genmote.tune.watch import Watch
    step = Trainer.step
    def killed(self, examples, some, number):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, examples, some, number)
    Trainer.step = killed
    first = Path({known!r})
    follow({model!r}, open({stream!r}), {folder!r}, {tuning!r}, {watch!r}, adapter=first, again=True, threads=1)
"""


def test_after_a_kill_in_a_training_it_comes_to_the_same_adapter(tiny: Path, known: Path, tmp_path: Path) -> None:
    rows = [json.dumps(line("old", n)) for n in range(60)] + [json.dumps(line("new", n)) for n in range(30)]
    (tmp_path / "stream.jsonl").write_text("\n".join(rows) + "\n")
    tuning, folder = Tuning(steps=8, rate=1e-2, context=32, rank=4), tmp_path / "state"
    watch = Watch(detector="page-hinkley", enough=16, recent=20, gain=0.0, guard_loss=99.0)
    given = {"model": str(tiny), "stream": str(tmp_path / "stream.jsonl"), "folder": str(folder), "known": str(known)}
    code = textwrap.dedent(KILLED).format(**given, tuning=tuning, watch=watch)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in sorted((folder / "adapters").iterdir())] == ["0001.gguf"]
    told: list[str] = []
    again = follow(tiny, rows, folder, tuning, watch, again=True, threads=1, tell=told.append)
    assert told[0] == "goes on after 75 examples", "the state of before the kill"
    whole = follow(tiny, rows, tmp_path / "whole", tuning, watch, adapter=known, again=True, threads=1)
    assert again.count("accepted") == whole.count("accepted") == 1 and again.adapter and whole.adapter
    one, other = ModelFile.open(again.adapter), ModelFile.open(whole.adapter)
    assert all(np.array_equal(one.tensor(name), other.tensor(name)) for name in one.tensors)


def test_an_adapter_of_another_shape_begins_nothing(tiny: Path, tmp_path: Path) -> None:
    numbers = {"blk.0.attn_q.weight.lora_a": np.ones((2, 8), np.float32)}
    numbers["blk.0.attn_q.weight.lora_b"] = np.ones((64, 2), np.float32)
    write_lora(tmp_path / "other.gguf", "llama", numbers, 4.0)
    with pytest.raises(ModelFileError, match="other.gguf: .* do not fit the model's .*; use the adapter's own base"):
        follow(tiny, [json.dumps(line("old", 1))], tmp_path / "s", TUNING, adapter=tmp_path / "other.gguf", threads=1)
    assert not list((tmp_path / "s" / "adapters").iterdir()) and not (tmp_path / "s" / "state.json").exists()


def test_answers_by_chance_leave_the_model_no_worse(tiny: Path, known: Path, tmp_path: Path) -> None:
    """Examples that contradict each other: whatever is taken is better on those that it has not learnt from."""
    draw = np.random.default_rng(3)
    odd = [{**line("new", n % 4), "completion": f" {WORDS[draw.integers(4)].upper()}"} for n in range(60)]
    rows = [json.dumps(each) for each in [*(line("old", n) for n in range(60)), *odd]]
    watch = Watch(detector="page-hinkley", enough=16, recent=60)
    told = follow(
        tiny, rows, tmp_path / "s", Tuning(steps=8, rate=1e-2, context=32, rank=4), watch, adapter=known, threads=1
    )
    assert told.count("drift") >= 1 and told.count("accepted") + told.count("refused") >= 1
    for event in told.events:
        if event.what == "accepted":
            assert event.values["recent_after"] < event.values["recent_before"]
            assert event.values["guard_after"] <= event.values["guard_before"] + watch.guard_loss


def test_the_picture_shows_what_happened() -> None:
    told = Followed(Path("state"), "sha", first=11)
    happened = {
        35: adapt.Event("drift", 35, {"since": 31}),
        45: adapt.Event("accepted", 45, {}),
        48: adapt.Event("drift", 48, {"since": 47}),
    }
    for n in range(11, 51):
        told.take(1.0 if n < 31 else 3.0, 5_000_000, [happened[n]] if n in happened else [])
    drawn = picture.followed(told, "m.gguf")
    assert "m.gguf: drift at 35, accepted at 45, drift at 48" in drawn and "memory after each example" in drawn
    assert drawn.count("<circle") == 1 and drawn.count('class="shade"') == 4, "two changes, in two panels"
    told.losses[3] = float("nan")
    assert "NaN" not in picture.followed(told, "m") and "nan" not in picture.followed(told, "m")
    one = Followed(Path("s"), "sha")
    one.take(1.0, 0, [])
    assert "no change" in picture.followed(one, "m")
    assert "no example was read" in picture.followed(Followed(Path("s"), "sha"), "m")


def test_a_line_that_is_half_written_is_read_when_it_is_whole(tiny: Path, tmp_path: Path) -> None:
    """A log is followed while somebody writes it; what has no end yet is not counted as read."""
    stream, whole = tmp_path / "stream.jsonl", [json.dumps(line("old", n)).encode() + b"\n" for n in range(4)]
    told: list[str] = []

    def go_on(written: bytes, **settings: Any) -> Followed:
        stream.write_bytes(written)
        told.clear()
        with open(stream, "rb") as lines:
            settings = {"again": True, "threads": 1, "tell": told.append, **settings}
            return follow(tiny, lines, tmp_path / "s", TUNING, **settings)

    found = go_on(b"".join(whole[:2]) + whole[2][:20])
    assert (found.examples, found.left_out) == (2, 0)
    assert told == ["the last line has no end yet: it is read when the same command is given again"]
    found = go_on(b"".join(whole[:3]) + whole[3][:-1])
    assert (found.examples, found.left_out) == (2, 0), "whole but for its end: that is an example"
    assert told == ["goes on after 2 examples"]
    assert go_on(b"".join(whole) + b"{half\n" + whole[0]).left_out == 1, "what has its end is a faulty line"
    found = go_on(b"".join(whole) + whole[1][:9], again=False)
    assert (found.examples, found.left_out) == (4, 1), "of a pipe no more comes"


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (
            adapt.Event("drift", 125, {"since": 121, "chance": 6.5e-05, "loss_before": 1.13, "loss_since": None}),
            "harder since example 121: no number instead of 1.1300 nats a token (by chance: 6.5e-05 at most)",
        ),
        (
            adapt.Event("eased", 125, {"since": 121, "chance": 1e-9, "loss_before": 4.0, "loss_since": 1.0}),
            "easier since example 121: 1.0000 instead of 4.0000 nats a token (by chance: 1e-09 at most)",
        ),
        (
            adapt.Event("postponed", 125, {"why": "battery B at 5%, below 30%"}),
            "learning waits: battery B at 5%, below 30%",
        ),
        (
            adapt.Event("accepted", 125, ENDED),
            "a new adapter is taken; nats a token of recent examples 2.0000 instead of 3.0000, of the guard set 1.1000 "
            "instead of 1.0000; 36 examples and 12 from before, 60 steps, 8.51 s, 75% of what was learnt",
        ),
        (
            adapt.Event(
                "refused", 125, ENDED | {"why": "its loss is no number", "guard_before": None, "stopped": "hot"}
            ),
            "what was learnt is not taken: its loss is no number; nats a token of recent examples 2.0000 instead of "
            "3.0000; 36 examples and 12 from before, 60 steps, 8.51 s, stopped: hot, 75% of what was learnt",
        ),
    ],
    ids=lambda each: getattr(each, "what", ""),
)
def test_what_happened_is_told_in_words(event: adapt.Event, told: str) -> None:
    assert str(event) == f"example 125: {told}"


def test_an_endless_stream_takes_no_more_memory_and_its_figures_are_of_all_of_it() -> None:
    told = Followed(Path("s"), "sha", first=5)
    for n in range(LAST + 7):
        told.take(math.nan if n == 3 else float(n < 7), n, [adapt.Event("refused", 5 + n, {})])
    assert len(told.losses) == len(told.memory) == len(told.events) == LAST and told.memory[0] == 7
    values = told.values()
    assert values["examples"] == values["refused"] == LAST + 7
    assert values["loss"] == pytest.approx(6 / (LAST + 6)), "of all whose loss is a number"
    told.events[0], told.events[-1] = adapt.Event("accepted", 7, {}), adapt.Event("accepted", LAST + 11, {})
    drawn = picture.followed(told, "m")
    assert drawn.count("<circle") == 1 and f'cx="{chart.LEFT + chart.COLUMNS:.1f}"' in drawn, "the one that is in it"


def test_the_same_folder_tells_what_it_does_not_take(tiny: Path, known: Path, tmp_path: Path) -> None:
    rows = [json.dumps(line("old", n)) for n in range(3)]
    follow(tiny, rows, tmp_path / "s", TUNING, adapter=known, threads=1)
    told: list[str] = []
    follow(tiny, rows, tmp_path / "s", TUNING, adapter=known, threads=1, tell=told.append)
    assert f"{tmp_path / 's' / 'adapters' / '0001.gguf'} is in use: {known} is not taken" in told
    assert "goes on after 3 examples" in told
    told.clear()
    follow(tiny, rows, tmp_path / "s", TUNING, Watch(detector="kswin"), threads=1, tell=told.append)
    assert "the detector begins anew: its state is of other settings" in told
    state = json.loads((tmp_path / "s" / "state.json").read_text())
    del state["stream"]["recent"]
    (tmp_path / "s" / "state.json").write_text(json.dumps(state))
    with pytest.raises(SpecError, match="state.json is damaged .'recent'.: the adapters beside it are whole"):
        follow(tiny, rows, tmp_path / "s", TUNING, threads=1)


def test_another_stream_is_read_from_its_beginning(tiny: Path, tmp_path: Path) -> None:
    """As many lines of it as were read of the one before would be passed over, and nobody would know."""
    one, other = ([json.dumps(line(kind, n)) for n in range(20)] for kind in ("old", "new"))
    unlike = "the stream begins unlike the one before: all of it is read"

    def read(rows: list[str], **settings: Any) -> tuple[int, bool]:
        told: list[str] = []
        found = follow(tiny, rows, tmp_path / "s", TUNING, threads=1, tell=told.append, **settings)
        return found.examples, unlike in told

    assert read(one[:3], again=True) == (3, False)
    assert read(["", *one], again=True) == (20, True)
    assert read([f"{row}\n" for row in ["", *one]], again=True) == (0, False)
    assert read(["", *one, *other[:2]], again=True) == (2, False), "it has grown"
    assert read(other, again=True) == (20, True)
    assert read(other[:4], again=True) == (4, True), "shorter than what it would be known by"
    assert read(other) == (20, False), "standard input is read from where it is"
    assert read(other, again=True) == (20, True)


def test_what_is_odd_in_a_guard_is_told(tiny: Path, tmp_path: Path) -> None:
    guard, told = tmp_path / "guard.jsonl", list[str]()
    guard.write_text(json.dumps(line("old", 1)) + "\n" + json.dumps({"text": "ab " * 90}) + "\n")
    follow(tiny, [json.dumps(line("old", 2))], tmp_path / "s", TUNING, guard=guard, threads=1, tell=told.append)
    assert f"{guard}: 1 of 2 examples are longer than 32 tokens: cut at their end (--context)" in told


def test_a_line_that_the_chat_template_does_not_take_is_left_out(tiny: Path, tmp_path: Path) -> None:
    odd = {"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "b"}]}
    told: list[str] = []
    rows = [json.dumps(odd), json.dumps(line("old", 1))]
    found = follow(tiny, rows, tmp_path / "s", TUNING, threads=1, tell=told.append)
    assert (found.examples, found.left_out) == (1, 1)
    assert told[0].startswith("line 1 is left out: the chat template fails: ")
    with pytest.raises(SpecError, match="context=4096: this model takes 1 to 256 tokens"):
        follow(tiny, rows, tmp_path / "t", Tuning(context=4096), threads=1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--state", "x"], "a model and a stream are wanted, or --rollback"),
        (["m", "s", "--state", "x", "--rank", "0"], "rank=0: use 1 to 1024"),
        (["m", "s", "--state", "x", "--hours", "late"], "hours=late, wanted such as 22-6"),
        (["zoo-none", "s", "--state", "x"], "zoo-none"),
        (["--state", "no-such-folder", "--rollback"], "has no state.json"),
    ],
)
def test_the_verb_tells_faults(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt", *words]) == 2
    assert told in capsys.readouterr().err
