"""Gemma 3 that also sees: its text model; what sees is left out."""

from __future__ import annotations

from dataclasses import replace

from genmote.models.checkpoints import gemma3_text
from genmote.models.checkpoints._described import Described
from genmote.models.checkpoints._hparams import Hparams


def describe(config: Hparams) -> Described:
    return replace(
        gemma3_text.describe(config.inner("text_config")),
        beside=(r"^(model\.)?vision_tower\.", r"^(model\.)?multi_modal_projector\."),
        notes=("only its text model is converted; pictures cannot be given to it",),
    )
