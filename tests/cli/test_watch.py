"""`genmote signal watch` as people run it: a process of its own, over a real broker."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from genmote.cli.signal._desk import StatusLine
from genmote.signals import container, reading
from genmote.signals.kinds import Grid, Series


class Watching:
    """A watch, its lines as they come."""

    def __init__(self, *words: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "genmote.cli", "signal", "watch", *words]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, "PYTHONWARNINGS": "", **(env or {})}
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.out)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.err)),
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        lines.extend(line.rstrip("\n") for line in iter(stream.readline, ""))

    def until(self, condition: Callable[[], Any], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end and (self.process.poll() is None or condition()), (self.out, self.err)
            time.sleep(0.02)

    def listens(self) -> Watching:
        self.until(lambda: "listening to" in " ".join(self.err + self.out))
        return self

    def end(self, number: int | None = signal.SIGINT) -> int:
        if number is not None:
            self.process.send_signal(number)
        self.process.wait(30)
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return self.process.returncode

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [told for told in map(json.loads, list(self.out)) if told["event"] == kind]

    def rss(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


Watcher = Callable[..., Watching]


@pytest.fixture
def watch() -> Iterator[Watcher]:
    made: list[Watching] = []

    def start(*words: str, **options: Any) -> Watching:
        made.append(Watching(*words, **options))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()
        one.end(None)


def climate(first: int, count: int, topic: str = "home/a") -> Iterator[tuple[str, bytes]]:
    """A device that tells its time, ten times a second."""
    for n in range(first, first + count):
        told = {"ts": 1_750_000_000_000 + 100 * n, "temp_C": n / 10, "acc": {"x": n % 7}}
        yield topic, json.dumps(told).encode()


def test_lines_of_text_and_a_summary(broker: Any, watch: Watcher) -> None:
    one = watch(broker.url("home/#"), "--every", "0.3").listens()
    broker.publish(climate(0, 20))
    broker.publish(iter([("home/b", b"oops"), ("home/c", b"[1.5,2]")] * 3))
    one.until(lambda: any("home/c: 3 rows" in line for line in one.out))
    broker.publish(climate(20, 1))
    one.until(lambda: any("acc.x 6" in line for line in one.out))
    assert one.end() == 0
    assert one.err[0] == f"127.0.0.1:{broker.port}: listening to home/#"
    cannot = r"[123] messages that cannot be read are left out: home/b: 'oops': wanted a JSON object"
    assert re.match(cannot, one.err[1])  # as many as had come by the next look
    first = next(line for line in one.out if "home/a: 20 rows" in line)
    assert first.startswith("2025-06-15T15:06:41.900Z  home/a: 20 rows, ") and "temp (°C) 1.9, acc.x 5" in first
    assert "column 1 1.5, column 2 2" in "".join(one.out)
    at = next(n for n, line in enumerate(one.out) if " s, 2 topics, 27 messages, " in line)
    assert "3 damaged" in one.out[at]
    assert one.out[at + 1 : at + 3] == ["  home/a: series, 21 rows", "  home/c: series, 3 rows"]
    assert one.out[at + 3].startswith("3 messages that cannot be read are left out: home/b: 'oops'")


def test_json_lines(broker: Any, watch: Watcher) -> None:
    broker.publish(iter([("a", b"0")]), retain=True)
    one = watch(broker.url("a"), "--every", "0.2", "--json").listens()
    rows = [("a", b'{"on": true, "n": 5, "x": null}')] * 8
    broker.publish(iter(rows))
    one.until(lambda: one.events("values"))
    assert one.end(signal.SIGTERM) == 143
    assert one.err == []
    assert [told["note"] for told in one.events("note")] == [f"127.0.0.1:{broker.port}: listening to a"]
    (values,) = one.events("values")
    assert values["values"] == {"on": "true", "n": 5, "x": None} and values["rows"] == 8
    assert abs(values["time_s"] - time.time()) < 60
    (told,) = one.events("summary")
    assert (told["messages"], told["dropped"], told["damaged"], told["retained"], told["connections"]) == (
        8,
        0,
        0,
        1,
        1,
    )
    about = {"topic": "a", "kind": "records", "channels": ["on", "n", "x"], "rows": 8}
    assert told["topics"] == [about | {"path": None, "rows_written": 0, "judged": None}]
    assert told["notes"] == ["1 retained messages, from before the watch, are left out"] and told["alarms"] is None


def test_a_time_to_end(broker: Any, watch: Watcher) -> None:
    one = watch(broker.url("a"), "--seconds", "1", "--json")
    assert one.end(None) == 0 and 1 <= one.events("summary")[0]["seconds"] < 10


def test_a_restart_of_the_broker_is_told(broker: Any, watch: Watcher) -> None:
    one = watch(broker.url("a"), "--json").listens()
    broker.publish(climate(0, 50, "a"))
    time.sleep(0.5)
    broker.stop()
    one.until(lambda: any("connection lost" in told["note"] for told in one.events("note")))
    broker.start()
    one.until(lambda: any("listening again to a" in told["note"] for told in one.events("note")))
    broker.publish(climate(50, 50, "a"))
    time.sleep(0.5)
    assert one.end() == 0
    (told,) = one.events("summary")
    assert told["connections"] == 2 and told["topics"][0]["rows"] == 100
    assert "the connection was made 2 times" in told["notes"]


@pytest.mark.parametrize("suffix", [".csv", ".gmsc"])
def test_a_killed_recording_can_be_read(suffix: str, broker: Any, watch: Watcher, tmp_path: Path) -> None:
    path = tmp_path / ("a" + suffix)
    one = watch(broker.url("a"), "--output", str(path)).listens()
    sent = 0
    while not path.exists() or sent < 2000:  # a .gmsc has its first block after ten seconds
        broker.publish(climate(sent, 50, "a"))
        sent += 50
        time.sleep(0.05)
        assert sent < 50_000
    one.end(signal.SIGKILL)
    (found,) = reading.joined_all(container.read(path)) if suffix == ".gmsc" else reading.read(path)
    assert isinstance(found, Series) and found.rate_hz == pytest.approx(10) and found.units == ("°C", "")
    count = len(found)
    assert 500 < count <= sent and found.start_s == pytest.approx(1.75e9)
    assert np.array_equal(found.values[:, 0], (np.arange(count) / 10).astype(np.float32))
    assert np.array_equal(found.values[:, 1], np.arange(count) % 7)


def test_what_is_recorded_comes_out_whole(broker: Any, watch: Watcher, tmp_path: Path, genmote: Any) -> None:
    words = ["--output", str(tmp_path / "a.gmsc"), "--json"]
    one = watch(broker.url("+"), *words).listens()
    broker.publish(climate(0, 100, "a"))
    broker.publish(climate(0, 30, "b"))
    broker.publish(iter([("c", b'{"word": "on"}')] * 8))
    time.sleep(0.3)
    assert one.end() == 0
    (told,) = one.events("summary")
    paths = {t["topic"]: (t["path"], t["rows_written"]) for t in told["topics"]}
    a, b = (str(tmp_path / name) for name in ("a.gmsc", "a-2.gmsc"))
    assert paths == {"a": (a, 100), "b": (b, 30), "c": (None, 0)}  # a .gmsc has no place for c
    told_of = "8 rows are not recorded: c: is records, which a .gmsc has no place for: record it as .csv"
    assert told_of in [t["note"] for t in one.events("note")]
    assert genmote("signal", "decompress", str(tmp_path / "a.gmsc"), "-o", str(tmp_path / "b.csv")).status == 0
    for name in ("b.csv", "a.gmsc"):
        (found,) = reading.read(tmp_path / name)
        assert isinstance(found, Series) and np.array_equal(found.values[:, 1], np.arange(100) % 7)
    again = watch(broker.url("a"), *words)
    assert again.end(None) == 2 and "a.gmsc is there already: name another file with --output" in again.err[-1]


def test_cut_files(tmp_path: Path, genmote: Any) -> None:
    whole = Grid(np.arange(40)[:, None], np.ones(1), np.zeros(1))
    growing = container.Growing(tmp_path / "a.gmsc")
    piece = Series("a", whole.values(), 1.0, ("v",), ("V",), grid=whole)
    growing.add(piece.part(0, 20))
    growing.add(piece.part(20, 40))
    (tmp_path / "a.gmsc").write_bytes((tmp_path / "a.gmsc").read_bytes()[:-20])
    words = ("signal", "decompress", str(tmp_path / "a.gmsc"), "-o", str(tmp_path / "b.csv"))
    ran = genmote(*words)
    assert ran.status == 2 and "get the file again, or what is whole of it with --cut" in ran.err
    ran = genmote(*words, "--cut", "--json")
    assert ran.status == 0 and ran.json["samples"] == [20] and "ends in the middle" in ran.err


def test_memory_stays_the_same(broker: Any, watch: Watcher, tmp_path: Path) -> None:
    """20,000 samples, and 200,000: in messages of 20 lines of numbers, of three topics, recorded."""
    words = ["--output", str(tmp_path / "a.csv"), "--rate", "100", "--every", "0.5", "--json"]
    one = watch(broker.url("s/+"), *words).listens()

    def send(first: int, messages: int) -> None:
        broker.publish(
            (f"s/{n % 3}", b"\n".join(b"%d,%.2f" % (20 * n + i, i / 7) for i in range(20)))
            for n in range(first, first + messages)
        )
        one.until(lambda: sum(told["rows"] for told in one.events("values")) >= 20 * (first + messages), 90)

    resident = []
    for first in range(0, 10_000, 1000):  # as many at once each time: what waits takes memory too, up to its end
        send(first, 1000)
        resident.append(one.rss())
    assert one.end() == 0
    (told,) = one.events("summary")
    assert told["dropped"] == 0 and sum(t["rows_written"] for t in told["topics"]) == 200_000
    assert resident[-1] - resident[0] < 4e6, resident


# -- a model that judges ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a pump's temperature, which has learnt a little."""
    from genmote.generator.train import Training, train

    path = tmp_path_factory.mktemp("pump") / "m.gguf"
    values = np.random.default_rng(0).normal(20, 0.5, (3000, 1)).astype(np.float32)
    series = Series("pump", values, 1.0, ("temp",), ("°C",))
    train([series], path, Training(size="tiny", context=64, bins=16, steps=40, batch=1024, rate=4e-3))
    return path


