"""The realtime-worker between a request that was acked and the parts of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import msgspec
import pytest

from schemas.metrics import REALTIME_ANSWERS_LOST, REALTIME_NOT_RUN, REALTIME_TOKENS, Metrics
from schemas.records import (
    RealtimeCancel,
    RealtimeLoad,
    RealtimeReplies,
    RealtimeReply,
    RealtimeRequest,
    ReplyKind,
    Usage,
)
from streams.adapters.inference_fake import Events, FakeInferenceClient, Hang, Reply, Script
from streams.domain.clock import ManualClock
from streams.domain.outcome.estimated import ESTIMATED
from streams.domain.outcome.streamed import Used
from streams.kafka.errors import SendFailed
from streams.realtime_worker.load import LoadReporter
from streams.realtime_worker.pool import MAX_SAMPLES, Samples
from streams.realtime_worker.replies import MAX_PART_BYTES
from streams.realtime_worker.upstream import Caller
from streams.realtime_worker.worker import Worker
from tests.support.lane import DONE, UPSTREAMS, always, chunk, completion, events
from tests.support.waiting import eventually

_numbers = count()
_BASE = RealtimeRequest(
    request_id="",
    tenant="acme",
    gateway="gateway-0",
    reply_partition=3,
    at_ms=1_000,
    accept_by_ms=6_000,
    deadline_ms=601_000,
    endpoint="/v1/chat/completions",
    pool="one",
    model="m1",
    stream=False,
    body=b'{"model":"m1"}',
)


def request(**changes: object) -> RealtimeRequest:
    """A fresh request."""
    fields = {"request_id": f"req_{next(_numbers)}", **changes}
    return msgspec.structs.replace(_BASE, **fields)


@dataclass
class Desk:
    """A worker and what it sent."""

    worker: Worker
    upstream: FakeInferenceClient
    clock: ManualClock
    metrics: Metrics
    #: What each good answer used.
    used: list[tuple[RealtimeRequest, Used]]
    sent: list[tuple[int, RealtimeReplies]] = field(default_factory=list)
    failures: int = 0

    def parts(self, request_id: str) -> list[RealtimeReply]:
        """The parts of one answer, in the order they were sent."""
        return [p for _, r in self.sent for p in r.replies if p.request_id == request_id]

    def kinds(self, request_id: str) -> list[str]:
        """Their kinds."""
        return [part.kind.value for part in self.parts(request_id)]

    def not_run(self, reason: str) -> float:
        """How many requests were not begun for this reason."""
        found: float = self.metrics.counter(REALTIME_NOT_RUN).labels(reason)._value.get()
        return found

    async def ended(self, request_id: str) -> list[str]:
        """The kinds of its parts once the last is sent."""
        await eventually(lambda: self.kinds(request_id)[-1:] in (["end"], ["failed"]))
        return self.kinds(request_id)


@asynccontextmanager
async def desk(script: Script) -> AsyncIterator[Desk]:
    clock, metrics = ManualClock(2_000), Metrics()
    upstream = FakeInferenceClient(script)

    async def send(partition: int, record: RealtimeReplies) -> None:
        if made.failures:
            made.failures -= 1
            raise SendFailed("the test says so")
        made.sent.append((partition, record))

    def broken(error: BaseException) -> None:
        raise error

    callers = {name: Caller(u, upstream, clock) for name, u in UPSTREAMS.upstreams.items()}
    used: list[tuple[RealtimeRequest, Used]] = []
    worker = Worker(
        *("w", "p", UPSTREAMS, callers, send, clock, metrics),
        *(lambda: None, lambda request, told: used.append((request, told)), broken),
    )
    made = Desk(worker, upstream, clock, metrics, used)
    yield made
    await worker.stop(0.0)


async def test_an_answer_is_parts_in_order_to_the_partition_of_the_asker() -> None:
    async with desk(always(completion("hi"))) as made:
        asked = request()
        made.worker.take(asked)
        assert await made.ended(asked.request_id) == ["accepted", "head", "data", "end"]
        parts = made.parts(asked.request_id)
        assert [part.sequence for part in parts] == [0, 1, 2, 3]
        assert (parts[1].status, parts[2].data) == (200, completion("hi").body)
        assert {partition for partition, _ in made.sent} == {3}
        tokens = made.metrics.counter(REALTIME_TOKENS).labels("one", "output")
        assert tokens._value.get() == 2


async def test_answers_that_end_together_travel_in_one_record() -> None:
    async with desk(always(completion())) as made:
        asked = [request() for _ in range(4)]
        for one in asked:
            made.worker.take(one)
        for one in asked:
            await made.ended(one.request_id)
        assert len(made.sent) < 4


async def test_the_first_event_is_sent_at_once_and_the_next_ones_together() -> None:
    async with desk(always(events("a", "b", "c", "d", pause_s=0.002))) as made:
        asked = request(stream=True)
        made.worker.take(asked)
        await made.ended(asked.request_id)
        datas = [[p for p in record.replies if p.kind is ReplyKind.DATA] for _, record in made.sent]
        assert len(next(found for found in datas if found)) == 1
        assert len(made.sent) <= 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"accept_by_ms": 1_999}, "late"), ({"deadline_ms": 2_000}, "late")],
)
async def test_what_nobody_waits_for_is_not_begun(changes: dict[str, int], reason: str) -> None:
    async with desk(always(completion())) as made:
        made.worker.take(request(**changes))
        assert made.not_run(reason) == 1
        assert made.upstream.requests == []


async def test_a_request_that_is_delivered_twice_runs_once() -> None:
    async with desk(always(completion())) as made:
        asked = request()
        made.worker.take(asked)
        made.worker.take(asked)
        await made.ended(asked.request_id)
        made.worker.take(asked)
        assert made.not_run("seen") == 2
        assert len(made.upstream.requests) == 1


async def test_a_cancel_may_come_before_its_request() -> None:
    async with desk(always(completion())) as made:
        asked = request()
        made.worker.cancel(_cancel(asked.request_id))
        made.worker.take(asked)
        assert made.not_run("cancelled") == 1


async def test_a_cancel_cuts_a_call_and_frees_its_place() -> None:
    async with desk(always(Hang())) as made:
        asked = [request() for _ in range(6)]
        for one in asked:
            made.worker.take(one)
        await eventually(lambda: made.upstream.running == 4)
        load = made.worker.load(stopping=False)
        assert (load.in_flight, load.pools[0].in_flight, load.pools[0].waiting) == (6, 4, 2)
        assert load.oldest_wait_ms == 1_000
        made.worker.cancel(_cancel(asked[0].request_id))
        made.worker.cancel(_cancel(asked[5].request_id))
        await eventually(lambda: len(made.upstream.requests) == 5)
        assert made.worker.load(stopping=False).in_flight == 4
        assert "failed" not in made.kinds(asked[0].request_id)


async def test_calls_cancelled_before_their_first_step_give_their_places_back() -> None:
    async with desk(always(completion())) as made:
        gone = [request() for _ in range(4)]
        for one in gone:
            made.worker.take(one)
        for one in gone:
            made.worker.cancel(_cancel(one.request_id))
        asked = request()
        made.worker.take(asked)
        assert (await made.ended(asked.request_id))[-1] == "end"
        assert len(made.upstream.requests) == 1
        load = made.worker.load(stopping=False)
        assert (load.in_flight, load.pools[0].in_flight, load.pools[0].waiting) == (0, 0, 0)


async def test_a_tenant_with_many_calls_waiting_is_in_nobodys_way() -> None:
    async with desk(always(Hang())) as made:
        running = [request() for _ in range(4)]
        for one in running:
            made.worker.take(one)
        await eventually(lambda: made.upstream.running == 4)
        for number in range(3):
            made.worker.take(request(body=b'{"n":"a%d"}' % number, at_ms=1_000 + number))
        for number in range(2):
            made.worker.take(request(tenant="rival", body=b'{"n":"r%d"}' % number, at_ms=1_500))
        assert made.worker.pools["one"].waiting_since_ms == 1_000
        for one in running:
            made.worker.cancel(_cancel(one.request_id))
        await eventually(lambda: len(made.upstream.requests) == 8)
        begun = [msgspec.json.decode(body)["n"] for _, body in made.upstream.requests[4:]]
        assert begun == ["a0", "r0", "a1", "r1"]
        load = made.worker.load(stopping=False)
        assert (load.pools[0].waiting, load.oldest_wait_ms) == (1, 998)


async def test_a_gateway_that_was_started_again_cancels_only_what_it_asked_before() -> None:
    async with desk(always(Hang())) as made:
        for changes in ({}, {"at_ms": 1_600}, {"gateway": "gateway-1"}):
            made.worker.take(request(**changes))
        await eventually(lambda: made.upstream.running == 3)
        made.worker.cancel(RealtimeCancel(request_id="", gateway="gateway-0", at_ms=1_500))
        await eventually(lambda: made.upstream.running == 2)


async def test_a_pool_that_this_worker_lacks_is_a_failure_and_not_a_silence() -> None:
    async with desk(always(completion())) as made:
        asked = request(pool="another")
        made.worker.take(asked)
        assert await made.ended(asked.request_id) == ["accepted", "failed"]


async def test_a_stop_fails_what_does_not_end_in_time() -> None:
    async with desk(always(Hang())) as made:
        asked = [request() for _ in range(6)]
        for one in asked:
            made.worker.take(one)
        await eventually(lambda: made.upstream.running == 4)
        await made.worker.stop(0.01)
        for one in asked:
            assert made.kinds(one.request_id)[-1] == "failed"
        assert made.upstream.running == 0
        assert len(made.upstream.requests) == 4


async def test_parts_that_the_broker_refuses_are_sent_again_in_order() -> None:
    async with desk(always(completion())) as made:
        made.failures = 2
        asked = request()
        made.worker.take(asked)
        assert await made.ended(asked.request_id) == ["accepted", "head", "data", "end"]


async def test_a_call_whose_answer_lost_parts_is_cut_and_nobody_pays_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.realtime_worker.replies.GIVE_UP_S", -1.0)
    async with desk(always(events(*["a"] * 5000, pause_s=0.02))) as made:
        asked = request(stream=True)
        made.worker.take(asked)
        await eventually(lambda: "data" in made.kinds(asked.request_id))
        made.failures = 1
        assert (await made.ended(asked.request_id))[-1] == "failed"
        await eventually(lambda: made.upstream.running == 0)
        before, failed = made.parts(asked.request_id)[-2:]
        assert failed.sequence > before.sequence + 1
        assert made.metrics.counter(REALTIME_ANSWERS_LOST)._value.get() == 1
        assert made.worker.load(stopping=False).in_flight == 0
        assert made.used == []


async def test_a_long_answer_travels_in_several_parts() -> None:
    long = b"data: " + b"x" * (3 * MAX_PART_BYTES) + b"\n\n"
    async with desk(always(Events((long,)))) as made:
        asked = request()
        made.worker.take(asked)
        await made.ended(asked.request_id)
        datas = [p.data for p in made.parts(asked.request_id) if p.kind is ReplyKind.DATA]
        assert b"".join(datas) == long
        assert max(map(len, datas)) <= MAX_PART_BYTES


async def test_the_load_tells_times_once() -> None:
    async with desk(always(events("a", "b"))) as made:
        asked = request()
        made.worker.take(asked)
        await made.ended(asked.request_id)
        (pool, _other) = made.worker.load(stopping=False).pools
        assert (len(pool.ttft_us), len(pool.itl_us)) == (1, 2)
        assert pool.ttft_sent_ms == (made.clock.now_ms(),)
        assert (pool.gaps, pool.gaps_us) == (2, sum(pool.itl_us))
        assert pool.gaps_us > 0
        (pool, _other) = made.worker.load(stopping=True).pools
        assert pool.ttft_us == pool.itl_us == pool.ttft_sent_ms == ()
        assert (pool.gaps, pool.gaps_us) == (0, 0)


@pytest.mark.parametrize(("stream", "awaited"), [(True, 1), (False, 0)])
async def test_the_load_tells_of_streams_whose_first_event_has_not_come(
    stream: bool, awaited: int
) -> None:
    async with desk(always(Hang())) as made:
        asked = request(stream=stream)
        made.worker.take(asked)
        await eventually(lambda: made.upstream.running == 1)
        assert made.worker.load(stopping=False).pools[0].awaiting == awaited
        made.worker.cancel(_cancel(asked.request_id))
        await eventually(lambda: made.worker.load(stopping=False).pools[0].awaiting == 0)


async def test_a_stream_that_has_begun_is_not_waited_for_any_more() -> None:
    words = [str(number) for number in range(1_000)]
    async with desk(always(events(*words, pause_s=0.05))) as made:
        asked = request(stream=True)
        made.worker.take(asked)
        await eventually(lambda: made.worker.load(stopping=False).pools[0].awaiting == 1)
        await eventually(lambda: made.worker.load(stopping=False).pools[0].awaiting == 0)
        assert made.worker.load(stopping=False).pools[0].in_flight == 1


def test_of_many_samples_a_bounded_number_is_kept() -> None:
    samples: Samples[int] = Samples()
    for number in range(10_000):
        samples.add(number)
    kept = samples.take()
    assert len(kept) == MAX_SAMPLES
    assert max(kept) > 5_000
    assert samples.take() == ()


async def test_a_load_is_published_when_it_changes_and_also_when_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published: list[RealtimeLoad] = []
    changed = asyncio.Event()

    async def send(load: RealtimeLoad) -> None:
        published.append(load)
        if len(published) == 2:
            raise SendFailed("the test says so")

    async with desk(always(completion())) as made:
        reporter = LoadReporter(made.worker, send, changed)
        monkeypatch.setattr("streams.realtime_worker.load.PERIOD_S", 3600.0)
        running = asyncio.create_task(reporter.run())
        for number in (1, 2, 3):
            await eventually(lambda number=number: len(published) == number)  # type: ignore[misc]
            changed.set()
        await eventually(lambda: len(published) == 4)
        running.cancel()
        monkeypatch.setattr("streams.realtime_worker.load.PERIOD_S", 0.1)
        running = asyncio.create_task(reporter.run())
        await eventually(lambda: len(published) >= 6)
        await reporter.publish(stopping=True)
        running.cancel()
    assert [load.stopping for load in published[-2:]] == [False, True]
    assert {(load.worker, load.process) for load in published} == {("w", "p")}


def _cancel(request_id: str) -> RealtimeCancel:
    return RealtimeCancel(request_id=request_id, gateway="gateway-0", at_ms=1_500)


async def test_a_call_carries_the_priority_of_real_time_whatever_its_caller_wrote() -> None:
    async with desk(always(completion())) as worker_desk:
        body = b'{"model":"urgent","priority":-99}'
        asked = request(pool="two", model="urgent", body=body)
        worker_desk.worker.take(asked)
        await eventually(lambda: "end" in worker_desk.kinds(asked.request_id))
        assert msgspec.json.decode(worker_desk.upstream.requests[0][1])["priority"] == -4


_TOLD = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'


async def test_a_stream_is_asked_for_its_usage_which_only_who_asked_gets() -> None:
    def script(_path: str, body: bytes) -> Events:
        asked = b"include_usage" in body
        return Events((chunk("hi"), *([_TOLD] if asked else []), DONE))

    async with desk(script) as made:
        quiet = request(stream=True, body=b'{"model":"m1","stream":true}')
        curious = request(
            stream=True,
            body=b'{"model":"m1","stream":true,"stream_options":{"include_usage":true}}',
        )
        for one in (quiet, curious):
            made.worker.take(one)
            await made.ended(one.request_id)
        whole = {
            one.request_id: b"".join(part.data for part in made.parts(one.request_id))
            for one in (quiet, curious)
        }
    assert whole[quiet.request_id] == chunk("hi") + DONE
    assert whole[curious.request_id] == chunk("hi") + _TOLD + DONE
    assert [told for _, told in made.used] == [Used(Usage(input_tokens=3, output_tokens=2), "")] * 2


async def _leaves(made: Desk, asked: RealtimeRequest, parts: int, *, client_left: bool) -> None:
    """The request runs until it was given so many events, and is then cut."""

    def given() -> int:
        kinds = [part.kind for part in made.parts(asked.request_id)]
        return kinds.count(ReplyKind.DATA)

    made.worker.take(asked)
    await eventually(lambda: given() >= parts)
    cancel = _cancel(asked.request_id)
    made.worker.cancel(msgspec.structs.replace(cancel, client_left=client_left))
    await eventually(lambda: made.upstream.running == 0)


def _endless(*first: bytes) -> Script:
    return always(Events((*first, *[chunk("word")] * 1000), pause_s=0.005))


async def test_a_client_that_leaves_pays_by_estimate_what_it_was_given() -> None:
    async with desk(_endless()) as made:
        body = b'{"model":"m1","stream":true,"messages":[{"role":"user","content":"12345678"}]}'
        await _leaves(made, request(stream=True, body=body), 3, client_left=True)
    ((_, told),) = made.used
    assert told.flag == ESTIMATED
    assert told.usage.input_tokens == 2
    assert 3 <= told.usage.output_tokens < 1000


async def test_a_client_that_leaves_pays_what_the_upstream_told_till_then() -> None:
    async with desk(_endless(_TOLD)) as made:
        await _leaves(made, request(stream=True), 2, client_left=True)
    assert [told for _, told in made.used] == [Used(Usage(input_tokens=3, output_tokens=2), "")]


async def test_a_stream_that_runs_out_of_time_is_paid_for_as_far_as_it_came() -> None:
    async with desk(_endless()) as made:
        asked = request(stream=True, deadline_ms=2_300)  # it is 2,000
        made.worker.take(asked)
        await made.ended(asked.request_id)
        assert made.parts(asked.request_id)[-1].reason == "timeout"
    ((_, told),) = made.used
    assert told.flag == ESTIMATED
    assert 1 <= told.usage.output_tokens < 1000


async def test_a_request_that_runs_out_of_time_before_anything_came_costs_nothing() -> None:
    async with desk(always(Hang())) as made:
        asked = request(stream=True, deadline_ms=2_050)
        made.worker.take(asked)
        await made.ended(asked.request_id)
    assert made.used == []


async def test_who_was_told_an_error_pays_nothing() -> None:
    async with desk(_endless()) as made:
        await _leaves(made, request(stream=True), 2, client_left=False)
        made.worker.take(request(stream=True))
        await eventually(lambda: made.upstream.running == 1)
        await made.worker.stop(0.0)
    assert made.used == []


async def test_a_client_that_leaves_before_anything_came_pays_nothing() -> None:
    async with desk(always(Hang())) as made:
        for stream in (True, False):
            await _leaves(made, request(stream=stream), 0, client_left=True)
    assert made.used == []


async def test_a_stream_whose_upstream_never_tells_its_usage_is_estimated() -> None:
    async with desk(always(events("a", "b", "c"))) as made:
        asked = request(stream=True)
        made.worker.take(asked)
        await made.ended(asked.request_id)
    assert [told for _, told in made.used] == [
        Used(Usage(input_tokens=1, output_tokens=3), ESTIMATED)
    ]


async def test_an_error_answer_uses_nothing() -> None:
    async with desk(always(Reply(status=400, body=b'{"error":{},"usage":{}}'))) as made:
        asked = request()
        made.worker.take(asked)
        await made.ended(asked.request_id)
        assert made.used == []
