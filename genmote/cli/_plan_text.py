"""A plan for people: what `genmote plan` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genmote.cli._output import columns, size

if TYPE_CHECKING:
    from genmote.runtime.advice import Deadline, Option
    from genmote.runtime.plan import Plan


def help_text(
    helps: list[Option], others: list[tuple[str, Plan]], head: str = "what would do", needed: str = ""
) -> str:
    """What would do, as a table; `needed`: what to say where that is nothing."""
    rows = [[head, "memory", "writes", "context full", "first token after"]]
    for what, made in [(option.what, option.plan) for option in helps] + [
        (f"--device {name}", made) for name, made in others
    ]:
        rows.append([what, size(made.predicted_bytes), *speeds(made)])
    if len(rows) == 1:
        return f"No setting and no known board does so{needed}."
    return columns(rows)


def speeds(made: Plan) -> list[str]:
    from genmote.runtime.advice import rate, seconds

    speed = made.expected
    if speed is None:
        return ["", "", ""]
    writes = [f"{rate(each)} tokens/s" for each in (speed.decode_tokens_per_s, speed.full_decode_tokens_per_s)]
    return [*writes, seconds(speed.first_token_s)]


def report(made: Plan, chosen: Option | None, deadline: Deadline | None, limit: tuple[int, str] | None) -> str:
    """The plan for people: the bar, the parts, the speeds, what was given up; `limit`: what this process may have, and
    by whose limit."""
    from genmote.runtime.advice import rate, seconds
    from genmote.runtime.budget_picture import PARTS, bar

    where = f"on {made.expected.source}" if made.expected is not None else ""
    within = f"{size(made.predicted_bytes)} of memory"
    if limit is not None:
        within += f" (this process may use {size(limit[0])}: {limit[1]})"
    if made.budget_bytes is not None:
        within = f"{size(made.predicted_bytes)} of {size(made.budget_bytes)}"
    lines = [f"{made.model} {where}, {made.context} tokens of context: {within}", "", bar(made), ""]
    rows = []
    for name, (letter, told, _) in PARTS.items():
        if made.parts[name]:
            rows.append([f"  {letter}", told, f"{size(made.parts[name]):>9}", detail(name, made)])
    if made.budget_bytes is not None:
        rows.append(["  .", "free", f"{size(made.budget_bytes - made.predicted_bytes):>9}", ""])
    lines.append(columns(rows))
    speed, threads = made.expected, f"{made.threads} thread{'s' * (made.threads != 1)}"
    if speed is not None:
        lines += [
            "",
            f"  expected  writes {rate(speed.decode_tokens_per_s)} tokens/s at the beginning (waits for {speed.bound})"
            f", {rate(speed.full_decode_tokens_per_s)} with the context full ({speed.full_bound})",
            f"            reads {rate(speed.prefill_tokens_per_s)} tokens/s; answers a prompt of "
            f"{speed.prompt_tokens} after {seconds(speed.first_token_s)}"
            + (f", of {made.context} after {seconds(speed.full_first_token_s)}" * (made.context > speed.prompt_tokens)),
            f"            by the figures of {speed.source} and {threads}; not measured",
            f"  loading   {seconds(speed.load_s)} ({size(made.load_bytes)} from storage), the first time ever "
            f"{seconds(speed.first_load_s)} (weights are re-laid and written); no time above counts it",
        ]
    if chosen is not None:
        judged = ""
        if deadline is not None and deadline.pace is not None:
            judged = f", the pace {deadline.judged_at(made)}"
        lines.append(f"  chosen    {chosen.what}: the least that meets the deadline{judged}")
    lines += [f"  {'given up' if not number else '':<8}  {step}" for number, step in enumerate(made.steps)]
    if made.lossy:
        lines.append(
            "            what is stored in fewer bits or not kept changes the text: genmote eval kv says how much"
        )
    return "\n".join(lines)


def detail(name: str, made: Plan) -> str:
    """What a part is made of, in a few words."""
    from genmote.runtime.evict._layers import REPEATED

    if name == "weights":
        types = sorted(made.weights_by_type.items(), key=lambda item: -item[1])
        return ", ".join(f"{kind} {size(count)}" for kind, count in types[:3]) + " in the file"
    if name == "ring":
        return f"up to {size(made.streamed_bytes)} are read through it in each pass"
    if name == "kv":
        kept = f"{made.kv_tokens} rows a layer, kept by {made.evict}" if made.evict else f"{made.context} tokens"
        if made.finding:
            kept += f"; before, {2 * REPEATED} in f16 to find out which layers look back"
        return f"{made.kv}, {kept}" + (f", {made.sessions} texts" if made.sessions > 1 else "")
    return f"{made.chunk_rows} tokens of a prompt at once" if name == "activations" else ""


def chat_text(chat: dict[str, Any], made: Plan) -> str:
    text = f"the engine of its template takes {size(chat['more_bytes'])} more: "
    if not chat["fits"]:
        return text + f"does not fit, the least is {-(-chat['least_bytes'] // 1_000_000)} MB"
    text += "fits" if made.budget_bytes is not None else size(chat["predicted_bytes"])
    return text + (f", with texts of at most {chat['context']} tokens" if chat["context"] != made.context else "")


def comparison(made: Plan, measured: dict[str, Any]) -> str:
    """Predicted beside measured."""
    from genmote.device.energy import Energy

    peak = measured["peak_rss_bytes"]
    rows = [["", "predicted", "measured", "ratio"]]
    rows.append(["peak memory", size(made.predicted_bytes), size(peak), f"{made.predicted_bytes / peak:.3f}"])
    group = measured.get("group_peak_bytes")
    if group:
        rows.append(["  as the control group counts", "", size(group), f"{made.predicted_bytes / group:.3f}"])
    if made.expected is not None:
        for label, key in (("writing, tokens/s", "decode_tokens_per_s"), ("reading, tokens/s", "prefill_tokens_per_s")):
            expected, real = getattr(made.expected, key), measured[key]
            rows.append([label, f"{expected:.1f}", f"{real:.1f}", f"{expected / real:.2f}" if real else ""])
    read, written = (
        "unknown" if measured[key] is None else size(measured[key]) for key in ("read_bytes", "written_bytes")
    )
    spent = Energy(measured.get("energy_j"), measured["energy"], measured["energy_of"])
    return columns(rows) + f"\ndisk read {read}, written {written}, {spent}\n{measured['how']}"