def odd() -> list[tuple[str, bytes]]:
    values = [20.0] * 30 + [25.0, 30.0, 26.0] + [20.5] * 10 + [10.0] + [20.0] * 10
    return [
        ("pump", json.dumps({"ts": 1_750_000_000_000 + 1000 * n, "temp (°C)": v}).encode())
        for n, v in enumerate(values)
    ]


def test_alarms(broker: Any, watch: Watcher, model: Path) -> None:
    one = watch(broker.url("#"), "--detect", str(model), "--threshold", "4.5", "--smooth", "1", "--json")
    one.listens()
    broker.publish(iter([*odd(), *[("word", b'{"w": "x"}')] * 8]))
    one.until(lambda: len(one.events("alarm")) == 2 and any("word is not" in n["note"] for n in one.events("note")))
    assert one.end() == 0
    events = [json.loads(line) for line in one.out]
    alarms = [told for told in events if told["event"] == "alarm"]
    assert events[-1]["alarms"] == 2
    assert {told["topic"]: told["judged"] for told in events[-1]["topics"]} == {"pump": True, "word": False}
    assert [(told["topic"], told["time_s"], told["rows"]) for told in alarms] == [
        ("pump", 1_750_000_031.0, 3),
        ("pump", 1_750_000_043.0, 1),
    ]
    for told in alarms:
        assert told["above"] == pytest.approx(told["score"] - 4.5, abs=1e-3) and told["above"] > 0
        assert told["threshold"] == 4.5
    assert [told["values"] for told in alarms] == [{"temp (°C)": 30.0}, {"temp (°C)": 10.0}]
    notes = [told["note"] for told in events if told["event"] == "note"]
    assert any(note.startswith("word is not judged: ") and "takes Series" in note for note in notes)
    assert not [told for told in events if told["event"] == "values"]


