"""What every MeterSink promises: the fake, the files, and Stripe's adapter where shapes allow."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streams.adapters.meter_fake import FakeMeterSink
from streams.adapters.meter_file import FileMeterSink
from streams.adapters.meter_stripe import StripeMeterSink
from streams.domain.clock import SystemClock
from streams.ports.meter_sink import EventRefused, MeterEvent, MeterSink
from tests.support.stripe_mock import running_stripe_mock

_MINUTE_MS = 60_000
METER = "backhaul_batch_input_tokens_gpt-4o-mini_24h_2026-01-01"


def event(number: int = 0, **fields: object) -> MeterEvent:
    """An event of now."""
    values: dict[str, object] = {
        "identifier": f"batch_1:abc:{number}",
        "event_name": METER,
        "customer": "cus_1",
        "tokens": 100 + number,
        "at_ms": int(time.time() * 1000) - 1000,
        "dimensions": {"model": "gpt-4o-mini", "batch": "batch_1"},
    }
    return MeterEvent(**(values | fields))  # type: ignore[arg-type]


@pytest.fixture(params=["fake", "file"])
async def sink(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MeterSink]:
    """A sink that keeps what it is sent."""
    made: MeterSink = (
        FakeMeterSink(SystemClock()) if request.param == "fake" else FileMeterSink(tmp_path)
    )
    yield made
    await made.close()


@pytest.fixture(params=["fake", "file", "stripe-mock"])
async def any_sink(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MeterSink]:
    """A sink that at least judges the shape of what it is sent."""
    if request.param == "fake":
        yield FakeMeterSink(SystemClock())
    elif request.param == "file":
        yield FileMeterSink(tmp_path)
    else:
        async with running_stripe_mock() as base:
            made = StripeMeterSink("sk_test_123", base)
            yield made
            await made.close()


async def _minute(sink: MeterSink, at_ms: int, customer: str = "cus_1", meter: str = METER) -> int:
    start = at_ms // _MINUTE_MS * _MINUTE_MS
    return await sink.total(customer, meter, start, start + _MINUTE_MS)


async def test_an_event_is_taken(any_sink: MeterSink) -> None:
    await any_sink.send(event())
    await any_sink.send(event(1, tokens=2**40))


async def test_an_event_is_taken_back(any_sink: MeterSink) -> None:
    await any_sink.send(event())
    await any_sink.cancel(event().identifier, METER)


async def test_the_sum_of_a_minute_is_told(any_sink: MeterSink) -> None:
    # The only meter that stripe-mock has, with a sum that it makes up.
    assert await _minute(any_sink, event().at_ms, meter="test-meter-event-name") in (0, 25)


async def test_an_identifier_counts_once(sink: MeterSink) -> None:
    first = event()
    await sink.send(first)
    await sink.send(first)
    assert await _minute(sink, first.at_ms) == 100


async def test_sums_are_by_customer_meter_and_minute(sink: MeterSink) -> None:
    at_ms = int(time.time() * 1000) // _MINUTE_MS * _MINUTE_MS
    await sink.send(event(0, at_ms=at_ms))
    await sink.send(event(1, at_ms=at_ms - 1))
    await sink.send(event(2, at_ms=at_ms, customer="cus_2"))
    await sink.send(event(3, at_ms=at_ms, event_name="other"))
    await sink.send(event(4, at_ms=at_ms - 24 * 60 * _MINUTE_MS))
    assert await _minute(sink, at_ms) == 100
    assert await _minute(sink, at_ms - 1) == 101
    assert await _minute(sink, at_ms, "cus_2") == 102
    assert await _minute(sink, at_ms, meter="other") == 103
    day_ms = 24 * 60 * _MINUTE_MS
    assert await sink.total("cus_1", METER, at_ms - day_ms, at_ms) == 104 + 101


async def test_what_is_taken_back_counts_no_more(sink: MeterSink) -> None:
    first = event()
    await sink.send(first)
    await sink.cancel(first.identifier, METER)
    assert await _minute(sink, first.at_ms) == 0


async def test_what_was_never_sent_can_not_be_taken_back(sink: MeterSink) -> None:
    with pytest.raises(EventRefused):
        await sink.cancel("unknown", METER)


async def test_whatever_a_tenant_is_called_its_sum_is_its_own(sink: MeterSink) -> None:
    names = ["a/b", "..", ".", "ä", "a%2Fb", "x" * 400, "x" * 401, "A", "a"]
    at_ms = event().at_ms
    for number, name in enumerate(names):
        await sink.send(event(number, customer=name, at_ms=at_ms))
    for number, name in enumerate(names):
        assert await _minute(sink, at_ms, name) == 100 + number
