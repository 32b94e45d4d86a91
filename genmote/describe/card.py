"""What a training tells of the model that it made: a page beside its files, and a few lines."""

from __future__ import annotations

from typing import Any


def text(made: dict[str, Any]) -> str:
    """The figures in a few lines."""
    drawn = made["settings"]["drawn"] if made["examples"] else 1.0
    lines = [
        f"{made['examples']} examples to learn from, {made['held_out']} held out; {drawn:.0%} of a step were drawn"
    ]
    for stage in ("encoder", "projector", "adapter"):
        if (one := made.get(stage)) is None:
            continue
        right = f", {one['choices_right']:.0%} of {one['choices']} choices right" if "choices_right" in one else ""
        lines.append(f"{stage}: {one['steps']} steps in {one['seconds']:.0f} s, held-out loss "
                     f"{one['held_out_nats']:.3f} nats{right}")  # fmt: skip
    for task in made["tasks"]:
        lines.append(f"task {task['about']}: {', '.join(task['labels'])}; temperature {task['temperature']:g} "
                     f"on {task['examples']} examples")  # fmt: skip
    return "\n".join(lines)


def page(made: dict[str, Any]) -> str:
    """The card, in Markdown."""
    settings = made["settings"]
    about = "\n".join(f"| {name} | {count} |" for name, count in made["about"].items())
    said = " ".join(f"{key}={value}" for key, value in settings.items())
    return f"""# {made["title"]}

A model that describes signals: an encoder of {made["encoder_numbers"]:,} numbers ({made["encoder_bytes"]:,} bytes)
and an adapter ({made["adapter_bytes"]:,} bytes) of the language model {settings["language"]}. The licence of what it
was trained on: {settings["licence"]}.

{text(made)}

What it says is no diagnosis, and of signals unlike those that it was trained on it may say anything.

| kind of question | examples |
| --- | --- |
{about}

Settings: {said}
"""