def test_an_alarm_that_goes_on_is_told_once(model: Path) -> None:
    from genmote.cli.signal._alarms import Alarm, Alarms

    values = np.full((60, 1), 20, np.float32)
    for start, stop in ((12, 27), (34, 36), (38, 40), (44, 50)):
        values[start:stop] = 30
    series = Series("pump", values, 1.0, ("temp",), ("°C",))

    def told(cuts: list[int], name: str = "pump") -> list[tuple[int, Alarm]]:
        alarms = Alarms(model, 4.5, None, 0.999, 1)
        pieces = [replace(series.part(a, b), name=name if a else "pump") for a, b in pairwise(cuts)]
        return [(a, one) for a, piece in zip(cuts, pieces, strict=False) for one in alarms.push("pump", piece)]

    def brief(found: list[tuple[int, Alarm]]) -> list[tuple[int, int, bool]]:
        return [(first + one.row, one.rows, one.over) for first, one in found]

    whole = told([0, 60])
    assert [(one.rows, one.over, one.channel) for _, one in whole] == [(n, False, "temp") for n in (15, 2, 2, 6)]
    cut = told([0, 20, 25, 30, 35, 40, 45, 50, 55, 60])
    begun = [(one.rows, first) for first, one in cut if not one.over]
    assert begun == [(8, 0), (1, 30), (2, 35), (1, 40)]
    # At 40 an alarm has ended with its piece and was told whole.
    assert [x for x in brief(cut) if x[2]] == [(27, 15, True), (36, 2, True), (50, 6, True)]
    highest = [max(one.score for _, one in found) for found in (whole, cut)]
    assert highest[0] == pytest.approx(highest[1])
    assert [one.over for _, one in told([0, 20, 60], "another recording")] == [False] * 5
    # One that went on has ended where another recording begins, too.
    alarms = Alarms(model, 4.5, None, 0.999, 1)
    pieces = [series.part(0, 20), series.part(20, 25), replace(series.part(25, 60), name="another recording")]
    assert [(one.row, one.rows, one.over) for piece in pieces for one in alarms.push("pump", piece)][:2] == [
        (begun[0][1] + cut[0][1].row, 8, False),
        (0, 13, True),
    ]


