"""Paces of pools, and lines that flow at them: never nonsense, whatever was measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.records import PoolLoad, WorkerLoad
from streams.domain.dispatch.flow import Seen
from streams.domain.forecast.fluid import Waiting, ends
from streams.domain.forecast.pace import Paces, promised_rates

SECOND_MS = 1000


def looked(*looks: Seen, every_s: float = 1.0) -> Paces:
    paces = Paces()
    for number, seen in enumerate(looks):
        paces.look({"p": seen}, round(SECOND_MS * every_s * number))
    return paces


def test_only_the_time_in_which_lines_waited_counts() -> None:
    busy = [Seen(finished=10 * n, out=20, waits=True) for n in range(10)]
    idle = [Seen(finished=90 + n // 10, out=1, waits=False) for n in range(200)]
    assert looked(*busy).rate("p") == pytest.approx(10)
    assert looked(*busy, *idle).rate("p") == pytest.approx(10)


def test_a_controller_s_share_stands_for_the_fleet() -> None:
    looks = [Seen(finished=10 * n, out=20, waits=True, share=0.25) for n in range(10)]
    assert looked(*looks).rate("p") == pytest.approx(40)


def test_a_line_is_out_for_as_long_as_little_s_law_says() -> None:
    looks = [Seen(finished=10 * n, out=20, waits=False) for n in range(30)]
    assert looked(*looks).sojourn_s("p") == pytest.approx(2)


def test_nothing_is_known_of_a_pool_that_nobody_saw_or_that_did_nothing() -> None:
    paces = looked(*[Seen(finished=0, out=5, waits=True)] * 100)
    assert (paces.rate("p"), paces.sojourn_s("p")) == (None, None)
    assert (paces.rate("q"), paces.sojourn_s("q")) == (None, None)


def test_a_pool_that_stands_still_for_days_is_slow_and_not_unknown() -> None:
    busy = [Seen(finished=10 * n, out=20, waits=True) for n in range(10)]
    paces = looked(*busy, *[Seen(finished=90, out=20, waits=True)] * 10_000, every_s=30)
    rate, sojourn_s = paces.rate("p"), paces.sojourn_s("p")
    assert rate is not None
    assert sojourn_s is not None
    assert 0 < rate < 1e-6
    assert math.isfinite(sojourn_s)
    (end,) = ends([Waiting("a", ("p",), 1000)], {"p": rate})
    assert math.isfinite(end)


def test_time_in_which_nobody_looked_is_left_out() -> None:
    paces = looked(*[Seen(finished=10 * n, out=20, waits=True) for n in range(10)])
    paces.look({"p": Seen(finished=90, out=20, waits=True)}, 10_000 * SECOND_MS)
    paces.look({"p": Seen(finished=100, out=20, waits=True)}, 10_001 * SECOND_MS)
    assert paces.rate("p") == pytest.approx(10)


def test_workers_promise_what_their_limits_and_call_times_allow() -> None:
    def load(limit: int, call_ms: int) -> WorkerLoad:
        pool = PoolLoad(pool="p", credits=1, held=0, limit=limit, call_ms=call_ms)
        return WorkerLoad(worker="w", at_ms=0, partitions=(), pools=(pool,))

    assert promised_rates([load(10, 500), load(4, 1000)]) == {"p": 24}
    assert promised_rates([load(-1, 500), load(4, 0)]) == {}


lanes = st.lists(
    st.builds(
        Waiting,
        st.sampled_from("abc"),
        st.sampled_from([("p",), ("q",), ("p", "q")]),
        st.integers(0, 1000),
        st.floats(1, 16),
    ),
    max_size=8,
)


@settings(max_examples=50)
@given(lanes, st.floats(1e-9, 1e6), st.just(0.0) | st.floats(1e-9, 1e6))
def test_every_lane_that_a_moving_pool_serves_ends_and_no_pool_idles(
    waiting: list[Waiting], p: float, q: float
) -> None:
    found = ends(waiting, {"p": p, "q": q})
    for lane, end in zip(waiting, found, strict=True):
        moves = not lane.lines or "p" in lane.pools or q > 0
        assert math.isfinite(end) == moves
        assert end >= 0
        assert (end == 0) == (not lane.lines)
    only_p = [lane for lane in waiting if lane.pools == ("p",)]
    if only_p == waiting and waiting:
        assert max(found) == pytest.approx(sum(lane.lines for lane in waiting) / p)
    for tenant in "abc":
        own = [
            end
            for lane, end in zip(waiting, found, strict=True)
            if (lane.tenant, lane.pools) == (tenant, ("p",)) and lane.lines
        ]
        assert own == sorted(own), "a tenant's lanes end in their order"
