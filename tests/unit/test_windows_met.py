"""Windows in danger, in made-up time: a batch that real-time traffic leaves hardly any calls.

due, as the controller tells it ─► what the deadline needs ─► calls of the one worker ─► fold
"""

from __future__ import annotations

import pytest

from schemas.records import BatchStatus
from streams.domain.batch.effects import CloseLines, OpenLines, SettleLines
from streams.domain.batch.machine import Entry, Event
from streams.domain.batch.state import Finalizing
from streams.domain.gate.floor import Demand, Work, needed_calls
from tests.support.batch_log import (
    BATCH,
    CREATED_MS,
    Controller,
    assembled,
    create,
    outcome,
    segment,
    validated,
    window_ended,
)
from tests.support.dispatch_play import Play, Server
from tests.support.workers import opened

TOTAL, WINDOW_S, CALL_S = 600, 300, 1.0
ENDS_MS = CREATED_MS + 1000 * WINDOW_S


class Windowed(Play):
    """One batch with a window, whose every line is folded and billed.

    capacity: calls that the upstream can bear at most; the batch gets what its deadline needs.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__([Server("w", "p", 1, CALL_S, 0)])
        self.capacity = capacity
        self.most_calls = 0
        self.answered: set[int] = set()
        self.controller = Controller()
        self._offset = 0
        self.tell(create(window_s=WINDOW_S))
        self.tell(validated(TOTAL))

    def tell(self, event: Event) -> None:
        """Folds an event and does what follows for the dispatcher."""
        self._offset += 1
        before = len(self.controller.effects)
        self.controller.feed([Entry(event, self._offset, self.now)])
        for effect in self.controller.effects[before:]:
            match effect:
                case OpenLines():
                    self.open(opened(BATCH, TOTAL, deadline_ms=ENDS_MS))
                case SettleLines():
                    self.home[BATCH].dispatcher.settle(BATCH, effect.accepted, (), self.now)
                case CloseLines():
                    self.home[BATCH].dispatcher.close(BATCH)

    def came_in(self, batch_id: str, line: int) -> None:
        if self.now < ENDS_MS:
            self.answered.add(line)
        self.tell(segment([outcome(line)], at_ms=self.now))

    def play(self) -> None:
        """Until a while after the window's end."""
        for _ in range(WINDOW_S + 20):
            due = [d for p in self.benches[0].dispatcher.load(self.now).pools for d in p.due]
            work = [Work(d.lines, (d.deadline_ms - self.now) / 1000) for d in due]
            calls = min(self.capacity, max(1, needed_calls(Demand(work, CALL_S))))
            self.servers[0].slots = calls
            self.servers[0].credits["p"] = 2 * calls
            self.most_calls = max(self.most_calls, calls)
            self.run(1)
            if self.now == ENDS_MS:
                self.tell(window_ended(at_ms=self.now))
            if isinstance(batch := self.controller.batch, Finalizing):
                done = batch.frozen.completed
                self.tell(assembled(done, TOTAL - done, at_ms=self.now))


def test_a_window_in_danger_is_met_with_what_it_needs_and_no_more() -> None:
    play = Windowed(capacity=100)
    play.play()
    last = play.controller.snapshots[-1]
    assert (last.status, last.completed) == (BatchStatus.COMPLETED, TOTAL)
    assert last.completed_at_ms is not None
    assert ENDS_MS - 60_000 < last.completed_at_ms < ENDS_MS, "neither late nor in haste"
    assert play.most_calls <= 6, "two a second would be 3.3 with its margin"


@pytest.mark.parametrize("capacity", [1, 2])
def test_where_capacity_does_not_do_the_finished_lines_are_kept_and_billed_and_no_others(
    capacity: int,
) -> None:
    play = Windowed(capacity)
    play.play()
    done = len(play.answered)
    assert 0.8 * capacity * WINDOW_S < done < TOTAL
    last = play.controller.snapshots[-1]
    assert (last.status, last.completed, last.failed) == (BatchStatus.EXPIRED, done, TOTAL - done)
    assert set(play.controller.bill) == play.answered
    assert all(completed for completed, _ in play.controller.bill.values())
    assert last.usage.input_tokens == sum(line + 1 for line in play.answered)
    assert play.home[BATCH].dispatcher.wants() == []
