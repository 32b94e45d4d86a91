"""The measuring instrument itself: pairs, verdicts, children, records."""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import contestants, files, peers, plain_read, process, record, run
from benchmarks.bench import Bench
from benchmarks.contestants import Speed, Work
from genmote import records
from genmote.device.meter import Meter
from genmote.errors import PullError


def test_the_ratio_is_the_median_of_pairs_not_of_sides():
    # The machine was ten times slower in the last two pairs: the sides' medians would say 20 / 10 and hide nothing,
    # or 2 / 10; pair by pair it is 2 throughout but for one.
    assert record.compare([20.0, 20.0, 2.0, 2.0, 9.0], [10.0, 10.0, 1.0, 1.0, 1.0]) == 2.0
    with pytest.raises(ValueError):
        record.compare([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("value", "asked", "sense", "met"),
    [
        (1.6, 1.6, record.AT_LEAST, True),
        (1.59, 1.6, record.AT_LEAST, False),
        (150.0, 150.0, record.AT_MOST, True),
        (150.1, 150.0, record.AT_MOST, False),
        (None, 1.6, record.AT_LEAST, None),
        (3.0, None, record.AT_LEAST, None),
    ],
)
def test_a_row_is_met_on_the_asked_side(value, asked, sense, met):
    row = record.Row(name="n", measure="m", value=value, value_unit="x", asked=asked, sense=sense)
    assert row.met is met


def test_pairs_take_turns_at_going_first():
    order = []

    def contestant(label):
        def sample(work):
            order.append(label)
            return Speed(1.0, float(len(order)), 0, None)

        return sample

    work = Work(Path("m"), 1, 1, 1)
    ours, theirs = contestants.interleave(contestant("a"), contestant("b"), work, 4)
    assert order == list("abbaabba")
    assert [sample.decode for sample in ours] == [1, 4, 5, 8]
    assert [sample.decode for sample in theirs] == [2, 3, 6, 7]


def test_a_child_gives_output_time_and_peak_memory():
    code = "import json; x = bytearray(80_000_000); print('noise'); print(json.dumps({'n': len(x)}))"
    ran = process.run([sys.executable, "-c", code])
    assert ran.json() == {"n": 80_000_000}
    assert ran.peak_rss_bytes > 80_000_000
    assert ran.wall_ms > 1


def test_the_time_is_the_child_s_and_not_the_meter_s(monkeypatch):
    stop = process.Meter.stop

    def slow(self):
        time.sleep(1.5)
        return stop(self)

    monkeypatch.setattr(process.Meter, "stop", slow)
    assert process.run(["true"]).wall_ms < 1000


def test_what_other_programs_used_is_counted_without_the_child_itself():
    work = "import time; end = time.process_time() + 0.6\nwhile time.process_time() < end: pass"
    alone = process.run([sys.executable, "-c", work]).others_cores
    with process.spinning(min(os.sched_getaffinity(0)), limit_s=30):
        beside = process.run([sys.executable, "-c", work]).others_cores
    assert alone is not None and beside is not None
    assert beside > 0.3  # of two cores, or half of the only one
    # Both see what else the machine does; the spinner's share comes on top wherever a core is free for it.
    assert beside < os.cpu_count() + 0.1


def test_a_failing_child_says_its_last_line():
    with pytest.raises(process.ContestantError, match=r"exited with 3: it broke"):
        process.run([sys.executable, "-c", "import sys; print('it broke', file=sys.stderr); sys.exit(3)"])


def test_a_missing_program_is_a_contestant_error():
    with pytest.raises(process.ContestantError, match="no-such-program did not start"):
        process.run(["/no-such-program"])


def test_a_slow_child_is_ended():
    started = time.monotonic()
    with pytest.raises(process.ContestantError, match="took longer than 0 s"):
        process.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.3)
    assert time.monotonic() - started < 20


def test_the_spinner_ends_with_its_body():
    core = min(os.sched_getaffinity(0))
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = set(children.read_text().split())
    with process.spinning(core, limit_s=30):
        (spinner,) = set(children.read_text().split()) - before
        fields = Path(f"/proc/{spinner}/stat").read_text().rsplit(")", 1)[1].split()
        assert int(fields[11]) > 0  # ticks in user mode: it does spin
        assert os.sched_getaffinity(int(spinner)) == {core}
    assert not Path(f"/proc/{spinner}").exists()


