"""The yield bench as one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.bench.yield_page import COLOURS, MOST_OVER
from tests.bench.yield_runs import Score
from tests.bench.yield_world import Samples


def write(
    path: Path,
    scores: Sequence[Score],
    traces: Sequence[str],
    timelines: Mapping[str, Samples],
) -> None:
    """Per trace: efficiency over P99, and how Backhaul follows real-time calls at +5 %."""
    figure = Figure(figsize=(13, 4 * len(traces)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, trace in enumerate(traces):
        trade = figure.add_subplot(len(traces), 2, 2 * row + 1)
        for family, colour in COLOURS.items():
            own = [s for s in scores if s.trace == trace and s.family == family]
            points = sorted((min(s.over_alone, MOST_OVER) * 100, s.efficiency) for s in own)
            trade.plot(
                [x for x, _ in points], [y for _, y in points], "o-", color=colour, label=family
            )
        trade.set(title=trace, xlabel="P99 TTFT over alone, %", ylabel="harvest efficiency")
        trade.grid(alpha=0.3)
        if row == 0:
            trade.legend(fontsize=8)
        line = timelines[trace].timeline
        course = figure.add_subplot(len(traces), 2, 2 * row + 2)
        minutes = [at / 60 for at, _, _ in line]
        course.plot(minutes, [n for _, _, n in line], color=COLOURS["Backhaul"], label="batch")
        course.plot(minutes, [o for _, o, _ in line], color=COLOURS["AIMD"], label="real-time")
        course.set(title="Backhaul at +5 %", xlabel="minutes", ylabel="calls in flight")
        course.legend(fontsize=8)
    figure.savefig(path, dpi=110)
