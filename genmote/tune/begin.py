"""The beginning of a training: room on the disk, and what one on a workbench needs, which is looked at before anything
is loaded. PyTorch is imported when it is known to be wanted."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote import home
from genmote.errors import OpsError, SpecError
from genmote.models.chat import ChatTemplate
from genmote.models.config import read_config
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.tokenizer import load_tokenizer
from genmote.runtime.engine import Engine
from genmote.runtime.footprint import without_holes
from genmote.tune import batches
from genmote.tune.examples import Examples
from genmote.tune.memory import Need
from genmote.tune.settings import Tuning

if TYPE_CHECKING:
    from genmote.tune.workbench._trainer import WorkbenchTrainer


def check(tuning: Tuning, ops: str | None) -> None:
    """Raises OpsError where PyTorch is not installed, SpecError for settings that the method does not take."""
    if importlib.util.find_spec("torch") is None:
        raise OpsError(
            f"method={tuning.method} needs PyTorch, which is not installed: run pip install 'genmote[workbench]', or "
            "leave --method out"
        )
    if ops not in (None, "torch"):
        raise OpsError(f"method={tuning.method} computes with the torch op set, not {ops}: leave --ops out")


def check_room(folder: Path, count: int, option: str) -> None:
    """SpecError where `folder` does not take `count` bytes: told before the work whose result is to go there, not by
    its first save."""
    try:
        home.check_room(folder, count)
    except OSError as fault:
        raise SpecError(
            f"{folder} takes no {math.ceil(count / 1e6)} MB of what is kept on the way ({fault.strerror}): make room, "
            f"or name another {option}"
        ) from None


def reader(file: ModelFile, threads: int) -> Engine:
    """An engine without weights: what reads examples, and names the model."""
    from genmote.tune.workbench._model import WorkbenchOps

    without_holes()
    weightless: Any = None
    return Engine(
        Decoder(read_config(file), weightless, WorkbenchOps()),
        load_tokenizer(file),
        chat_template=ChatTemplate.of(file),
        model_path=file.path,
        identity=file.sha256,
        threads=threads,
    )


def trainer(
    file: ModelFile,
    tuning: Tuning,
    learn: Examples,
    judge: Examples,
    budget: int | None,
    threads: int,
    note: Callable[[str], None],
) -> tuple[WorkbenchTrainer, Need]:
    """The method that is asked for, or that the budget chooses, ready to train, and what is planned. `note` is told
    which and why. Raises SpecError, BudgetError."""
    from genmote.tune.workbench import _plan
    from genmote.tune.workbench._trainer import WorkbenchTrainer

    longest = max(each.rows(index) for each in (learn, judge) for index in range(len(each)))
    most = batches.most_rows(learn, tuning.batch, tuning.steps, tuning.seed)
    tuning, method, planned, told = _plan.planned(file, tuning, longest, budget, most)
    note(told)
    return WorkbenchTrainer(file, method, tuning, threads), planned
