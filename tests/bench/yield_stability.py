"""How the gate moves under loads of every shape, with late and lost signals, as one PNG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from streams.domain.gate.fleet import FleetShare, WorkerCalls
from streams.domain.gate.gate import GateSettings
from streams.simulator.engine import EngineSpec
from tests.bench.yield_gate import Backhaul
from tests.bench.yield_page import COLOURS
from tests.bench.yield_traces import SHAPES
from tests.bench.yield_world import Order, Samples, World

#: Shortest and longest way of a record in seconds, and the share that is lost.
SIGNALS = {
    "good": ((0.005, 0.03), 0.0),
    "late (0.3-0.6 s)": ((0.3, 0.6), 0.0),
    "3 of 10 lost": ((0.005, 0.03), 0.3),
}
WORKERS = (1, 20)
_TELL_EVERY_S = 0.05
_PLENTY = 1000
_TARGET = 0.05


class Fleet(Backhaul):
    """The same gate, its limit divided among workers that hear of each other each 50 ms.

    Calls are counted as if each worker had its part of all that are in flight: lines are plenty.
    """

    def __init__(
        self,
        settings: GateSettings,
        workers: int,
        transport_s: tuple[float, float],
        drop: float,
    ) -> None:
        super().__init__(settings, 1, transport_s=transport_s, drop=drop)
        self._shares = {f"worker-{i}": FleetShare(f"worker-{i}") for i in range(workers)}
        self._parts = dict.fromkeys(self._shares, 0)
        self._tell_s = 0.0

    def order(self, now_s: float, world: World) -> Order:
        """See Policy."""
        wanted = super().order(now_s, world)
        if now_s >= self._tell_s:
            self._tell_s = now_s + _TELL_EVERY_S
            self._divide(now_s, wanted.limit, world.in_flight)
        limit = min(wanted.limit, sum(self._parts.values()))
        return Order(limit, wanted.abort_above)

    def _divide(self, now_s: float, limit: int, in_flight: int) -> None:
        many = len(self._shares)
        told = [
            WorkerCalls(name, now_s, in_flight // many + (i < in_flight % many), _PLENTY)
            for i, name in enumerate(self._shares)
        ]
        for mine in told:
            share = self._shares[mine.worker]
            for other in told:
                share.hear(other)
            self._parts[mine.worker] = share.part(limit, mine, now_s)


def course(shape: str, signals: str, workers: int) -> Samples:
    """Two minutes of one shape of load."""
    spec = EngineSpec()
    settings = GateSettings(target=_TARGET, highest=spec.max_num_seqs - 16, can_abort=True)
    transport_s, drop = SIGNALS[signals]
    return World(SHAPES[shape](1), spec).run(Fleet(settings, workers, transport_s, drop))


def write(path: Path) -> None:
    """A row for each shape, a column for each kind of signals; both sizes of fleet in each."""
    figure = Figure(figsize=(15, 3 * len(SHAPES)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, shape in enumerate(SHAPES):
        for column, signals in enumerate(SIGNALS):
            plot = figure.add_subplot(len(SHAPES), len(SIGNALS), row * len(SIGNALS) + column + 1)
            for workers, style in zip(WORKERS, ("-", ":"), strict=True):
                line = course(shape, signals, workers).timeline
                seconds = [at for at, _, _ in line]
                label = f"batch, {workers} worker{'s' if workers > 1 else ''}"
                batch = [n for _, _, n in line]
                plot.plot(seconds, batch, style, color=COLOURS["Backhaul"], label=label)
            realtime = [o for _, o, _ in line]
            plot.plot(
                seconds, realtime, color=COLOURS["AIMD"], lw=0.8, label="real-time, beside 20"
            )
            plot.set(
                title=f"{shape}, signals {signals}", xlabel="seconds", ylabel="calls in flight"
            )
            plot.set_ylim(0, 150)
            if row == column == 0:
                plot.legend(fontsize=8)
    figure.savefig(path, dpi=90)
