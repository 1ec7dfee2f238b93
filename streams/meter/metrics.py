"""What is not billed yet, and why, as metrics."""

from __future__ import annotations

from collections import Counter

from schemas.metrics import METER_OLDEST_S, METER_OPEN_SENDS, METER_OPEN_TOKENS, Metrics
from schemas.records import MeterSend, SendState
from streams.domain.clock import Clock
from streams.meter.books import Books


class OpenSends:
    """Sets the gauges of open sends."""

    def __init__(self, books: Books, clock: Clock, metrics: Metrics) -> None:
        self._books = books
        self._clock = clock
        self._sends = metrics.gauge(METER_OPEN_SENDS)
        self._tokens = metrics.gauge(METER_OPEN_TOKENS)
        self._oldest = metrics.gauge(METER_OLDEST_S)
        self._seen: set[str] = set()

    def update(self) -> None:
        """Sets all of them to what is so now."""
        sends, tokens = Counter[str](), Counter[str]()
        now_ms = self._clock.now_ms()
        oldest_ms = now_ms
        for send in self._books.open.values():
            why = _why(send)
            sends[why] += 1
            tokens[why] += send.tokens
            if send.state is not SendState.PARKED:
                oldest_ms = min(oldest_ms, send.at_ms)
        self._seen |= set(sends)
        for why in self._seen:
            self._sends.labels(why).set(sends[why])
            self._tokens.labels(why).set(tokens[why])
        self._oldest.set((now_ms - oldest_ms) / 1000)


def _why(send: MeterSend) -> str:
    return send.reason if send.state is SendState.PARKED else send.state.value
