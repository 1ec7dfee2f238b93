"""Asks the sink for its sums, and narrows down where they are not what was sent.

A range that differs is halved until single minutes are found: some ten questions for a day.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from schemas.records import MeterSend
from streams.domain.billing.reconcile.sums import Expected, Range, SinkBooks
from streams.ports.meter_sink import EventRefused, MeterSink, SinkUnavailable

#: Questions to narrow down differences, over all meters.
_MAX_QUESTIONS = 300
#: A sink that is not there is asked so often, with growing pauses.
_TRIES = 4
_MAX_PAUSE_S = 10.0


Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class SinkSum:
    """A range's sum at the sink, and what it should be.

    refused: why the sink has none. sends: what was sent in it, told of single minutes.
    """

    range: Range
    expected: Expected
    found: int
    refused: str | None = None
    sends: tuple[MeterSend, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether it is right."""
        return self.expected.agrees(self.found)


@dataclass(slots=True)
class Checked:
    """A customer's meter. minutes: the single ones that differ, as far as they were looked for."""

    sum: SinkSum
    minutes: list[SinkSum] = field(default_factory=list)


class SinkCheck:
    """One run's questions."""

    def __init__(
        self,
        sink: MeterSink,
        books: SinkBooks,
        sleep: Sleep,
    ) -> None:
        self._sink = sink
        self._books = books
        self._sleep = sleep
        self._left = _MAX_QUESTIONS

    async def check(self, range_: Range) -> Checked:
        """Compares a range. Raises SinkUnavailable."""
        checked = Checked(await self._ask(range_))
        if not checked.sum.agrees and checked.sum.refused is None:
            await self._narrow(checked.sum, checked.minutes)
        return checked

    async def _narrow(self, known: SinkSum, found: list[SinkSum]) -> None:
        if known.range.minutes == 1:
            found.append(replace(known, sends=tuple(self._books.within(known.range))))
            return
        for half in known.range.halves():
            if self._left <= 0:
                return
            self._left -= 1
            answer = await self._ask(half)
            if not answer.agrees:
                await self._narrow(answer, found)

    async def _ask(self, range_: Range) -> SinkSum:
        expected = self._books.expected(range_)
        for left in reversed(range(_TRIES)):
            try:
                found = await self._sink.total(
                    range_.customer, range_.event_name, range_.start_ms, range_.end_ms
                )
            except EventRefused as refused:
                return SinkSum(range_, expected, 0, refused.code.value)
            except SinkUnavailable as error:
                if not left:
                    raise
                pause_s = error.retry_after_s or 2.0 ** (_TRIES - left - 1)
                await self._sleep(min(pause_s, _MAX_PAUSE_S))
            else:
                return SinkSum(range_, expected, found)
        raise AssertionError  # the last try returns or raises
