"""Limits on what a tenant has enqueued: who has room, whoever asks, and all get it in the end."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.records import BatchSnapshot, BatchStatus, TenantRecord
from streams.domain.enqueued.room import Enqueued, Limits, Place, with_room
from streams.domain.enqueued.tenants import Tenants
from tests.support.workers import HOUR_MS, NOW


def snapshot(batch_id: str, total: int = 10, **changes: Any) -> BatchSnapshot:
    base = BatchSnapshot(
        batch_id=batch_id,
        tenant="a",
        revision=1,
        status=BatchStatus.IN_PROGRESS,
        created_at_ms=NOW,
        expires_at_ms=NOW + HOUR_MS,
        endpoint="/v1/chat/completions",
        input_file_id="file-1",
        completion_window="24h",
        metadata={},
        request_hash="",
        errors=(),
        total=total,
        completed=0,
        failed=0,
        estimated_input_tokens=100 * total,
    )
    return replace(base, **changes)


def tenants(lines: int | None = None, tokens: int | None = None) -> Tenants:
    """A picture that is complete, with limits for the tenant `a`."""
    found = Tenants()
    found.limits_known = found.batches_known = True
    if lines is not None or tokens is not None:
        limits = TenantRecord(
            tenant="a", at_ms=0, max_enqueued_lines=lines, max_enqueued_tokens=tokens
        )
        found.hear_limits(limits)
    return found


def room(found: Tenants, *batch_ids: str, now_ms: int = NOW) -> list[str]:
    """Those of the tenant's batches that have room."""
    found.settle(now_ms)
    return [b for b in batch_ids if not found.waits("a", b)]


enqueued = st.builds(
    Enqueued,
    st.builds(Place, st.integers(-2, 2), st.integers(0, 5), st.integers(0, 5), st.uuids().map(str)),
    st.integers(0, 20),
    st.integers(0, 200),
)
limit = st.none() | st.integers(1, 60)


@given(st.lists(enqueued, max_size=12), limit, limit)
def test_the_first_ones_have_room_up_to_the_limit_and_one_more_would_exceed_it(
    batches: list[Enqueued], lines: int | None, tokens: int | None
) -> None:
    found = with_room(batches, Limits(lines, tokens))
    order = sorted(batches, key=lambda b: b.place)
    inside, outside = order[: len(found)], order[len(found) :]
    assert {b.place.batch_id for b in inside} == found
    assert not batches or inside, "the first always has room"

    def fits(some: list[Enqueued]) -> bool:
        return (lines is None or sum(b.lines for b in some) <= lines) and (
            tokens is None or sum(b.tokens for b in some) <= tokens
        )

    assert len(inside) <= 1 or fits(inside)
    assert not outside or not fits([*inside, outside[0]])


def test_a_batch_above_the_limit_alone_runs_when_it_is_first() -> None:
    found = tenants(lines=5)
    found.hear_batch(snapshot("huge", 1000))
    found.hear_batch(snapshot("small", 1, created_at_ms=NOW + 1))
    assert room(found, "huge", "small") == ["huge"]
    found.hear_batch(snapshot("huge", 1000, completed=990, failed=6, revision=2))
    assert room(found, "huge", "small") == ["huge", "small"]


def test_tokens_count_as_well_as_lines() -> None:
    found = tenants(tokens=1500)
    found.hear_batch(snapshot("first"))
    found.hear_batch(snapshot("second", created_at_ms=NOW + 1))
    assert room(found, "first", "second") == ["first"]
    found.hear_batch(snapshot("first", completed=5, revision=2))
    assert room(found, "first", "second") == ["first", "second"]


@pytest.mark.parametrize(
    "changes",
    [
        {"paused_at_ms": NOW},
        {"expires_at_ms": NOW},
        {"priority": -1},
        {"status": BatchStatus.CANCELLING},
        {"status": BatchStatus.FINALIZING},
    ],
)
def test_what_cannot_go_on_or_goes_later_makes_room(changes: dict[str, Any]) -> None:
    found = tenants(lines=10)
    found.hear_batch(snapshot("first"))
    found.hear_batch(snapshot("second", created_at_ms=NOW + 1))
    assert room(found, "second") == []
    found.hear_batch(snapshot("first", revision=2, **changes))
    assert room(found, "second") == ["second"]


def test_a_window_that_ends_makes_room_without_anybody_saying_so() -> None:
    found = tenants(lines=10)
    found.hear_batch(snapshot("first", expires_at_ms=NOW + 1000))
    found.hear_batch(snapshot("second"))
    assert room(found, "second") == []
    assert room(found, "second", now_ms=NOW + 1000) == ["second"]


def test_limits_are_set_and_taken_away_while_batches_run() -> None:
    found = tenants()
    found.hear_batch(snapshot("first"))
    found.hear_batch(snapshot("second", created_at_ms=NOW + 1))
    assert room(found, "first", "second") == ["first", "second"]
    found.hear_limits(TenantRecord(tenant="a", at_ms=0, max_enqueued_lines=10))
    assert found.settle(NOW)
    assert room(found, "first", "second") == ["first"]
    found.hear_limits(TenantRecord(tenant="a", at_ms=1))
    assert found.settle(NOW)
    assert room(found, "first", "second") == ["first", "second"]


