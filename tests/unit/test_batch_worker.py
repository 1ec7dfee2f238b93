"""The batch-worker between reading a slice and acking it, upstream and broker in memory."""

from __future__ import annotations

import asyncio
import json

import pytest

from schemas.codec import encode
from schemas.records import ClaimCheck, OutcomeKind, ReadyLine
from streams.adapters.inference_fake import Behaviour, CutOff, Hang, Reply, Reset
from streams.batch_worker.publisher import MAX_RECORD_BYTES, MAX_RECORD_OUTCOMES
from tests.support.worker_bench import CHAT, Bench, lines, raw, until


async def test_a_slice_is_finished_once_the_broker_has_all_its_outcomes() -> None:
    bench = Bench()
    bench.take(*lines(0, 1, 2, 3, 4, 5), offset=7)
    assert bench.held() == 6
    await until(lambda: bench.finished)
    assert bench.finished == [7]
    assert sorted(o.line for o in bench.outcomes) == [0, 1, 2, 3, 4, 5]
    assert {o.kind for o in bench.outcomes} == {OutcomeKind.COMPLETED}
    assert bench.held() == 0
    assert bench.clients["a"].most_running == 4
    assert bench.clients["a"].requests[0] == (CHAT, b'{"model": "m", "n": 0}')


async def test_outcomes_that_finish_together_travel_together() -> None:
    bench = Bench(limit=64)
    bench.take(*lines(*range(50)))
    await until(lambda: bench.finished)
    assert len(bench.sent) <= 2


async def test_a_lone_outcome_does_not_wait_for_company() -> None:
    bench = Bench()
    bench.take(*lines(0))
    for _turn in range(30):
        await asyncio.sleep(0)
    assert bench.finished


async def test_tail_outcomes_do_not_wait_for_company() -> None:
    bench = Bench(a=lambda _p, body: Hang() if b'"n": 1' in body else Reply())
    bench.take(*lines(0, 1), tail=True)
    for _turn in range(30):
        await asyncio.sleep(0)
    assert bench.sent[0].tail
    assert [o.line for o in bench.outcomes] == [0]
    await bench.worker.stop(0.0)


async def test_one_record_never_holds_two_batches() -> None:
    bench = Bench(limit=20)
    bench.take(*lines(*range(10)), batch="b1")
    bench.take(*lines(*range(10)), batch="b2", offset=1)
    await until(lambda: len(bench.finished) == 2)
    assert {record.batch_id for record in bench.sent} == {"b1", "b2"}


async def test_two_outcomes_of_a_line_never_share_a_record() -> None:
    bench = Bench(limit=64)
    bench.take(*lines(0, 1), offset=1)
    bench.take(*lines(0, attempt=2), offset=2)
    await until(lambda: len(bench.finished) == 2)
    assert len(bench.outcomes) == 3
    for record in bench.sent:
        assert len({o.line for o in record.outcomes}) == len(record.outcomes)


async def test_a_record_is_bounded_in_bytes_and_in_outcomes() -> None:
    bench = Bench(a=lambda _p, _b: Reply(body=b'{"x":"' + b"y" * 1500 + b'"}'), limit=2000)
    bench.take(*lines(*range(1000)))
    await until(lambda: bench.finished)
    assert len(bench.outcomes) == 1000
    assert max(len(encode(record)) for record in bench.sent) <= MAX_RECORD_BYTES
    assert max(len(record.outcomes) for record in bench.sent) <= MAX_RECORD_OUTCOMES


async def test_an_upstream_that_hangs_does_not_hold_up_another() -> None:
    bench = Bench(a=lambda _p, _b: Hang())
    for n in range(50):
        bench.take(*lines(n), offset=n, batch=f"h{n}")
    bench.take(*lines(*range(20)), pool="b", batch="b2", offset=99)
    await until(lambda: bench.finished)
    assert bench.finished == [99]
    assert bench.clients["a"].running == 4
    assert (bench.held("a"), bench.held("b")) == (50, 0)
    await bench.worker.stop(0.0)


async def test_a_blip_is_repeated_in_place_and_nobody_hears_of_it() -> None:
    behaviours: list[Behaviour] = [Reset(), Reset(), Reply()]
    bench = Bench(a=lambda _p, _b: behaviours.pop(0))
    bench.take(*lines(0))
    await until(lambda: bench.finished)
    assert [(o.kind, o.attempt) for o in bench.outcomes] == [(OutcomeKind.COMPLETED, 1)]


