"""Pause, resume and change of a batch: what they do in each state, and what they don't."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.records import BatchStatus
from streams.domain.batch.control import MAX_COMMANDS, MAX_LIFE_MS
from streams.domain.batch.effects import OpenLines, SteerLines
from streams.domain.batch.machine import Event
from streams.domain.batch.row import paused_at, snapshot_of, status_of
from streams.domain.batch.state import Batch, InProgress
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
    resume,
    segment,
    validated,
    window_ended,
)

PAUSED_MS = CREATED_MS + 20_000
RUNNING = (create(), validated(2))
FINALIZING = (*RUNNING, segment([outcome(0), outcome(1)]))


def run(*events: Event) -> Controller:
    return Controller().feed(entries(events))


def state(controller: Controller) -> Batch:
    assert controller.batch is not None
    return controller.batch


def steered(controller: Controller) -> list[tuple[int, int, bool]]:
    """What the dispatcher was told: (priority, deadline, paused)."""
    return [
        (e.terms.priority, e.terms.expires_at_ms, e.paused)
        for e in controller.effects
        if isinstance(e, SteerLines)
    ]


def test_a_paused_batch_keeps_its_status_and_shows_since_when() -> None:
    paused = run(*RUNNING, pause())
    snapshot = paused.snapshots[-1]
    assert (snapshot.status, snapshot.paused_at_ms) == (BatchStatus.IN_PROGRESS, PAUSED_MS)
    assert steered(paused) == [(0, ENDS_MS, True)]


def test_resume_shows_at_once_and_tells_the_dispatcher() -> None:
    resumed = run(*RUNNING, pause(), resume())
    assert resumed.snapshots[-1].paused_at_ms is None
    assert steered(resumed) == [(0, ENDS_MS, True), (0, ENDS_MS, False)]


def test_lines_that_are_out_while_it_is_paused_count_and_may_be_the_last() -> None:
    paused = run(*RUNNING, pause(), segment([outcome(0)]))
    assert isinstance(paused.batch, InProgress)
    assert (paused.batch.counts.completed, paused.batch.paused_at_ms) == (1, PAUSED_MS)
    paused.feed(entries([segment([outcome(1)]), assembled(2, 0)], first=900))
    assert [s.status.value for s in paused.snapshots[-2:]] == ["finalizing", "completed"]
    assert [s.paused_at_ms for s in paused.snapshots[-2:]] == [None, None]


def test_a_pause_while_validating_takes_effect_when_the_lines_start() -> None:
    waiting = run(create(), pause())
    assert waiting.snapshots[-1].status is BatchStatus.VALIDATING
    assert waiting.snapshots[-1].paused_at_ms == PAUSED_MS
    waiting.feed(entries([validated(2)], first=900))
    (opened,) = [e for e in waiting.effects if isinstance(e, OpenLines)]
    assert opened.batch.paused_at_ms == PAUSED_MS
    assert waiting.snapshots[-1].paused_at_ms == PAUSED_MS


def test_a_second_pause_keeps_the_time_of_the_first() -> None:
    twice = run(*RUNNING, pause(), pause(command_id="cmd_2", at_ms=PAUSED_MS + 9000))
    assert paused_at(state(twice)) == PAUSED_MS
    assert len(steered(twice)) == 1


def test_a_pause_never_precedes_the_batch() -> None:
    assert paused_at(state(run(create(), pause(at_ms=5)))) == CREATED_MS


@pytest.mark.parametrize("again", [pause(), change(4)], ids=["pause", "change"])
def test_a_command_that_is_repeated_later_changes_nothing(again: Event) -> None:
    between = (resume(), change(9, command_id="cmd_9"))
    once = run(*RUNNING, again, *between)
    twice = run(*RUNNING, again, *between, again)
    assert state(twice) == state(once)


def test_even_a_command_that_changed_nothing_is_remembered() -> None:
    # Its repeat comes after a resume, and must not pause the batch again.
    idle = pause(command_id="cmd_idle")
    batch = state(run(*RUNNING, pause(), idle, resume(), idle))
    assert paused_at(batch) is None


def test_only_so_many_commands_are_remembered() -> None:
    many = [change(n % 100, command_id=f"cmd_{n}") for n in range(3 * MAX_COMMANDS)]
    assert len(state(run(*RUNNING, *many)).commands) == MAX_COMMANDS


@pytest.mark.parametrize(
    "command",
    [pause(tenant="rival"), resume(tenant="rival"), change(5, tenant="rival")],
    ids=["pause", "resume", "change"],
)
def test_another_tenants_command_changes_nothing(command: Event) -> None:
    before = run(*RUNNING, pause())
    assert state(run(*RUNNING, pause(), command)) == state(before)


@pytest.mark.parametrize("command", [pause(), resume(), change(5)])
@pytest.mark.parametrize(
    "events",
    [
        (),
        (create(known=False),),
        (*RUNNING, cancel()),
        (*RUNNING, cancel(), assembled(0, 2)),
        (*FINALIZING, assembled(2, 0)),
    ],
    ids=["unknown", "failed", "cancelling", "cancelled", "completed"],
)
def test_commands_come_too_late_for_a_batch_that_is_over(
    events: tuple[Event, ...], command: Event
) -> None:
    assert run(*events, command).batch == run(*events).batch


def test_a_batch_can_be_cancelled_while_it_is_paused() -> None:
    cancelled = run(*RUNNING, pause(), segment([outcome(0)]), cancel(), assembled(1, 1))
    assert [s.status.value for s in cancelled.snapshots[-2:]] == ["cancelling", "cancelled"]
    assert [s.paused_at_ms for s in cancelled.snapshots[-2:]] == [None, None]


def test_the_window_of_a_paused_batch_goes_on() -> None:
    expired = run(*RUNNING, pause(), segment([outcome(0)]), window_ended(), assembled(1, 1))
    last = expired.snapshots[-1]
    assert (last.status, last.completed, last.failed) == (BatchStatus.EXPIRED, 1, 1)


def test_a_batch_starts_with_the_priority_of_its_create_and_takes_another() -> None:
    changed = run(create(priority=3), validated(2), change(-100))
    assert [s.priority for s in changed.snapshots] == [3, 3, -100]
    assert steered(changed) == [(-100, ENDS_MS, False)]
    assert changed.snapshots[-1].expires_at_ms == ENDS_MS


@pytest.mark.parametrize("priority", [-101, 101])
def test_a_create_with_a_priority_that_is_not_allowed_fails_and_says_why(priority: int) -> None:
    failed = run(create(priority=priority), validated(2))
    assert failed.tasks == []
    assert [s.status for s in failed.snapshots] == [BatchStatus.FAILED]
    (error,) = failed.snapshots[-1].errors
    assert (error.param, str(priority) in error.message) == ("priority", True)


def test_a_change_of_a_paused_batch_leaves_it_paused() -> None:
    assert steered(run(*RUNNING, pause(), change(5)))[-1] == (5, ENDS_MS, True)


@pytest.mark.parametrize("ends_ms", [ENDS_MS + 600_000, ENDS_MS - 600_000])
def test_a_window_that_was_moved_ends_at_its_new_end_only(ends_ms: int) -> None:
    moved = run(*RUNNING, change(None, ends_ms + 999))
    assert moved.snapshots[-1].expires_at_ms == ends_ms, "on a whole second"
    moved.feed(entries([window_ended(at_ms=ends_ms - 1)], first=900))
    assert status_of(state(moved)) is BatchStatus.IN_PROGRESS
    moved.feed(entries([window_ended(at_ms=ends_ms)], first=950))
    assert status_of(state(moved)) is BatchStatus.FINALIZING


def test_a_window_may_be_moved_while_files_are_assembled_but_not_once_it_is_over() -> None:
    later = run(*FINALIZING, change(None, ENDS_MS + 60_000), window_ended(), assembled(2, 0))
    assert later.snapshots[-1].status is BatchStatus.COMPLETED
    over = run(*RUNNING, window_ended(), change(None, ENDS_MS + 60_000))
    assert snapshot_of(state(over)).expires_at_ms == ENDS_MS


@pytest.mark.parametrize(
    "refused",
    [
        change(101),
        change(-101),
        change(5, CREATED_MS + 40_000),
        change(5, CREATED_MS + 40_999),
        change(5, 0),
        change(5, CREATED_MS + MAX_LIFE_MS + 1000),
        change(101, ENDS_MS + 60_000),
        change(5, ENDS_MS + 60_000, at_ms=ENDS_MS),
    ],
)
def test_a_change_that_is_not_allowed_changes_nothing_at_all(refused: Event) -> None:
    changed = run(*RUNNING, refused)
    batch = state(changed)
    assert (batch.terms.priority, batch.terms.expires_at_ms) == (0, ENDS_MS)
    assert steered(changed) == []


def test_the_longest_life_is_allowed() -> None:
    batch = state(run(*RUNNING, change(100, CREATED_MS + MAX_LIFE_MS)))
    assert (batch.terms.priority, batch.terms.expires_at_ms) == (100, CREATED_MS + MAX_LIFE_MS)


@pytest.mark.parametrize("taken", range(1, 8))
def test_a_row_holds_pause_and_terms(taken: int) -> None:
    events = (
        create(priority=-7),
        pause(),
        change(8, ENDS_MS + 60_000),
        validated(2),
        resume(),
        segment([outcome(0), outcome(1)]),
        cancel(),
    )
    controller = run(*events[:taken])
    assert controller.restart().batch == controller.batch


def test_a_snapshot_names_the_commands_in_it() -> None:
    shown = run(*RUNNING, pause(), change(5)).snapshots
    assert [len(s.commands) for s in shown] == [1, 1, 2, 3]
    assert shown[-1].commands[1:] == ("cmd_pause", "cmd_change")
    assert run(*FINALIZING, assembled(2, 0)).snapshots[-1].commands == ()


_COMMANDS = st.sampled_from(
    [
        *(pause(command_id=f"p{n}", at_ms=CREATED_MS + n) for n in range(3)),
        *(resume(command_id=f"r{n}") for n in range(3)),
        *(change(n, ENDS_MS + n * 60_000, command_id=f"c{n}") for n in range(3)),
    ]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(_COMMANDS, max_size=12), st.integers(0, 12), st.booleans())
def test_the_first_of_each_command_counts_in_the_order_of_the_log(
    commands: list[Event], validated_at: int, repeated: bool
) -> None:
    """Against a model of three variables, with the validation anywhere in between."""
    paused, priority, ends_ms = False, 0, ENDS_MS
    for command in dict.fromkeys(commands):
        match command.command_id[0], int(command.command_id[1:]):  # type: ignore[union-attr]
            case "p", _:
                paused = True
            case "r", _:
                paused = False
            case _, n:
                priority, ends_ms = n, ENDS_MS + n * 60_000
    events: list[Event] = [*commands[:validated_at], validated(2), *commands[validated_at:]]
    if repeated:
        events += commands
    batch = state(run(create(), *events))
    assert isinstance(batch, InProgress)
    assert (batch.paused_at_ms is not None) == paused
    assert (batch.terms.priority, batch.terms.expires_at_ms) == (priority, ends_ms)
