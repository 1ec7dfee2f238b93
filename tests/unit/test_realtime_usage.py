"""Usage of real-time requests on its way to the meter: each once, at the price of its day."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import encode
from schemas.records import Usage, UsageRecorded
from schemas.topics import MAX_RECORD_BYTES
from streams.domain.billing.meter import ledger as usage
from streams.domain.billing.meter.ledger import UsageLedger, metered_of
from streams.domain.billing.meter.realtime import MAX_LINES, RealtimeUsage
from streams.domain.billing.prices.book import REALTIME
from streams.domain.billing.prices.meter_names import meter_of
from streams.domain.billing.tokens import TokenType
from streams.domain.clock import ManualClock
from streams.domain.outcome.streamed import Used, asking_for_usage, without_usage
from streams.kafka.errors import RecordTooLarge, SendFailed
from streams.realtime_worker.usage import UsageReporter
from tests.unit.test_realtime_worker import request

CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"
_DAY_MS = 86_400_000


def _one(tokens: int = 1) -> Used:
    return Used(Usage(input_tokens=tokens), "")


def _counted(records: list[UsageRecorded]) -> dict[tuple[str, str, str], int]:
    """Input tokens by tenant, endpoint and model, as the meter would count these records."""
    ledgers: dict[tuple[str, str, int], UsageLedger] = {}
    for offset, record in enumerate(records):
        metered = metered_of(record)
        for chunk, lines in usage.by_chunk(record.lines).items():
            key = (*metered.key, chunk)
            before = ledgers.get(key) or UsageLedger(metered, chunk)
            found = usage.accept(before, record, lines, offset)
            ledgers[key] = before if found is None else found.ledger
    total: dict[tuple[str, str, str], int] = {}
    for ledger in ledgers.values():
        for (model, _), found_sum in ledger.sums.items():
            place = (ledger.metered.tenant, ledger.metered.endpoint, model)
            total[place] = total.get(place, 0) + found_sum.usage.input_tokens
    return total


_REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.sampled_from([CHAT, EMBED]),
        st.sampled_from(["m", "n"]),
        st.integers(0, 1000),
        st.sampled_from([0, 0, 0, 1000, _DAY_MS // 3]),
        st.booleans(),
    ),
    max_size=60,
)


@given(_REQUESTS, st.randoms())
def test_each_request_counts_once_however_often_it_is_sent(
    requests: list[tuple[str, str, str, int, int, bool]], rng: object
) -> None:
    waiting, now_ms, records = RealtimeUsage("p1"), 5 * _DAY_MS, list[UsageRecorded]()
    wanted: dict[tuple[str, str, str], int] = {}
    for tenant, endpoint, model, tokens, pause_ms, taken in requests:
        now_ms += pause_ms
        waiting.add(tenant, endpoint, model, _one(tokens), now_ms)
        if tokens:
            place = (tenant, endpoint, model)
            wanted[place] = wanted.get(place, 0) + tokens
        if taken:
            records += waiting.take(now_ms)
    records += waiting.take(now_ms)
    again = [*records, *records]
    rng.shuffle(again)  # type: ignore[attr-defined]
    assert _counted(again) == wanted


def test_a_request_has_the_day_it_ended_on_and_no_window() -> None:
    waiting = RealtimeUsage("p1")
    waiting.add("a", CHAT, "m", _one(), 5 * _DAY_MS - 1)
    waiting.add("a", CHAT, "m", _one(), 5 * _DAY_MS)
    first, second = waiting.take(5 * _DAY_MS)
    assert (first.batch_created_at_ms, second.batch_created_at_ms) == (4 * _DAY_MS, 5 * _DAY_MS)
    assert first.batch_id != second.batch_id
    assert {first.completion_window, second.completion_window} == {REALTIME}
    assert meter_of(TokenType.INPUT, REALTIME, None) == "backhaul_realtime_input_tokens"


def test_two_starts_of_a_worker_never_share_a_number() -> None:
    one, two = RealtimeUsage("p1"), RealtimeUsage("p2")
    for waiting in (one, two):
        waiting.add("a", CHAT, "m", _one(), 0)
    assert _counted([*one.take(0), *two.take(0)]) == {("a", CHAT, "m"): 2}


def test_many_requests_are_several_records() -> None:
    waiting = RealtimeUsage("p1")
    for _ in range(MAX_LINES + 1):
        waiting.add("a", CHAT, "m", _one(), 0)
    assert [len(record.lines) for record in waiting.take(0)] == [MAX_LINES, 1]


def test_made_up_models_never_make_a_record_too_large_for_the_broker() -> None:
    waiting = RealtimeUsage("p1")
    for number in range(20_000):
        waiting.add("a", CHAT, f"{number}".zfill(256), _one(), 0)
    records = waiting.take(0)
    assert max(len(encode(record)) for record in records) < MAX_RECORD_BYTES / 4
    assert sum(_counted(records).values()) == 20_000


async def test_what_the_broker_does_not_take_is_sent_again_as_it_was() -> None:
    sent: list[UsageRecorded] = []
    fails = 2

    async def send(record: UsageRecorded) -> None:
        nonlocal fails
        sent.append(record)
        if fails:
            fails -= 1
            raise SendFailed("the test says so")

    reporter = UsageReporter("p1", send, ManualClock(0))
    reporter.add(request(), _one())
    await reporter.report()
    reporter.add(request(), _one())
    await reporter.report()
    await reporter.stop(1.0)
    assert _counted(sent) == {("acme", CHAT, "m1"): 2}
    assert sent[0] == sent[1] == sent[3]


async def test_a_record_that_is_refused_for_good_keeps_nobody_elses_usage_waiting() -> None:
    sent: list[str] = []

    async def send(record: UsageRecorded) -> None:
        if record.tenant == "acme":
            raise SendFailed("not authorised")
        if record.tenant == "large":
            raise RecordTooLarge("too large")
        sent.append(record.tenant)

    reporter = UsageReporter("p1", send, ManualClock(0))
    for tenant in ("acme", "large", "other", "third"):
        reporter.add(msgspec.structs.replace(request(), tenant=tenant), _one())
    for _ in range(3):
        await reporter.report()
    assert sent == ["other", "third"]


@pytest.mark.parametrize(
    ("body", "endpoint"),
    [
        (b'{"stream":true,"stream_options":{"include_usage":true}}', CHAT),
        (b'{"stream":true}', "/v1/responses"),
        (b'{"stream":true,"stream_options":[1]}', CHAT),
        (b"no json", CHAT),
    ],
)
def test_a_body_that_needs_no_change_gets_none(body: bytes, endpoint: str) -> None:
    assert asking_for_usage(body, endpoint) is None


def test_what_a_caller_asked_of_the_stream_stays() -> None:
    body = b'{"stream":true,"stream_options":{"include_usage":false,"other":1}}'
    assert asking_for_usage(body, CHAT) == (
        b'{"stream":true,"stream_options":{"include_usage":true,"other":1}}'
    )


def test_only_events_that_tell_nothing_but_usage_are_taken_out() -> None:
    content = b'data: {"choices":[{"index":0}],"usage":{"prompt_tokens":1}}\n\n'
    empty = b'data: {"choices":[],"prompt_filter_results":[]}\r\n\r\n'
    named = b'event: x\ndata: {"choices":[],"usage":{}}\n\n'
    told = b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'
    assert without_usage(content + empty + told + named + told) == content + empty + named
    assert without_usage(told + b'data: {"usage":{') == b'data: {"usage":{'
