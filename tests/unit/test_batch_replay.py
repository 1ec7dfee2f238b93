"""Whatever is cut, replayed, repeated, shuffled or half written: one end state and one bill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.records import (
    BatchRow,
    BatchSnapshot,
    BatchStatus,
    BatchValidated,
    ChunkRow,
    CollectedLine,
    OutcomeKind,
    Usage,
)
from streams.domain.batch.effects import SendTask
from streams.domain.batch.machine import Entry, Event
from streams.domain.batch.row import from_row, snapshot_of
from streams.domain.batch.state import Ended, Finalizing, InProgress
from streams.domain.ledger import bitmap
from streams.domain.ledger import from_row as ledger_from_row
from tests.support.batch_log import (
    CREATED_MS,
    ENDS_MS,
    Controller,
    assembled,
    cancel,
    change,
    create,
    entries,
    outcome,
    pause,
    pinned,
    resume,
    segment,
    validated,
    window_ended,
)

#: Three chunks, the last one partly used.
TOTAL = 1030
_TIMES = (
    "in_progress_at_ms", "finalizing_at_ms", "completed_at_ms", "failed_at_ms",
    "expired_at_ms", "cancelling_at_ms", "cancelled_at_ms",
)  # fmt: skip


def kind_of(line: int) -> OutcomeKind:
    """How a line ends; every copy of it ends the same way, so that bills can be compared."""
    return OutcomeKind.FAILED if line % 5 == 0 else OutcomeKind.COMPLETED


#: Lines of two models, so that the sums by model are folded, too.
MODELS = ("m", "n")
EVERYTHING = [outcome(n, kind_of(n), model=n % 2) for n in range(TOTAL)]


@st.composite
def outcomes(draw: st.DrawFn) -> list[CollectedLine]:
    start = draw(st.integers(0, TOTAL))
    end = start + draw(st.integers(1, 700))
    retried = draw(st.sets(st.integers(0, TOTAL - 1), max_size=4))
    attempt = draw(st.integers(1, 3))
    return [outcome(n, OutcomeKind.RETRY, attempt=attempt) for n in sorted(retried)] + EVERYTHING[
        start:end
    ]


def _segment_at(lines: list[CollectedLine], at: int) -> Event:
    return segment(lines, at_ms=CREATED_MS + 2000 + at, models=MODELS)


segments = st.builds(_segment_at, outcomes(), st.integers(0, 1000))
#: What another run of intake might find, after other versions were published.
VALIDATIONS = [
    validated(TOTAL, models=MODELS),
    validated(TOTAL, models=MODELS, prompts=pinned(("s", 1, TOTAL))),
    validated(
        TOTAL, models=MODELS, prompts=pinned(("s", 2, 30), ("t", 1, 1000)), unused_variables=7
    ),
]
_OTHERS: list[Event] = [
    create(),
    *VALIDATIONS,
    cancel(),
    cancel(command_id="cmd_2"),
    pause(),
    pause(command_id="cmd_3", at_ms=CREATED_MS + 25_000),
    pause(command_id="cmd_4", tenant="rival"),
    resume(),
    resume(command_id="cmd_5"),
    change(7),
    change(-3, ENDS_MS + 60_000, command_id="cmd_6"),
    change(None, ENDS_MS - 1_000, command_id="cmd_7"),
    change(101, ENDS_MS + 5_000, command_id="cmd_8"),
    window_ended(at_ms=ENDS_MS + 60_000),
    window_ended(),
    window_ended(at_ms=ENDS_MS + 1),
    assembled(TOTAL - 206, 206),
    assembled(3, TOTAL - 3),
]
others = st.sampled_from(_OTHERS)


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    """Logs that get somewhere: created, validated, then anything."""
    events: list[Event] = [create(), *draw(st.lists(others, max_size=2))]
    events.append(draw(st.sampled_from(VALIDATIONS)))
    events += draw(st.lists(segments | segments | others, max_size=8))
    if draw(st.booleans()):
        events.append(_segment_at(EVERYTHING, 5))
    events += draw(st.lists(others, max_size=3))
    return entries(events)


Row = TypeVar("Row", BatchRow, ChunkRow)


class History(Controller):
    """A controller that remembers every version of its rows, with the entry that wrote it."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_versions: list[tuple[int, BatchRow]] = []
        self.chunk_versions: dict[int, list[tuple[int, ChunkRow]]] = {}

    def take(self, number: int, entry: Entry) -> None:
        row, rows = self.row, dict(self.chunk_rows)
        self.feed([entry])
        if self.row is not None and self.row != row:
            self.batch_versions.append((number, self.row))
        for chunk, written in self.chunk_rows.items():
            if rows.get(chunk) != written:
                self.chunk_versions.setdefault(chunk, []).append((number, written))


def pick(data: st.DataObject, versions: Sequence[tuple[int, Row]], committed: int) -> Row | None:
    """The version of a row that a crash left: any from the committed one on."""
    safe: list[Row] = [row for number, row in versions if number < committed][-1:]
    late: list[Row] = [row for number, row in versions if number >= committed]
    choices = safe + late
    picked = data.draw(st.integers(0 if safe else -1, len(choices) - 1))
    return choices[picked] if picked >= 0 else None


