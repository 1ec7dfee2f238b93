"""What a batch would use and cost, as people read it."""

from __future__ import annotations

from api.cli.http import Json
from api.cli.terminal import note, out, out_json, printable


def show_estimate(estimate: Json, window: str, *, as_json: bool) -> None:
    """Prints a cost estimate, and how to create the batch that it is of."""
    if as_json:
        out_json(estimate)
        return
    for line in estimate_lines(estimate, window):
        out(line)
    note(
        f"No batch was created. To create it:  backhaul submit --window {printable(window)} "
        f"--input-file-id {printable(str(estimate.get('input_file_id')))} "
        f"--endpoint {printable(str(estimate.get('endpoint')))}"
    )


def estimate_lines(estimate: Json, window: str) -> list[str]:
    """The whole, each model if there are several, and what is assumed."""
    models = estimate.get("models") or []
    lines = [_summary("estimate", estimate, window)]
    if len(models) > 1:
        lines += [_summary(str(m.get("model") or "unknown model"), m, window) for m in models]
    assumed = estimate.get("assumptions") or {}
    if without := int(assumed.get("lines_without_limit") or 0):
        each = int(assumed.get("output_tokens_without_limit") or 0)
        lines.append(f"assumed: {each:,} output tokens for each of {without:,} lines without limit")
    if unreadable := int(estimate.get("unreadable_lines") or 0):
        lines.append(f"warning: {unreadable:,} lines can't be read; validation will refuse them")
    return lines


def _summary(name: str, part: Json, window: str) -> str:
    tokens = (
        f"{int(part.get('lines') or 0):,} lines, about {int(part.get('input_tokens') or 0):,} "
        f"tokens in and {int(part.get('output_tokens') or 0):,} out"
    )
    cost = (part.get("cost") or {}).get(window) or {}
    price = f"{cost.get('billed')} {cost.get('currency')} ({cost.get('list')} at list price)"
    return printable(f"{name}: {tokens}: {price if cost else 'no price'}")
