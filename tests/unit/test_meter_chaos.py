"""Whatever dies, repeats, comes late or gets lost: each accepted line is billed once."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest

from schemas.records import UsageRecorded
from tests.support.meter_world import Chaos, World, usage

_SEEDS = 30
_TENANTS = ("ada", "bo", "cy")
_FAULTS: Counter[str] = Counter()
_STEPS: set[str] = set()


def _records(world: World) -> list[UsageRecorded]:
    """Usage of some batches in odd pieces: overlapping, repeated, out of order."""
    found = []
    for number in range(4):
        tenant, batch = world.random.choice(_TENANTS), f"batch_{number}"
        for _ in range(6):
            first = world.random.randrange(1200)
            lines = list(range(first, first + world.random.randrange(1, 90)))
            world.random.shuffle(lines)
            flag = "absurd" if number == 3 else ""
            found.append(usage(tenant, batch, lines, world.clock.now_ms(), flag=flag))
    found += world.random.sample(found, 8)
    world.random.shuffle(found)
    return found


async def _live(world: World, chaos: Chaos) -> None:
    coming = _records(world)
    for _ in range(130):
        match world.random.randrange(8):
            case 0 | 1 if coming:
                world.log.append(coming.pop())
            case 2 | 3:
                group = world.random.choice([1, 1, 4, 40])
                await chaos.survive(partial(world.count_some, group))
            case 4:
                await chaos.survive(world.commit)
            case 5 if world.log:
                # Offsets are set back: all of it comes again.
                world.position = world.random.randrange(len(world.log))
                chaos.done["replayed"] += 1
            case _:
                world.clock.advance(world.random.choice([1, 30, 120, 400, 3000]))
                if world.random.random() < 0.03:
                    world.clock.advance(25 * 3600)
                await chaos.survive(world.turn)
    world.log += coming


@pytest.mark.parametrize("seed", range(_SEEDS))
async def test_the_bill_is_the_sum_over_the_accepted_lines_to_the_token(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(seed)
    world.customers |= {tenant: f"cus_{tenant}" for tenant in _TENANTS}
    chaos = Chaos(world)
    chaos.arm(monkeypatch)
    await _live(world, chaos)
    world.committed = 0
    world.die_and_start()
    await world.settle()
    assert world.sink.totals() == world.expected()
    assert world.sink.overlaps == 0
    _FAULTS.update(chaos.done)
    _STEPS.update(chaos.killed_at)


def test_that_was_more_than_a_thousand_faults_of_all_kinds() -> None:
    assert sum(_FAULTS.values()) >= 1000, _FAULTS
    assert {"killed", "replayed", "rate_limited", "server_error", "timeout_after"} <= set(_FAULTS)
    assert {
        "meter.counted",
        "meter.pending",
        "meter.pending_published",
        "meter.sent_written",
        "meter.sent_durable",
        "meter.called",
        "meter.end_published",
        "meter.end_written",
    } <= _STEPS