def survivors(data: st.DataObject, history: History, committed: int) -> Controller:
    """What starts after a crash; every row survived or not independently of the others."""
    row = pick(data, history.batch_versions, committed)
    rows = {
        chunk: found
        for chunk, versions in history.chunk_versions.items()
        if (found := pick(data, versions, committed)) is not None
    }
    chunks = {number: ledger_from_row(found) for number, found in rows.items()}
    batch = from_row(row, chunks) if row is not None else None
    return Controller(batch, chunks, row, rows, history.effects)


def check_callers_view(snapshots: list[BatchSnapshot]) -> None:
    """Counts stay within the total, and a timestamp, once set, never changes."""
    times: dict[str, int] = {}
    for snapshot in snapshots:
        assert snapshot.completed + snapshot.failed <= snapshot.total
        for name in _TIMES:
            value = getattr(snapshot, name)
            if value is None:
                assert name not in times
            else:
                assert times.setdefault(name, value) == value


def check_pins(log: list[Entry], snapshots: list[BatchSnapshot]) -> None:
    """The pins are those of the first validation in the log, whatever came later."""
    first = next(e.event for e in log if isinstance(e.event, BatchValidated))
    for snapshot in snapshots:
        if snapshot.total:
            assert snapshot.prompts == first.prompts
            assert snapshot.unused_variables == first.unused_variables
        else:
            assert (snapshot.prompts, snapshot.unused_variables) == ((), 0)


def but_for_counts(snapshot: BatchSnapshot) -> BatchSnapshot:
    """Of a running batch: a replay may know chunks of later events already, and counts those."""
    if snapshot.status is not BatchStatus.IN_PROGRESS:
        return snapshot
    return replace(
        snapshot, completed=0, failed=0, usage=Usage(), usage_by_model=(), accepted_prefix=0
    )


def check_tasks(controller: Controller) -> None:
    """A task that is sent again is the same task."""
    seen: dict[str, object] = {}
    for effect in controller.effects:
        if isinstance(effect, SendTask):
            assert seen.setdefault(effect.task.task_id, effect.task) == effect.task


@settings(max_examples=200, deadline=None)
@given(st.data(), logs())
def test_any_crash_and_replay_ends_in_the_same_state_with_the_same_bill(
    data: st.DataObject, log: list[Entry]
) -> None:
    straight = Controller().feed(log)
    crashed = data.draw(st.integers(0, len(log)))
    committed = data.draw(st.integers(0, crashed))
    history = History()
    for number, entry in enumerate(log[:crashed]):
        history.take(number, entry)
    again = survivors(data, history, committed).feed(log[committed:])

    if isinstance(straight.batch, Ended):
        assert isinstance(again.batch, Ended)
        assert again.row == straight.row
    else:
        assert again.batch == straight.batch
    if isinstance(straight.batch, InProgress):
        assert again.chunks == straight.chunks
    assert again.bill == straight.bill
    assert but_for_counts(again.snapshots[-1]) == but_for_counts(straight.snapshots[-1])
    assert set(again.file_names) == set(straight.file_names)
    check_callers_view(again.snapshots)
    check_pins(log, again.snapshots)
    check_tasks(again)


@settings(max_examples=50, deadline=None)
@given(logs())
def test_feeding_a_log_twice_changes_nothing_the_second_time(log: list[Entry]) -> None:
    once = Controller().feed(log)
    batch, effects = once.batch, list(once.effects)
    once.feed(log)
    assert once.batch == batch
    assert once.effects == effects


@settings(max_examples=50, deadline=None)
@given(st.data(), st.lists(outcomes(), max_size=6))
def test_outcomes_repeated_and_shuffled_end_in_the_same_state_with_the_same_bill(
    data: st.DataObject, parts: list[list[CollectedLine]]
) -> None:
    whole = EVERYTHING
    cut = data.draw(st.integers(0, TOTAL))
    parts = data.draw(st.permutations([*parts, *parts, whole[:cut], whole[cut:]]))
    controller = Controller().feed(
        entries([create(), validated(TOTAL), *(segment(p) for p in parts)])
    )
    controller.feed(entries([assembled(824, 206)], first=900))
    assert isinstance(controller.batch, Ended)
    last = snapshot_of(controller.batch)
    assert (last.total, last.completed, last.failed) == (TOTAL, 824, 206)
    assert controller.bill == {
        n: (kind_of(n) is OutcomeKind.COMPLETED, line.usage) for n, line in enumerate(whole)
    }
    assert sum(len(usage.lines) for usage in controller.usage) == TOTAL


@settings(max_examples=50, deadline=None)
@given(logs())
def test_counts_are_what_the_bitmaps_say_and_close_at_the_end(log: list[Entry]) -> None:
    controller = Controller()
    for entry in log:
        controller.feed([entry])
        batch = controller.batch
        if isinstance(batch, InProgress):
            lines = bitmap(controller.chunks, TOTAL)
            assert batch.counts.accepted == int.from_bytes(lines, "little").bit_count()
            assert all(not ledger.has(n) for ledger in controller.chunks.values()
                       for n in ledger.retries)  # fmt: skip
        if isinstance(batch, Ended) and batch.work is not None:
            assert batch.final.accepted == batch.work.total
    check_callers_view(controller.snapshots)


def test_what_can_be_read_of_a_frozen_batch_does_not_shrink_where_chunk_rows_were_lost() -> None:
    controller = Controller().feed(entries([create(), validated(3)]))
    controller.feed(
        entries([segment([outcome(n) for n in range(3)])], first=200), write_chunks=False
    )
    after = controller.restart()
    assert isinstance(after.batch, Finalizing)
    assert after.batch.accepted_prefix == 3
