"""Parts that the broker never took: their answers end as failed, and the others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest
import structlog

from schemas.records import RealtimeReplies, RealtimeReply, ReplyKind
from streams.domain.clock import ManualClock
from streams.kafka.errors import SendFailed
from streams.realtime_worker.replies import Destination, Replies
from tests.support.waiting import eventually

_TO = Destination("gateway-0", 3)


def _part(request_id: str, sequence: int, kind: ReplyKind = ReplyKind.DATA) -> RealtimeReply:
    return RealtimeReply(request_id=request_id, sequence=sequence, kind=kind, data=b"x")


class _Post:
    """Replies to a broker that gives each record the next verdict, and takes it without one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("streams.realtime_worker.replies.GIVE_UP_S", -1.0)
        self.tried = 0
        self.verdicts: list[asyncio.Future[None]] = []
        self.arrived: list[tuple[str, int, ReplyKind, str]] = []
        self.lost: list[str] = []
        self.replies = Replies("w", "p", self._send, ManualClock(), self._lost, self._broken)

    def refusing(self, records: int) -> list[asyncio.Future[None]]:
        """The next records are refused once their futures are done."""
        self.verdicts = [asyncio.get_running_loop().create_future() for _ in range(records)]
        return list(self.verdicts)

    async def _send(self, _partition: int, record: RealtimeReplies) -> None:
        self.tried += 1
        if self.verdicts:
            await self.verdicts.pop(0)
            raise SendFailed("the test says so")
        self.arrived += [(p.request_id, p.sequence, p.kind, p.reason) for p in record.replies]

    def _lost(self, request_ids: Collection[str]) -> None:
        self.lost += request_ids

    def _broken(self, error: BaseException) -> None:
        raise error


async def test_an_answer_that_lost_a_part_ends_as_failed_and_others_lose_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    post = _Post(monkeypatch)
    (verdict,) = post.refusing(1)
    post.replies.add(_TO, _part("a", 0), urgent=True)
    await eventually(lambda: post.tried == 1)
    post.replies.add(_TO, _part("a", 1), urgent=True)
    post.replies.add(_TO, _part("b", 0), urgent=True)
    post.replies.add(_TO, _part("a", 2, ReplyKind.END), urgent=True)
    with structlog.testing.capture_logs() as logged:
        verdict.set_result(None)
        await eventually(lambda: len(post.arrived) == 2)
    assert post.arrived == [
        ("b", 0, ReplyKind.DATA, ""),
        # After what was withdrawn, so that a gateway that has the lost part sees no hole either.
        ("a", 3, ReplyKind.FAILED, "unreachable"),
    ]
    assert post.lost == ["a"]
    told = [line for line in logged if line["action"] == "replies_lost"]
    assert [(line["parts"], line["answers"], line["log_level"]) for line in told] == [
        (1, 1, "error")
    ]


async def test_a_failure_that_waits_behind_a_lost_part_keeps_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    post = _Post(monkeypatch)
    (verdict,) = post.refusing(1)
    post.replies.add(_TO, _part("a", 0), urgent=True)
    await eventually(lambda: post.tried == 1)
    late = RealtimeReply(request_id="a", sequence=1, kind=ReplyKind.FAILED, reason="timeout")
    post.replies.add(_TO, late, urgent=True)
    verdict.set_result(None)
    await eventually(lambda: post.arrived)
    assert post.arrived == [("a", 1, ReplyKind.FAILED, "timeout")]


async def test_a_failure_that_is_lost_too_is_not_told_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    post = _Post(monkeypatch)
    for verdict in post.refusing(2):
        verdict.set_result(None)
    post.replies.add(_TO, _part("a", 0), urgent=True)
    await eventually(lambda: post.tried == 2)
    await post.replies.drain(5.0)
    post.replies.add(_TO, _part("b", 0), urgent=True)
    await eventually(lambda: post.arrived)
    assert post.arrived == [("b", 0, ReplyKind.DATA, "")]
    assert (post.lost, post.tried) == (["a"], 3)


async def test_who_waits_for_room_goes_on_when_what_filled_it_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.realtime_worker.replies.MAX_HELD_BYTES", 0)
    post = _Post(monkeypatch)
    (verdict,) = post.refusing(1)
    post.replies.add(_TO, _part("a", 0), urgent=True)
    await eventually(lambda: post.tried == 1)
    post.replies.add(_TO, _part("a", 1), urgent=True)
    waiting = asyncio.create_task(post.replies.room(_TO))
    await asyncio.sleep(0)
    assert not waiting.done()
    verdict.set_result(None)
    await asyncio.wait_for(waiting, 10)
    await eventually(lambda: post.arrived)
