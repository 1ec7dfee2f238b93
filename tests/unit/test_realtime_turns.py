"""Tenants take turns, and what was withdrawn leaves nothing behind."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from schemas.records import RealtimeRequest
from streams.realtime_worker.call import Call
from streams.realtime_worker.replies import Replies
from streams.realtime_worker.turns import Turns

_TENANTS = st.sampled_from("abc")


def _call(tenant: str, at_ms: int) -> Call:
    request = RealtimeRequest(
        request_id=f"req_{at_ms}",
        tenant=tenant,
        gateway="gateway-0",
        reply_partition=0,
        at_ms=at_ms,
        accept_by_ms=0,
        deadline_ms=0,
        endpoint="/v1/embeddings",
        pool="one",
        model="m",
        stream=False,
        body=b"{}",
    )
    return Call(request, cast("Replies", None))


def _all(turns: Turns) -> list[Call]:
    return [turns.take() for _ in range(len(turns))]


def test_a_newcomer_is_behind_one_call_of_each_other_tenant() -> None:
    turns = Turns()
    for at_ms, tenant in enumerate("aaaabbbc"):
        turns.add(_call(tenant, at_ms))
    assert [call.request.tenant for call in _all(turns)] == list("abcababa")


@given(st.lists(st.tuples(_TENANTS, st.sampled_from(["add", "take", "remove"])), max_size=60))
def test_whatever_happens_each_call_is_taken_once_and_in_its_tenants_order(
    steps: list[tuple[str, str]],
) -> None:
    turns = Turns()
    waiting: list[Call] = []
    for at_ms, (tenant, step) in enumerate(steps):
        own = [call for call in waiting if call.request.tenant == tenant]
        if step == "add":
            waiting.append(_call(tenant, at_ms))
            turns.add(waiting[-1])
        elif step == "remove" and own:
            turns.remove(own[-1])
            turns.remove(own[-1])
            waiting.remove(own[-1])
        elif step == "take" and waiting:
            taken = turns.take()
            same = [call for call in waiting if call.request.tenant == taken.request.tenant]
            assert taken is same[0]
            waiting.remove(taken)
        assert len(turns) == len(waiting)
        assert turns.oldest_ms == min((call.request.at_ms for call in waiting), default=None)
    assert set(_all(turns)) == set(waiting)


@given(st.lists(_TENANTS, max_size=30))
def test_nobody_gets_a_second_turn_before_all_who_wait_had_one(tenants: list[str]) -> None:
    turns = Turns()
    for at_ms, tenant in enumerate(tenants):
        turns.add(_call(tenant, at_ms))
    left = {tenant: tenants.count(tenant) for tenant in tenants}
    since: dict[str, int] = dict.fromkeys(left, 0)
    for call in _all(turns):
        tenant = call.request.tenant
        for other in since:
            since[other] += other != tenant and left[other] > 0
        left[tenant] -= 1
        since[tenant] = 0
        assert all(passed < len(left) for passed in since.values())
