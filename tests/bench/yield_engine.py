"""Backhaul's gate where real-time calls don't pass through Backhaul: the engine's page is all."""

from __future__ import annotations

from dataclasses import replace

from streams.domain.gate.gate import GateSettings
from streams.domain.gate.signals import EngineLoad, Signal, Source
from streams.simulator.engine import Lane
from tests.bench.yield_gate import Backhaul
from tests.bench.yield_world import World

#: How often the page is read.
_READ_EVERY_S = 0.25


class EngineOnly(Backhaul):
    """Reads what waits and runs, and the gaps of all sequences; no first token is ever seen."""

    def __init__(self, settings: GateSettings, seed: int = 0) -> None:
        super().__init__(replace(settings, sources=frozenset({Source.ENGINE})), seed)

    def _watch(self, world: World) -> None:
        step = world.last_step
        if step is not None:
            gaps = step.gaps[Lane.REALTIME] + step.gaps[Lane.BATCH]
            self._gaps += gaps
            self._gaps_s += (step.end_s - step.start_s) * gaps

    def _load(self, now_s: float, world: World) -> Signal:
        engine = world.engine
        self._publish_at = now_s + _READ_EVERY_S
        return EngineLoad(
            at_s=now_s + self._later_s,
            waiting=engine.waiting,
            running=engine.running,
            kv_cache_usage=min(1.0, engine.kv_cache_usage),
            gaps=self._gaps,
            gaps_s=self._gaps_s,
        )