def test_an_alarm_tells_the_row_that_is_odd_by_itself(model: Path) -> None:
    """A spike of one row makes the smoothed scores of the rows after it high, too, and one of those the highest."""
    from genmote.cli.signal._alarms import Alarm, Alarms
    from genmote.generator.detect import Detector
    from genmote.generator.model import Generator

    values = np.full((60, 1), 20, np.float32)
    values[30], values[33] = 60, 23
    series = Series("pump", values, 1.0, ("temp",), ("°C",), start_s=100.0)
    smoothed = Detector(Generator.load(model), 0.0, 6).push(series).scores[20:]
    assert 10 < smoothed.argmax() < 16

    def told(cuts: list[int], threshold: float) -> Alarm:
        alarms = Alarms(model, threshold, None, 0.999, 6)
        found = [one for a, b in pairwise(cuts) for one in alarms.push("pump", series.part(a, b))]
        return max((one for one in found if not one.over), key=lambda one: one.score)

    highest = float(smoothed.max())
    begins_with_it = (float(smoothed[:10].max()) + float(smoothed[10])) / 2
    begins_after_it = (float(smoothed[10]) + highest) / 2  # what is told may lie in a piece before
    for threshold in (begins_with_it, begins_after_it):
        for cuts in ([0, 60], [0, 29, 32, 60], [0, 31, 32, 33, 60], list(range(61))):
            one = told(cuts, threshold)
            assert isinstance(one.piece, Series) and one.piece.start_s is not None
            assert (one.piece.start_s + one.row, one.piece.values[one.row, 0], one.channel) == (130.0, 60.0, "temp")
    assert told([0, 60], begins_after_it).score == pytest.approx(highest)


