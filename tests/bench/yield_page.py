"""The yield bench as one HTML page that needs nothing else: inline SVG, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from tests.bench.yield_runs import LEVELS, Score, best
from tests.bench.yield_world import Samples

COLOURS = {
    "static": "#8a8f98",
    "AIMD": "#c2410c",
    "naive": "#000000",
    "hindsight": "#b58900",
    "Backhaul": "#0f766e",
    "Backhaul, warm": "#1d4ed8",
    "hindsight, abort": "#7c5c00",
    "Backhaul, no abort": "#5eaaa3",
    "Backhaul, no abort, warm": "#93c5fd",
    "Backhaul, engine only": "#be185d",
    "oracle": "#7c3aed",
}
#: The plots end here; what is worse is shown at the edge.
MOST_OVER = 0.8
_WIDE, _HIGH, _EDGE = 760, 300, 46
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:820px;margin:2em auto;padding:0 1em;"
    "color:#1c1f23}table{border-collapse:collapse;font-size:13px}td,th{padding:2px 9px;"
    "text-align:right;border-bottom:1px solid #ddd}td:nth-child(2),td:nth-child(3){text-align:left}"
    "text{font:11px system-ui,sans-serif;fill:#444}"
)


def page(scores: Sequence[Score], traces: Sequence[str], timelines: Mapping[str, Samples]) -> str:
    """The whole page."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>Batch beside real-time</title><style>{_STYLE}</style>",
        "<h1>Batch beside real-time</h1><p>Harvest efficiency (share of the capacity that "
        "real-time leaves idle) against what it does to the P99 time to first token.</p>",
    ]
    for trace in traces:
        parts += [f"<h2>{escape(trace)}</h2>", _trade(scores, trace), _table(scores, trace)]
        parts.append(f"<h3>Backhaul at +5 %, calls in flight</h3>{_timeline(timelines[trace])}")
    return "\n".join([*parts, "</html>"])


def _trade(scores: Sequence[Score], trace: str) -> str:
    """Efficiency over P99: one line a family."""
    shapes = [_axes("P99 TTFT over alone", [(x / 10, f"{x * 10} %") for x in range(9)], MOST_OVER)]
    for row, (family, colour) in enumerate(COLOURS.items()):
        own = [s for s in scores if s.trace == trace and s.family == family]
        points = sorted((min(s.over_alone, MOST_OVER), min(1.05, s.efficiency)) for s in own)
        at = [(_x(x, MOST_OVER), _y(y)) for x, y in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        shapes.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        shapes += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in at]
        shapes.append(
            f'<circle cx="{_WIDE - 140}" cy="{130 + 17 * row}" r="4" fill="{colour}"/>'
            f'<text x="{_WIDE - 130}" y="{134 + 17 * row}">{escape(family)}</text>'
        )
    return _svg(shapes)


def _timeline(samples: Samples) -> str:
    end = samples.duration_s
    most = max((max(o, n) for _, o, n in samples.timeline), default=1) or 1
    marks = [(end * part / 6, f"{end * part / 360:.1f} min") for part in range(7)]
    shapes = [_axes("time", marks, end, most)]
    for index, colour in ((2, COLOURS["Backhaul"]), (1, COLOURS["AIMD"])):
        line = " ".join(
            f"{_x(point[0], end):.1f},{_y(point[index] / most):.1f}" for point in samples.timeline
        )
        shapes.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
    shapes.append(f'<text x="60" y="14" style="fill:{COLOURS["Backhaul"]}">batch</text>')
    shapes.append(f'<text x="110" y="14" style="fill:{COLOURS["AIMD"]}">real-time</text>')
    return _svg(shapes)


def _table(scores: Sequence[Score], trace: str) -> str:
    rows = ["<tr><th>P99 at most<th>family<th>best<th>P99<th>tokens/s<th>HE<th>gap P99 ms"]
    for level in LEVELS:
        for family in COLOURS:
            score = best(scores, trace, family, level)
            rows.append(f"<tr><td>+{level:.0%}<td>{escape(family)}" + _cells(score))
    return f"<table>{''.join(rows)}</table>"


def _cells(score: Score | None) -> str:
    if score is None:
        return "<td>none<td><td><td>0<td>"
    return (
        f"<td>{escape(score.name)}<td>{score.over_alone:+.1%}<td>{score.tokens_s:.0f}"
        f"<td>{score.efficiency:.3f}<td>{score.gap_p99_ms:.1f}"
    )


def _axes(
    label: str, marks: Sequence[tuple[float, str]], end: float, most: float | None = None
) -> str:
    shapes = [
        f'<text x="{_x(x, end):.0f}" y="{_HIGH - 26}" text-anchor="middle">{text}</text>'
        for x, text in marks
    ]
    for part in range(6):
        y, value = _y(part / 5), part / 5
        text = f"{value:.1f}" if most is None else f"{value * most:.0f}"
        shapes.append(
            f'<line x1="{_EDGE}" x2="{_WIDE - 10}" y1="{y:.0f}" y2="{y:.0f}" stroke="#e3e3e3"/>'
            f'<text x="{_EDGE - 6}" y="{y + 4:.0f}" text-anchor="end">{text}</text>'
        )
    shapes.append(f'<text x="{_WIDE / 2}" y="{_HIGH - 8}" text-anchor="middle">{label}</text>')
    return "".join(shapes)


def _svg(shapes: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img">{"".join(shapes)}</svg>'


def _x(value: float, end: float) -> float:
    return _EDGE + value / end * (_WIDE - _EDGE - 10)


def _y(share: float) -> float:
    return _HIGH - 42 - share / 1.05 * (_HIGH - 60)
