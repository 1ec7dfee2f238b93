"""One attempt at one line, from its bytes to an outcome that can travel."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import msgspec
import structlog

from schemas.records import ClaimCheck, Outcome
from streams.batch_worker.calls import Calls
from streams.batch_worker.line import Line
from streams.batch_worker.prompt_line import PromptRequests
from streams.batch_worker.request import Request, Unsendable, parse_request
from streams.batch_worker.stored import FIRST_PAUSE_S, MAX_PAUSE_S, log_failure, read_claim
from streams.domain import keys
from streams.domain.clock import Clock
from streams.domain.failures import FailureReason
from streams.domain.ids import new_claim_id
from streams.domain.outcome.judge import Answer, Attempt, Judge
from streams.domain.outcome.retry import RetryPolicy
from streams.domain.upstreams import Lane, Rewrite, Upstream
from streams.kafka.failpoint import reach
from streams.ports.inference import BlipError, InferenceClient, InferenceError
from streams.ports.object_store import ObjectStore, ObjectStoreError

log = structlog.get_logger(__name__)

#: What a line waits for between having its request and calling: a place at its upstream.
Place = Callable[[], AbstractAsyncContextManager[None]]

#: Pauses before a call is repeated that brought no byte; each is drawn from half of it up.
_BLIP_PAUSES_S = (0.05, 0.2)


class Caller:
    """Makes the attempts at the lines of one upstream."""

    def __init__(
        self,
        upstream: Upstream,
        client: InferenceClient,
        store: ObjectStore,
        clock: Clock,
        prompts: PromptRequests,
        *,
        claim_check_bytes: int,
        random: Callable[[], float],
    ) -> None:
        self._client = client
        self._store = store
        self._clock = clock
        self._prompts = prompts
        self._claim_check_bytes = claim_check_bytes
        self._random = random
        self._rewrite = Rewrite(upstream, Lane.BATCH)
        policy = RetryPolicy(upstream.max_attempts, upstream.first_retry_s, upstream.max_retry_s)
        self._judge = Judge(policy, random)

    async def attempt(self, line: Line, calls: Calls, place: Place | None = None) -> Outcome | None:
        """The outcome; None if the line must not start any more: its window is over, or its
        slice another worker's.

        calls: where its call is counted, and may be cut: then this raises CancelledError.
        place: what it must enter before it calls, unless it has it already.
        """
        try:
            return await self._attempt(line, calls, place)
        except Exception as error:  # noqa: BLE001 - one line must not take the worker down
            log.error(
                "An attempt failed inside the worker.",
                action="attempt_broken",
                batch_id=line.ready.batch_id,
                line=line.item.line,
                error=type(error).__name__,
            )
            return self._unsent(line, Unsendable(FailureReason.INVALID_RESPONSE))

    async def _attempt(self, line: Line, calls: Calls, place: Place | None) -> Outcome | None:
        ready, item = line.ready, line.item
        if ready.deadline_ms <= self._clock.now_ms():
            return None
        raw = item.raw
        if raw is None:
            raw = await read_claim(self._store, item.claim, self._clock, ready.deadline_ms)
            if raw is None:
                return None
        request: Request | Unsendable | None
        if item.pin:
            request = await self._prompts.request(ready, item, raw, self._rewrite)
            if request is None:
                return None
        else:
            request = parse_request(raw, self._rewrite) or Unsendable(FailureReason.INPUT_LOST)
        if isinstance(request, Unsendable):
            return self._unsent(line, request)
        if place is None:
            outcome = await self._called(line, request, calls)
        else:
            async with place():
                if not line.live or line.ready.deadline_ms <= self._clock.now_ms():
                    return None
                outcome = await self._called(line, request, calls)
        reach("batch_worker.answered")
        rendered = outcome.rendered
        if rendered is not None and len(rendered) > self._claim_check_bytes:
            return await self._checked_in(ready.batch_id, outcome, rendered)
        return outcome

    def _unsent(self, line: Line, why: Unsendable) -> Outcome:
        attempt = _attempt_at(line, why.custom_id, why.model)
        return self._judge.unanswered(attempt, why.reason, self._clock.now_ms(), 0)

    async def _called(self, line: Line, request: Request, calls: Calls) -> Outcome:
        ready = line.ready
        attempt = _attempt_at(line, request.custom_id, request.model)
        clock = self._clock
        started = clock.monotonic_s()
        try:
            with calls.one(line):
                answer = await self._answer(ready.endpoint, request.body)
        except InferenceError as error:
            took_ms = round((clock.monotonic_s() - started) * 1000)
            return self._judge.unanswered(attempt, error.reason, clock.now_ms(), took_ms)
        took_ms = round((clock.monotonic_s() - started) * 1000)
        return self._judge.answered(attempt, answer, clock.now_ms(), took_ms)

    async def _answer(self, path: str, body: bytes) -> Answer:
        for pause_s in _BLIP_PAUSES_S:
            try:
                return await self._client.send(path, body)
            except BlipError:
                await asyncio.sleep(pause_s * (0.5 + 0.5 * self._random()))
        return await self._client.send(path, body)

    async def _checked_in(self, batch_id: str, outcome: Outcome, rendered: bytes) -> Outcome:
        key = keys.claim(batch_id, new_claim_id())
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._store.put(key, rendered)
            except ObjectStoreError as error:
                # The answer is paid for, so it waits here, within its credit, for the store.
                log_failure(error)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, MAX_PAUSE_S)
            else:
                break
        claim = ClaimCheck(
            key=key, offset=0, length=len(rendered), sha256=hashlib.sha256(rendered).hexdigest()
        )
        return msgspec.structs.replace(outcome, rendered=None, claim=claim)


def _attempt_at(line: Line, custom_id: bytes, model: str) -> Attempt:
    ready, item = line.ready, line.item
    return Attempt(ready.batch_id, item.line, item.attempt, ready.endpoint, custom_id, model)