def test_a_row_becomes_a_record_that_reads_back(tmp_path):
    row = record.Row(
        name="decode", measure="decode", value=2.0, value_unit="x", asked=1.6, threads=1, model_sha256="ab", ours=1.0
    )
    entry = record.as_record(row, machine=record.device(), versions=records.versions(), quick=True)
    records.append(tmp_path / "a.jsonl", entry)
    (back,) = record.load(tmp_path)
    assert back == entry
    assert (back.what, back.threads, back.model_sha256, back.energy) == ("bench.decode", 1, "ab", "unavailable")
    assert back.values["met"] is True
    assert back.device["name"] == back.device["cpu"]  # never the machine's name on its network


def test_measured_energy_is_said_to_be_measured():
    row = record.Row(name="d", measure="decode", value=2.0, value_unit="x", asked=None, ours_energy_mj=5.0)
    assert record.as_record(row, machine={}, versions={}, quick=False).energy == "measured"


def test_energy_is_what_the_meter_measures(tmp_path, monkeypatch):
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("energy_uj", "900"), ("max_energy_range_uj", "999")):
        (zone / name).write_text(text)
    spend = [sys.executable, "-c", f"open({str(zone / 'energy_uj')!r}, 'w').write('100')"]  # wrapped: 200 spent
    monkeypatch.setattr(process, "Meter", functools.partial(Meter, root=tmp_path))
    monkeypatch.setattr("genmote.device.energy._pmic", lambda: None)
    assert process.run(spend).energy_mj == pytest.approx(0.2)
    monkeypatch.setattr(process, "Meter", functools.partial(Meter, root=tmp_path / "none"))
    assert process.run(spend).energy_mj is None


def test_the_plain_read_reads_everything():
    rate, reader = plain_read.measure(1 << 22, 2)
    assert rate > 1e8 and reader in ("C", "NumPy")


def test_the_compiled_reader_sums_like_numpy(tmp_path):
    reader = plain_read.compiled(tmp_path)
    if reader is None:
        pytest.skip("no C compiler")
    words = np.random.default_rng(0).integers(0, 2**63, 1001, dtype=np.uint64)
    assert reader(words) == int(words.sum())


def test_cmake_switches_name_what_the_cpu_has():
    options = peers.cmake_options("amx", {"avx", "avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_int8"})
    assert options["GGML_AVX512"] == options["GGML_AVX512_VNNI"] == options["GGML_AMX_INT8"] == "ON"
    assert options["GGML_AVX512_BF16"] == options["GGML_AMX_BF16"] == options["GGML_NATIVE"] == "OFF"
    assert not any("512" in name or "AMX" in name for name in peers.cmake_options("avx2", {"avx2", "avx512f"}))


def test_a_variant_that_the_cpu_cannot_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "cpu_flags", lambda: {"avx2"})
    with pytest.raises(peers.PeerError, match="cannot run the amx build"):
        peers.build("amx", root=tmp_path)


def test_the_amx_mend_is_put_in_once_and_only_where_it_belongs(tmp_path):
    path = tmp_path / "ggml" / "src" / "ggml-cpu" / "amx" / "mmq.cpp"
    path.parent.mkdir(parents=True)
    path.write_text("void f() {\n    _tile_loadconfig(&tc);\n}\n")
    peers.mend_amx(tmp_path)
    once = path.read_text()
    peers.mend_amx(tmp_path)
    assert path.read_text() == once
    assert once.index("asm volatile") < once.index("_tile_loadconfig")
    path.write_text("void g() {}\n")
    with pytest.raises(peers.PeerError, match="does not load its tile configuration"):
        peers.mend_amx(tmp_path)


def test_an_absent_peer_gives_its_reason():
    bench = Bench(quick=True, absent={"amx": "this CPU cannot run the amx build"})
    with pytest.raises(process.ContestantError, match="cannot run the amx build"):
        bench.peer("amx")


def test_a_model_that_cannot_be_made_gives_its_reason(monkeypatch):
    def broken(name):
        raise PullError("no network: try again")

    monkeypatch.setattr(files, "path", broken)
    with pytest.raises(process.ContestantError, match="no network: try again"):
        Bench(quick=True).file("smollm2-q4_0")


def test_ctrl_c_is_one_line_and_130(monkeypatch, capsys):
    def pressed():
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "main", pressed)
    assert run.guarded() == 130
    assert capsys.readouterr().err == "bench: stopped; what was measured so far is kept\n"


def test_an_unknown_measure_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as ended:
        run.main(["--only", "nonsense"])
    assert ended.value.code == 2
    assert "no measure 'nonsense'" in capsys.readouterr().err
