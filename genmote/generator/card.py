"""What is told of a generator: of what it was made, how, and how well it knows what it has not seen."""

from __future__ import annotations

import math
from typing import Any


def text(card: dict[str, Any]) -> str:
    """A few lines for people."""
    nats, chance = float(card["held_out_nats"]), float(card["chance_nats"])
    told = (
        f"{card['weights'] / 1e6:.1f} million weights, learnt {card['tokens']} tokens of {card['recordings']} "
        f"recordings in {card['steps']} steps ({card['seconds']:.0f} s)\n"
        f"held out: {nats:.3f} nats a token, {chance:.3f} without knowing what came before "
    )
    if nats > chance - 0.05:
        return told + "- it has learnt nothing of use: train longer (--minutes), or give more recordings"
    return told + f"(the next one is {math.exp(chance - nats):.1f} times as likely)"


def page(card: dict[str, Any]) -> str:
    """The card as a Markdown page."""
    labels = ", ".join(card["labels"]) or "none"
    modalities = ", ".join(card["modalities"]) or "not stated"
    settings = "\n".join(f"| {key} | {value} |" for key, value in sorted(card["settings"].items()))
    curve = "\n".join(f"| {step} | {loss:.4f} |" for step, loss in card["curve"])
    return f"""# {card["name"]}

A generator of signals, made by `genmote signal train`. Run it with `genmote signal generate`, `forecast`, `impute` and
`detect`.

- Of: {modalities}; {card["kind"].lower()}, {len(card["channels"])} channels ({", ".join(card["channels"]) or "fields"})
- Learnt from: {card["recordings"]} recordings, {card["samples"]} samples or rows, of which a tenth was held out
- Licence of the recordings: {card["licence"]}
- Labels that it can be asked for: {labels}
- Codec: {card["codec"]}

{text(card)}

It says what is usual in the recordings that it has seen. It is no diagnosis, and nothing that it generates happened.

| setting | |
| --- | --- |
{settings}

| step | held out, nats a token |
| ---: | ---: |
{curve}
"""