def test_lines_of_an_alarm(capsys: pytest.CaptureFixture[str]) -> None:
    from genmote.cli._output import Output
    from genmote.cli.signal._alarms import Alarm
    from genmote.cli.signal._desk import Desk

    two = Series("pump", np.array([[20, 3], [30, 3]], np.float32), 1.0, ("temp", "flow"), ("°C", "l"), start_s=5.0)
    for json_too in (False, True):
        any_of: Any = SimpleNamespace(threshold=4.5)
        desk = Desk(Output(json=json_too), any_of, None, any_of, 1.0)
        desk._alarm("hall", Alarm(two, 1, 3, 7.25, 9.0, "temp"))
        desk._alarm("hall", Alarm(two, 0, 9, 8.0, 9.0, "temp", over=True))
        assert desk.alarmed == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "6.000 s  hall: score 7.25, 2.75 above 4.50, 3 rows, temp the oddest: temp (°C) 30, flow (l) 3",
        "5.000 s  hall: over after 9 rows, highest score 8.00, temp the oddest",
    ]
    told = [json.loads(line) for line in lines[2:]]
    assert [one["event"] for one in told] == ["alarm", "over"] and told[1]["rows"] == 9
    assert all(one["channel"] == "temp" for one in told)


def test_a_clean_recording_tells_the_threshold(broker: Any, watch: Watcher, model: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(20, 0.5, 2000)
    lines = [f"{n},{v:.3f}" for n, v in enumerate(values)]
    (tmp_path / "clean.csv").write_text("\n".join(["time (s),temp (°C)", *lines]))
    words = ["--detect", str(model), "--clean", str(tmp_path / "clean.csv"), "--quantile", "0.99", "--smooth", "1"]
    one = watch(broker.url("pump"), *words).listens()
    broker.publish(iter(odd()))
    one.until(lambda: sum("pump: score" in line for line in one.out) == 2)
    assert one.end() == 0
    first = next(line for line in one.out if "pump: score" in line)
    found = re.fullmatch(
        r"2025-06-15T15:07:11.000Z  pump: score ([\d.]+), ([\d.]+) above ([\d.]+), 3 rows: temp \(°C\) 30", first
    )
    assert found is not None, first
    score, above, limit = map(float, found.groups())
    assert above == pytest.approx(score - limit, abs=0.02) and 2 < limit < 7
    told = "\n".join(one.out)
    assert "1 topics, 54 messages" in told and "2 alarms" in told


def test_the_line_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    seen, elsewhere = Terminal(), io.StringIO()
    for stream in (seen, elsewhere):
        line = StatusLine(stream)
        line.show("long line")
        line.shown = 0.0  # some time ago
        line.show("short")
        line.show("too soon")
        line.clear()
        line.clear()
    assert seen.getvalue() == "\rlong line" + "\rshort    " + "\r     \r" and elsewhere.getvalue() == ""


# -- who may, and who may not -----------------------------------------------------------------------------------------


def test_passwords_and_tls(make_broker: Any, watch: Watcher, tmp_path: Path) -> None:
    openssl, passwd = shutil.which("openssl"), shutil.which("mosquitto_passwd")
    if openssl is None or passwd is None:
        pytest.skip("openssl or mosquitto_passwd is not here")
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    make += [
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(tmp_path / "key"),
        "-out",
        str(tmp_path / "cert"),
    ]
    subprocess.run(make, check=True, capture_output=True)
    (tmp_path / "users").write_text("me:secret\n")
    subprocess.run([passwd, "-U", str(tmp_path / "users")], check=True)
    for name in ("key", "users"):
        (tmp_path / name).chmod(0o644)
    broker = make_broker(
        f"allow_anonymous false\npassword_file {tmp_path}/users\ncertfile {tmp_path}/cert\nkeyfile {tmp_path}/key\n"
    )
    url, ca = f"mqtts://me@localhost:{broker.port}/a", ["--ca", str(tmp_path / "cert"), "--seconds", "1"]
    (tmp_path / "right").write_text("secret\n")
    right = watch(url, *ca, "--password-file", str(tmp_path / "right"))
    assert right.end(None) == 0 and "listening to a" in right.err[0]
    known = watch(url, *ca, env={"GENMOTE_MQTT_PASSWORD": "secret"})
    assert known.end(None) == 0 and "listening to a" in known.err[0]
    wrong = watch(url, *ca, env={"GENMOTE_MQTT_PASSWORD": "wrong"})
    assert wrong.end(None) == 2 and "the broker refuses (Not authorized): user me" in wrong.err[-1]
    stranger = watch(url, "--seconds", "1", env={"GENMOTE_MQTT_PASSWORD": "secret"})
    assert stranger.end(None) == 2
    assert (
        "its certificate cannot be trusted (self-signed certificate): name the authority's with --ca"
        in stranger.err[-1]
    )
    other = watch(url.replace("localhost", "127.0.0.1"), *ca, env={"GENMOTE_MQTT_PASSWORD": "secret"})
    assert other.end(None) == 2 and "IP address mismatch" in other.err[-1]


def test_no_broker_is_told(watch: Watcher) -> None:
    one = watch("mqtt://127.0.0.1:1/a", "--tries", "2", "--json")
    assert one.end(None) == 2
    assert "no broker answers (Connection refused), tried 2 times" in one.err[-1]
    assert "trying again in" in one.events("note")[0]["note"]


def test_faults(tmp_path: Path, genmote: Any) -> None:
    url, missing = "mqtt://127.0.0.1/a", str(tmp_path / "no")
    (tmp_path / "ca").write_text("none")
    for words, message in (
        (["http://a/b"], "is no address of a broker"),
        ([url, "--seconds", "0"], "seconds=0.0: use more than 0, or leave it out"),
        ([url, "--every", "0"], "every=0.0: use more than 0"),
        ([url, "--rate", "-1"], "rate=-1.0: use 0 (by their times) or the samples of a second"),
        ([url, "--tries", "-1"], "tries=-1: use 0 (for ever) or more"),
        ([url, "--quantile", "1"], "quantile=1.0: use one between 0 and 1, such as 0.999"),
        ([url, "--smooth", "0"], "smooth=0: use 1 or more"),
        ([url, "--max-error", "-1"], "max_error=-1.0: use 0 (exact) or more, such as 0.01"),
        ([url, "--output", "a.wav"], "output=a.wav: wanted a name that ends in .csv or .gmsc"),
        ([url, "--threshold", "3"], "threshold and clean are of a model: name one with --detect"),
        ([url, "--detect", "m"], "detect wants a threshold, or a clean recording that tells it"),
        ([url, "--detect", "m", "--threshold", "3", "--clean", "c"], "one of --threshold and --clean"),
        ([url, "--output", f"{missing}/a.csv"], "is no folder: make it first, or choose another --output"),
        (
            [url, "--password-file", missing],
            "no: cannot be read (No such file or directory): wanted a line with a passw",
        ),
        ([url, "--ca", missing], "--ca is for TLS: write mqtts:// instead of mqtt://"),
        (
            ["mqtts://127.0.0.1/a", "--ca", missing],
            "no: cannot be read (No such file or directory): wanted certificates",
        ),
        (["mqtts://127.0.0.1/a", "--ca", str(tmp_path / "ca")], "wanted certificates in PEM form"),
    ):
        ran = genmote("signal", "watch", *words)
        assert ran.status == 2 and message in ran.err, (words, ran.err)


def test_a_password_wants_a_user(genmote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENMOTE_MQTT_PASSWORD", "secret")
    ran = genmote("signal", "watch", "mqtt://127.0.0.1/a")
    assert ran.status == 2 and "a password without a user: name one with --user, or set GENMOTE_MQTT_USER" in ran.err
    ran = genmote("signal", "watch", "mqtt://example.org/a", "--user", "me")
    assert ran.status == 2 and "use mqtts://, or --plain-password" in ran.err and "secret" not in ran.err