def test_one_tenant_s_limits_are_nothing_to_another() -> None:
    found = tenants(lines=1)
    found.hear_batch(snapshot("theirs", 1000, tenant="b"))
    found.settle(NOW)
    assert not found.waits("b", "theirs")


def test_a_tenant_with_limits_waits_until_all_is_known() -> None:
    found = tenants(lines=10)
    found.hear_batch(snapshot("b"))
    found.batches_known = False
    assert room(found, "b") == []
    assert not found.waits("free", "c")
    found.limits_known = False
    assert found.waits("free", "c")


def test_a_snapshot_that_comes_too_late_brings_no_batch_back() -> None:
    found = tenants(lines=10)
    found.hear_batch(snapshot("over", revision=5, status=BatchStatus.COMPLETED))
    found.hear_batch(snapshot("over", revision=4))
    found.hear_batch(snapshot("next", created_at_ms=NOW + 1))
    assert room(found, "next") == ["next"]


def test_positions_count_the_tenant_s_own_batches_that_go_before() -> None:
    found = tenants()
    for batch_id, changes in (
        ("late", {"expires_at_ms": NOW + 2 * HOUR_MS}),
        ("soon", {}),
        ("first", {"priority": 1}),
        ("paused", {"paused_at_ms": NOW}),
        ("theirs", {"tenant": "b"}),
    ):
        found.hear_batch(snapshot(batch_id, **changes))
    found.settle(NOW)
    assert found.positions(NOW) == {"first": 0, "soon": 1, "late": 2, "theirs": 0}


@given(st.integers(0, 2**32))
def test_whoever_reads_the_same_in_whatever_order_comes_to_the_same_answer(seed: int) -> None:
    random = Random(seed)
    told = [
        snapshot(
            f"b{n}",
            random.randint(1, 20),
            revision=revision,
            priority=random.randint(-1, 1),
            completed=revision,
            status=random.choice([BatchStatus.IN_PROGRESS] * 3 + [BatchStatus.FINALIZING])
            if revision == 3
            else BatchStatus.IN_PROGRESS,
        )
        for n in range(8)
        for revision in range(4)
    ]
    answers = []
    for _ in range(2):
        shuffled = told * 2
        random.shuffle(shuffled)
        found = tenants(lines=25)
        for one in shuffled:
            found.hear_batch(one)
            if random.random() < 0.2:
                found.settle(NOW)
        answers.append(room(found, *(f"b{n}" for n in range(8))))
    assert answers[0] == answers[1]


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_controllers_that_hear_of_each_other_late_never_wait_for_each_other_for_good(
    seed: int,
) -> None:
    """Each has some of the batches, and reads what the others say whenever it likes."""
    random = Random(seed)
    limit, controllers = random.randint(1, 40), [tenants(lines=1) for _ in range(3)]
    for controller in controllers:
        controller.hear_limits(TenantRecord(tenant="a", at_ms=0, max_enqueued_lines=limit))
    log: list[BatchSnapshot] = []
    read = [0] * len(controllers)
    now = {
        f"b{n}": snapshot(f"b{n}", random.randint(1, 30), priority=random.randint(-1, 1))
        for n in range(10)
    }
    home = {batch_id: random.randrange(len(controllers)) for batch_id in now}
    log += now.values()

    def tell(batch_id: str, **changes: Any) -> None:
        last = now[batch_id]
        now[batch_id] = replace(last, revision=last.revision + 1, **changes)
        log.append(now[batch_id])

    for _ in range(4000):
        number = random.randrange(len(controllers))
        controller, until = controllers[number], random.randint(read[number], len(log))
        for record in log[read[number] : until]:
            controller.hear_batch(record)
        read[number] = until
        controller.settle(NOW)
        for batch_id, batch in list(now.items()):
            runs = batch.status is BatchStatus.IN_PROGRESS and batch.paused_at_ms is None
            if home[batch_id] != number or not runs or controller.waits("a", batch_id):
                continue
            done = min(batch.total, batch.completed + random.randint(1, 10))
            over = done == batch.total
            tell(
                batch_id,
                completed=done,
                status=BatchStatus.FINALIZING if over else BatchStatus.IN_PROGRESS,
            )
        running = [b for b in now.values() if b.status is BatchStatus.IN_PROGRESS]
        if not running:
            return
        chosen = random.choice(running)
        if random.random() < 0.05:
            tell(chosen.batch_id, paused_at_ms=None if chosen.paused_at_ms else NOW)
        elif random.random() < 0.05:
            tell(chosen.batch_id, priority=random.randint(-3, 3))
        elif random.random() < 0.01:
            tell(chosen.batch_id, status=BatchStatus.CANCELLING)
    raise AssertionError("some batch waits for ever")
