"""From a batch's log to the bill: what batches that end early and prices that change come to."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from schemas.records import BatchStatus, OutcomeKind, Usage
from streams.domain.batch.machine import Event
from streams.domain.billing.prices.book import PriceBook, parse_prices
from tests.support.batch_log import (
    CREATED_MS,
    ENDS_MS,
    TENANT,
    Controller,
    assembled,
    cancel,
    create,
    entries,
    outcome,
    segment,
    validated,
    window_ended,
)
from tests.support.meter_world import World

_FAILED = replace(outcome(4, OutcomeKind.FAILED), usage=Usage())
_HALF = [*(outcome(line) for line in range(4)), _FAILED, outcome(5, OutcomeKind.RETRY)]


async def _billed(controller: Controller, world: World) -> dict[str, int]:
    """Tokens by meter once the meter has counted and sent all that the controller told it."""
    world.customers[TENANT] = "cus_a"
    world.log += controller.usage[len(world.log) :]
    await world.settle()
    return {meter: tokens for (_, meter), tokens in world.sink.totals().items()}


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (cancel(at_ms=CREATED_MS + 3000), BatchStatus.CANCELLED),
        (window_ended(), BatchStatus.EXPIRED),
    ],
)
async def test_of_a_batch_that_ends_half_way_the_finished_lines_are_billed_and_no_others(
    end: Event, status: BatchStatus
) -> None:
    controller, world = Controller(), World()
    late = segment([outcome(line) for line in range(10)], at_ms=ENDS_MS + 1000)
    controller.feed(
        entries([create(), validated(10), segment(_HALF), end, late, assembled(4, 6), late])
    )
    assert controller.snapshots[-1].status is status
    assert controller.snapshots[-1].usage == Usage(input_tokens=1 + 2 + 3 + 4, output_tokens=8)
    assert await _billed(controller, world) == {
        "backhaul_batch_input_tokens": 1 + 2 + 3 + 4,
        "backhaul_batch_output_tokens": 8,
    }


def _book(*dated: str) -> PriceBook:
    rates = [{"input": "1", "output": "1"}]
    rates += [{"valid_from": day, "input": "9", "output": "9"} for day in dated]
    return parse_prices({"currency": "usd", "models": {"m": rates}})


async def test_a_price_that_changes_while_a_batch_runs_is_not_the_batch_s() -> None:
    # The book is edited in the middle; the new rates begin the day after the batch was created.
    controller, world = Controller(), World(book=_book())
    world.clock.advance(CREATED_MS / 1000 - world.clock.now_ms() / 1000)
    controller.feed(entries([create(), validated(4), segment([outcome(0), outcome(1)])]))
    before = await _billed(controller, world)
    world.book = _book("2023-11-15")
    world.clock.advance(2 * 86_400)
    rest = segment([outcome(2), outcome(3)], at_ms=world.clock.now_ms())
    controller.feed(entries([rest], first=500))
    assert before == {
        "backhaul_batch_input_tokens_m_1h_1970-01-01": 3,
        "backhaul_batch_output_tokens_m_1h_1970-01-01": 4,
    }
    assert await _billed(controller, world) == {
        "backhaul_batch_input_tokens_m_1h_1970-01-01": 10,
        "backhaul_batch_output_tokens_m_1h_1970-01-01": 8,
    }
