"""Memory: what a budget chooses, and weights that come from the disk."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.errors import BudgetError, OpsError, SpecError
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.tune.run import tune
from genmote.tune.settings import Tuning

QUICK = Tuning(steps=4, batch=2, context=32, rate=0.02, judge_every=2)


def test_a_budget_chooses_the_fastest_that_fits_and_says_why(tiny: Path) -> None:
    from genmote.tune.memory import SPARE, fitted, need

    file, tuning = ModelFile.open(tiny), Tuning(context=200, batch=8)

    def fits(bytes_planned: int) -> tuple[Tuning, Any, str]:
        return fitted(file, tuning, 1, math.ceil(SPARE * bytes_planned))

    roomy, _, why = fitted(file, tuning, 1, 10**9)
    assert roomy.rows == 1600 and "8 examples in one pass" in why
    sizes = [found.total for found in (need(file, roomy, 1), need(file, tuning, 1))]
    assert sizes[0] > sizes[1]
    chosen, planned, why = fits(sizes[1])
    assert chosen == tuning and planned.total == sizes[1] and "one example at a time" in why
    lean, planned, why = fits(sizes[1] - 10)
    assert planned.total < sizes[1] and lean.logit_rows == 8 and "logits of 8 rows" in why
    leanest, half, why = fits(planned.total - 10)
    assert leanest.inputs == "f16" and leanest.weights == "memory" and "float16" in why
    disk, least, why = fits(half.total - 10)
    assert disk.weights == "disk" and "weights from the disk" in why
    with pytest.raises(BudgetError, match=r"at least \d+ MB, most of it for interpreter") as fault:
        fits(least.total - 10)
    assert fault.value.least_bytes == math.ceil(SPARE * least.total)


def test_weights_from_the_disk_give_the_same_bits_and_are_not_kept(
    data: Path, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    from genmote.tune import from_disk

    make_model("smollm2-135m", "Q4_0", tmp_path / "m.gguf", seed=3)
    held: list[int] = []
    call = from_disk.FromDisk.__call__

    def resident(self: Any, index: int, following: int | None) -> None:
        call(self, index, following)
        found = Path("/proc/self/smaps").read_text().split("\n")
        at = [n for n, line in enumerate(found) if str(own_home) in line and ".packed" in line]
        held.append(sum(int(found[n + 3].split()[1]) for n in at if found[n + 3].startswith("Rss:")) // 1000)

    tuning = Tuning(steps=1, batch=1, context=16, judge_every=1)
    one = tune(tmp_path / "m.gguf", data, tmp_path / "a.gguf", tuning)
    monkeypatch.setattr(from_disk.FromDisk, "__call__", resident)
    two = tune(tmp_path / "m.gguf", data, tmp_path / "b.gguf", replace(tuning, weights="disk"))
    files = [ModelFile.open(tmp_path / f"{name}.gguf") for name in "ab"]
    assert (
        all(np.array_equal(*(file.tensor(name) for file in files)) for name in files[0].tensors)
        and one.after == two.after
    )
    whole = ModelFile.open(tmp_path / "m.gguf").nbytes / 1e6
    assert len(held) > 60 and max(held) < 0.55 * whole  # the output matrix is a third of it
    with pytest.raises(OpsError, match="weights from the disk need the native op set"):
        tune(tmp_path / "m.gguf", data, tmp_path / "b.gguf", replace(tuning, weights="disk"), ops="numpy")


def test_a_budget_is_kept_on_the_command_s_way(tiny: Path, data: Path, tmp_path: Path) -> None:
    told: list[str] = []
    made = tune(tiny, data, tmp_path / "a.gguf", QUICK, memory="1GB", tell=told.append)
    assert told[0].startswith("1000 MB: ") and made.card["settings"]["rows"] == 64
    with pytest.raises(SpecError, match="memory='much'|memory 'much'"):
        tune(tiny, data, tmp_path / "a.gguf", QUICK, memory="much")
