"""What the memory set stands on: contestants inside a control group, and the disk's own rate beside them."""

from __future__ import annotations

import json
import os
import sys

import pytest

from benchmarks import disk_read, jailed, run
from benchmarks.fit import sides
from benchmarks.process import ContestantError
from genmote.device import jail
from genmote.device.cgroup import Limits
from genmote.errors import UserError


@pytest.fixture(scope="module")
def groups():
    """Skips where no control group may be made."""
    try:
        jail.run([sys.executable, "-c", ""], Limits(memory_bytes=64 << 20))
    except UserError as why:
        pytest.skip(str(why))


def test_a_contestant_is_held_and_its_peak_is_told(groups):
    code = "import json; x = bytearray(40_000_000); print('noise'); print(json.dumps({'n': len(x)}))"
    held = jailed.run([sys.executable, "-c", code], 120_000_000, drop=[])
    assert held.json() == {"n": 40_000_000}
    assert 40_000_000 < held.figures()["cgroup_peak_bytes"] <= 120_000_000


def test_a_contestant_that_wants_more_is_told_to_have_been_killed(groups):
    with pytest.raises(ContestantError, match=r"was killed: it wanted more than 40 MB"):
        jailed.run([sys.executable, "-c", "x = bytearray(200_000_000)"], 40_000_000, drop=[])


def test_a_contestant_that_fails_or_hangs_is_told(groups):
    with pytest.raises(ContestantError, match=r"exited with 3: it broke"):
        jailed.run([sys.executable, "-c", "import sys; sys.stderr.write('it broke'); sys.exit(3)"], None, drop=[])
    with pytest.raises(ContestantError, match="took longer than 1 s"):
        jailed.run([sys.executable, "-c", "import time; time.sleep(60)"], None, drop=[], timeout_s=1)


def test_where_no_group_can_be_made_the_reason_is_told(monkeypatch):
    def refused(*_, **__):
        raise UserError("no jail can be made here")

    monkeypatch.setattr(jail, "run", refused)
    with pytest.raises(ContestantError, match="no jail can be made here"):
        jailed.run(["true"], None, drop=[])


def test_the_disk_is_read_past_the_page_cache(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 * disk_read.PIECE_BYTES))
    try:
        rate = disk_read.measure(str(path), 0.05, 2)
    except OSError as why:
        if "shorter" in str(why):
            raise
        pytest.skip(f"no direct reads here: {why}")
    assert rate > 1e5
    (tmp_path / "short").write_bytes(b"x")
    with pytest.raises(OSError, match="shorter than one read"):
        disk_read.measure(str(tmp_path / "short"), 0.05)


def test_pairs_take_turns_at_going_first():
    order: list[str] = []
    sides.pairs(lambda: order.append("a"), lambda: order.append("b"), 3)  # type: ignore[func-returns-value,arg-type]
    assert "".join(order) == "abbaab"


def test_each_set_has_its_measures_and_knows_no_other(capsys):
    assert {"large", "small", "kv"} <= set(run.available("memory"))
    assert not {"ours", "sides"} & set(run.available("memory"))
    assert not set(run.available("memory")) & set(run.available("speed"))
    with pytest.raises(SystemExit):
        run.main(["--set", "memory", "--only", "speed"])
    assert "no measure 'speed' in the set memory" in capsys.readouterr().err


def test_the_peer_s_rate_is_that_of_its_last_test():
    held = jailed.Held(json.dumps([{"avg_ts": 1.0}, {"avg_ts": 2.5}]), None, None)  # type: ignore[arg-type]
    assert sides.llama_rate(held) == 2.5
