"""Many workers share one budget: never more than it, all of it, and without oscillating."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.domain.gate.fleet import JITTER_S, FleetShare, WorkerCalls


class Fleet:
    """Workers that hear each other late, and whose calls end when they end."""

    def __init__(self, workers: int, seed: int, drop: float = 0.0) -> None:
        self.random = random.Random(seed)
        self.names = [f"worker-{n}" for n in range(workers)]
        self.shares = {name: FleetShare(name) for name in self.names}
        self.in_flight = dict.fromkeys(self.names, 0)
        self.parts = dict.fromkeys(self.names, 0)
        self.wants = dict.fromkeys(self.names, 1000)
        self.drop = drop
        self.now = 0.0

    def step(self, limit: int, *, ends: float = 0.02) -> int:
        """Fifty milliseconds; the calls in flight after them."""
        self.now += 0.05
        for name in self.names:
            mine = WorkerCalls(name, self.now, self.in_flight[name], self.wants[name])
            for other, share in self.shares.items():
                if other != name and self.random.random() >= self.drop:
                    share.hear(mine)
        for name, share in self.shares.items():
            mine = WorkerCalls(name, self.now, self.in_flight[name], self.wants[name])
            self.parts[name] = share.part(limit, mine, self.now)
            left = sum(self.random.random() >= ends for _ in range(self.in_flight[name]))
            self.in_flight[name] = max(left, min(self.parts[name], self.wants[name]))
        return sum(self.in_flight.values())


@pytest.mark.parametrize("workers", [1, 20])
def test_a_constant_limit_is_used_up_and_nobody_oscillates(workers: int) -> None:
    fleet = Fleet(workers, seed=1)
    for _ in range(40):
        fleet.step(100)
    seen = [dict(fleet.parts) for _ in range(100) if fleet.step(100)]
    assert sum(seen[-1].values()) == 100
    assert all(parts == seen[0] for parts in seen)


@pytest.mark.parametrize("workers", [1, 20])
def test_parts_never_add_up_to_more_than_the_limit(workers: int) -> None:
    fleet = Fleet(workers, seed=2)
    for limit in (100, 100, 7, 7, 250, 0, 0, 250, 3, 19, 21):
        for _ in range(10):
            fleet.step(limit)
            assert sum(fleet.parts.values()) <= limit


def test_a_lower_limit_is_obeyed_at_once_and_a_higher_one_within_the_jitter() -> None:
    fleet = Fleet(20, seed=3)
    for _ in range(20):
        fleet.step(200)
    fleet.step(10, ends=0.0)
    assert sum(fleet.parts.values()) <= 10
    for _ in range(200):
        fleet.step(10)
    steps = round(JITTER_S / 0.05) + 2
    for _ in range(steps):
        fleet.step(200)
    assert sum(fleet.parts.values()) == 200


def test_gains_are_not_all_taken_at_the_same_moment() -> None:
    fleet = Fleet(20, seed=4)
    started = []
    for _ in range(8):
        before = dict(fleet.parts)
        fleet.step(200)
        started.append(sum(fleet.parts[name] > before[name] for name in fleet.names))
    assert max(started) <= 14
    assert sum(1 for count in started if count) >= 3


def test_a_worker_without_lines_leaves_its_part_to_the_others() -> None:
    fleet = Fleet(4, seed=5)
    fleet.wants["worker-0"] = 2
    for _ in range(30):
        fleet.step(100)
    assert fleet.parts["worker-0"] == 2
    assert sum(fleet.parts.values()) == 100


def test_a_silent_worker_is_left_out_after_three_seconds() -> None:
    share = FleetShare("a")
    share.hear(WorkerCalls("b", 0.0, 50, 1000))
    mine = WorkerCalls("a", 0.0, 0, 1000)
    for tick in range(10):
        part = share.part(100, mine, tick / 10)
    assert part == 50
    for tick in range(40, 50):
        part = share.part(100, mine, tick / 10)
    assert part == 100


@settings(max_examples=30, deadline=None)
@given(
    workers=st.integers(1, 20),
    seed=st.integers(0, 1000),
    limits=st.lists(st.integers(0, 300), min_size=1, max_size=12),
    drop=st.floats(0, 0.5),
)
def test_whatever_is_lost_on_the_way_no_part_is_above_the_limit(
    workers: int, seed: int, limits: list[int], drop: float
) -> None:
    fleet = Fleet(workers, seed, drop)
    for limit in limits:
        for _ in range(10):
            fleet.step(limit)
            assert all(0 <= part <= limit for part in fleet.parts.values())
    # Once everybody was heard again the parts add up.
    fleet.drop = 0.0
    for _ in range(20):
        fleet.step(limits[-1])
    assert sum(fleet.parts.values()) <= limits[-1]
