"""Mistral: a `llama` whose first version attends to a window."""

from __future__ import annotations

from dataclasses import replace

from genmote.models.checkpoints import llama
from genmote.models.checkpoints._described import Described
from genmote.models.checkpoints._hparams import Hparams
from genmote.models.checkpoints._standard import windowed


def describe(config: Hparams) -> Described:
    return replace(llama.describe(config), notes=windowed(config, used=True))