async def test_three_blips_are_a_failed_attempt() -> None:
    bench = Bench(a=lambda _p, _b: Reset())
    bench.take(*lines(0))
    await until(lambda: bench.finished)
    assert [(o.kind, o.reason) for o in bench.outcomes] == [(OutcomeKind.RETRY, "unreachable")]
    assert bench.requests() == 3


async def test_an_answer_that_was_cut_off_is_not_asked_for_again_in_place() -> None:
    bench = Bench(a=lambda _p, _b: CutOff())
    bench.take(*lines(0, attempt=2))
    await until(lambda: bench.finished)
    assert [(o.kind, o.reason) for o in bench.outcomes] == [(OutcomeKind.FAILED, "unreachable")]
    assert bench.requests() == 1


async def test_a_line_delivered_again_joins_the_call_that_runs() -> None:
    bench = Bench(a=lambda _p, _b: Reply(delay_s=0.05))
    bench.take(*lines(0), offset=1)
    await until(lambda: bench.clients["a"].running)
    bench.take(*lines(0), offset=2)
    await until(lambda: len(bench.finished) == 2)
    assert bench.requests() == 1
    assert len(bench.outcomes) == 1
    assert bench.held() == 0


async def test_a_later_attempt_is_another_call() -> None:
    bench = Bench(a=lambda _p, _b: Reply(delay_s=0.05))
    bench.take(*lines(0), offset=1)
    bench.take(*lines(0, attempt=2), offset=2)
    await until(lambda: len(bench.finished) == 2)
    assert bench.requests() == 2


async def test_a_line_twice_in_a_slice_runs_once() -> None:
    bench = Bench()
    bench.take(*lines(0, 0, 1))
    await until(lambda: bench.finished)
    assert bench.requests() == 2


async def test_lines_of_an_ended_batch_are_acked_without_an_outcome() -> None:
    bench = Bench()
    bench.worker.end("b1")
    bench.take(*lines(0, 1), offset=3)
    assert bench.finished == [3]
    await asyncio.sleep(0)
    assert bench.requests() == 0
    assert bench.sent == []


async def test_the_end_of_a_batch_cuts_its_calls_and_no_others() -> None:
    bench = Bench(a=lambda _p, _b: Hang())
    bench.take(*lines(*range(3)), batch="b1", offset=1)
    bench.take(*lines(*range(3)), batch="b2", offset=2)
    await until(lambda: bench.clients["a"].running == 4)
    bench.worker.end("b1")
    assert bench.finished == [1]
    assert bench.held() == 3
    await until(lambda: bench.clients["a"].running == 3)
    assert bench.sent == []
    await bench.worker.stop(0.0)


async def test_calls_cut_before_their_first_step_give_their_places_back() -> None:
    bench = Bench()
    bench.take(*lines(0, 1, 2, 3, 4))
    bench.worker.end("b1")
    bench.take(*lines(0), batch="b2", offset=9)
    await until(lambda: 9 in bench.finished)
    assert bench.requests() == 1
    assert bench.worker.pools["a"].running == 0


async def test_an_outcome_on_its_way_when_the_batch_ends_still_finishes_its_slice() -> None:
    bench = Bench(a=lambda _p, body: Hang() if b'"n": 1' in body else Reply())
    bench.take(*lines(0, 1), offset=1)
    await until(lambda: bench.worker.pools["a"].running == 1)
    bench.worker.end("b1")
    await until(lambda: bench.finished)
    assert (bench.finished, bench.held()) == ([1], 0)


async def test_a_line_past_its_window_is_not_started() -> None:
    bench = Bench()
    bench.take(*lines(0, 1), offset=5, deadline_ms=1)
    await until(lambda: bench.finished)
    assert (bench.requests(), bench.sent, bench.held()) == (0, [], 0)


async def test_a_line_of_an_unknown_pool_goes_back_to_the_dispatcher() -> None:
    bench = Bench()
    bench.take(*lines(0, attempt=9), pool="gone")
    await until(lambda: bench.finished)
    assert [o.kind for o in bench.outcomes] == [OutcomeKind.RETRY]


async def test_a_claimed_line_is_read_from_the_store() -> None:
    bench = Bench()
    await bench.store.put("files/t/f", b"xx" + raw(0) + b"yy")
    claim = ClaimCheck(key="files/t/f", offset=2, length=len(raw(0)))
    bench.take(ReadyLine(line=0, attempt=1, claim=claim))
    await until(lambda: bench.finished)
    assert bench.outcomes[0].kind is OutcomeKind.COMPLETED
    assert bench.clients["a"].requests[0][1] == b'{"model": "m", "n": 0}'


@pytest.mark.parametrize("item", [None, b"", b"{", b"[]", b'{"custom_id":1,"body":{}}'])
async def test_a_line_that_can_not_be_read_back_fails_for_good(item: bytes | None) -> None:
    bench = Bench()
    claim = ClaimCheck(key="files/t/gone", offset=0, length=5)
    bench.take(ReadyLine(line=0, attempt=1, raw=item, claim=None if item is not None else claim))
    await until(lambda: bench.finished)
    assert [(o.kind, o.reason) for o in bench.outcomes] == [(OutcomeKind.FAILED, "input_lost")]
    assert bench.requests() == 0


async def test_a_large_outcome_travels_as_a_claim_check() -> None:
    body = b'{"x":"' + b"y" * 4000 + b'"}'
    bench = Bench(a=lambda _p, _b: Reply(body=body))
    bench.take(*lines(0))
    await until(lambda: bench.finished)
    (outcome,) = bench.outcomes
    assert outcome.rendered is None
    assert outcome.claim is not None
    assert outcome.claim.key.startswith("batches/b1/claims/")
    assert body in await bench.store.get(outcome.claim.key)


async def test_the_upstreams_name_of_a_model_stands_in_the_body_and_ours_in_the_outcome() -> None:
    bench = Bench()
    bench.take(ReadyLine(line=0, attempt=1, raw=raw(0, "alias")))
    await until(lambda: bench.finished)
    assert json.loads(bench.clients["a"].requests[0][1]) == {"model": "real", "n": 0}
    assert bench.outcomes[0].model == "alias"


async def test_outcomes_wait_for_a_broker_that_fails() -> None:
    bench = Bench()
    bench.broker_fails = 1
    bench.take(*lines(0))
    await until(lambda: bench.requests() == 1 and not bench.broker_fails)
    assert bench.finished == []
    await until(lambda: bench.finished)
    assert len(bench.outcomes) == 1


async def test_what_had_not_begun_of_a_revoked_partition_does_not_begin() -> None:
    bench = Bench(a=lambda _p, _b: Reply(delay_s=0.1))
    bench.take(*lines(*range(4)), partition=0, offset=1)
    bench.take(*lines(*range(4, 8)), partition=1, offset=2)
    await until(lambda: bench.clients["a"].running == 4)
    bench.worker.revoked({1})
    assert bench.held() == 4
    await until(lambda: bench.finished)
    assert (bench.finished, bench.requests()) == ([1], 4)


async def test_a_line_of_a_revoked_partition_that_comes_back_joins_its_call() -> None:
    bench = Bench(a=lambda _p, _b: Reply(delay_s=0.05))
    bench.take(*lines(0), offset=1)
    await until(lambda: bench.clients["a"].running)
    bench.worker.revoked({0})
    bench.take(*lines(0), offset=2)
    await until(lambda: 2 in bench.finished)
    assert bench.requests() == 1


async def test_a_graceful_stop_finishes_what_runs_and_leaves_what_waits() -> None:
    bench = Bench(a=lambda _p, _b: Reply(delay_s=0.05))
    for n in range(8):
        bench.take(*lines(n), offset=n)
    await until(lambda: bench.clients["a"].running == 4)
    await bench.worker.stop(5.0)
    assert sorted(bench.finished) == [0, 1, 2, 3]
    bench.take(*lines(9), offset=9)
    assert (bench.requests(), bench.worker.pools["a"].credits()) == (4, 0)


async def test_a_graceful_stop_does_not_wait_longer_than_its_budget() -> None:
    bench = Bench(a=lambda _p, _b: Hang())
    bench.take(*lines(0))
    await until(lambda: bench.clients["a"].running)
    await asyncio.wait_for(bench.worker.stop(0.05), 30)
    assert bench.finished == []


async def test_a_fault_inside_the_worker_is_a_failed_attempt_and_not_a_dead_worker() -> None:
    def broken(_path: str, _body: bytes) -> Behaviour:
        raise ZeroDivisionError

    bench = Bench(a=broken)
    bench.take(*lines(0))
    await until(lambda: bench.finished)
    assert [o.kind for o in bench.outcomes] == [OutcomeKind.RETRY]
