"""What one call to an upstream means for its line.

| the call                                   | outcome                                          |
|--------------------------------------------|--------------------------------------------------|
| 2xx with a JSON object                     | completed                                        |
| 4xx but 408, 409, 429                      | failed, with the upstream's answer               |
| 429; 5xx, 408, 409                         | retry; at the last attempt failed, with the      |
|                                            | upstream's answer if it is a JSON object         |
| no answer, no JSON object, any other status| retry; at the last attempt failed, with an error |
| an answer above the limit; unreadable line | failed, with an error                            |
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from schemas.errors import LineCode
from schemas.records import Outcome, OutcomeKind
from streams.domain.failures import FailureReason
from streams.domain.outcome import render
from streams.domain.outcome.retry import RetryPolicy, asked_pause_s, pause_s
from streams.domain.outcome.usage import read_answer, read_object

_RETRIED_4XX = {
    408: FailureReason.UPSTREAM_ERROR,
    409: FailureReason.UPSTREAM_ERROR,
    429: FailureReason.RATE_LIMITED,
}


class Answer(msgspec.Struct, frozen=True):
    """An upstream's whole answer: status, body, and the headers that matter here."""

    status: int
    body: bytes
    request_id: str = ""
    retry_after: str = ""
    retry_after_ms: str = ""


class Attempt(msgspec.Struct, frozen=True):
    """One attempt at one line. `custom_id` is the JSON string as it stands in the input file."""

    batch_id: str
    line: int
    number: int
    endpoint: str
    custom_id: bytes = render.NO_CUSTOM_ID
    model: str = ""


class Judge:
    """Turns the calls to one upstream into outcomes. `random` gives numbers in [0, 1)."""

    def __init__(self, policy: RetryPolicy, random: Callable[[], float]) -> None:
        self._policy = policy
        self._random = random

    def answered(self, attempt: Attempt, answer: Answer, now_ms: int, latency_ms: int) -> Outcome:
        """The outcome of a call that was answered."""
        reason = reason_for(answer.status)
        if reason is not None:
            return self._refused(attempt, answer, reason, now_ms, latency_ms)
        read = read_answer(answer.body, attempt.endpoint)
        if read is None:
            invalid = FailureReason.INVALID_RESPONSE
            return self._refused(attempt, answer, invalid, now_ms, latency_ms)
        return Outcome(
            line=attempt.line,
            attempt=attempt.number,
            kind=OutcomeKind.COMPLETED,
            rendered=_rendered(attempt, answer, read.body),
            status_code=answer.status,
            model=attempt.model,
            usage=read.usage,
            usage_flag=read.flag,
            latency_ms=latency_ms,
        )

    def unanswered(
        self, attempt: Attempt, reason: FailureReason, now_ms: int, latency_ms: int
    ) -> Outcome:
        """The outcome of a call that brought no usable answer."""
        if self._another(attempt, reason):
            return self._retry(attempt, reason, 0, None, now_ms, latency_ms)
        code = reason.line_code or LineCode.UPSTREAM_INVALID_RESPONSE
        return _failed(attempt, reason, 0, _without_answer(attempt, code), latency_ms)

    def _refused(
        self,
        attempt: Attempt,
        answer: Answer,
        reason: FailureReason,
        now_ms: int,
        latency_ms: int,
    ) -> Outcome:
        status = answer.status
        if self._another(attempt, reason):
            asked = asked_pause_s(answer.retry_after_ms, answer.retry_after, now_ms)
            return self._retry(attempt, reason, status, asked, now_ms, latency_ms)
        return _failed(attempt, reason, status, _last_word(attempt, answer, reason), latency_ms)

    def _another(self, attempt: Attempt, reason: FailureReason) -> bool:
        return reason.is_retriable and attempt.number < self._policy.max_attempts

    def _retry(
        self,
        attempt: Attempt,
        reason: FailureReason,
        status: int,
        asked_s: float | None,
        now_ms: int,
        latency_ms: int,
    ) -> Outcome:
        pause = pause_s(self._policy, attempt.number, asked_s, self._random)
        return Outcome(
            line=attempt.line,
            attempt=attempt.number,
            kind=OutcomeKind.RETRY,
            retry_at_ms=now_ms + round(pause * 1000),
            reason=reason.value,
            status_code=status,
            model=attempt.model,
            latency_ms=latency_ms,
        )


def reason_for(status: int) -> FailureReason | None:
    """Why an answer with this status is no success; None if it may be one."""
    if 200 <= status < 300:
        return None
    if 400 <= status < 500:
        return _RETRIED_4XX.get(status, FailureReason.UPSTREAM_REJECTED)
    if 500 <= status < 600:
        return FailureReason.UPSTREAM_ERROR
    # Redirects are not followed: they would carry prompts and a key to another server.
    return FailureReason.INVALID_RESPONSE


def _last_word(attempt: Attempt, answer: Answer, reason: FailureReason) -> bytes:
    """The error file's line: the upstream's answer where it can stand there."""
    if reason.line_code is not None:
        return _without_answer(attempt, reason.line_code)
    body = read_object(answer.body)
    if body is None and reason is FailureReason.UPSTREAM_REJECTED:
        body = render.bodiless(answer.status)
    if body is None:
        return _without_answer(attempt, LineCode.UPSTREAM_INVALID_RESPONSE)
    return _rendered(attempt, answer, body)


def _rendered(attempt: Attempt, answer: Answer, body: bytes) -> bytes:
    return render.answered(
        attempt.batch_id, attempt.line, attempt.custom_id, answer.status, answer.request_id, body
    )


def _without_answer(attempt: Attempt, code: LineCode) -> bytes:
    return render.unanswered(attempt.batch_id, attempt.line, attempt.custom_id, code)


def _failed(
    attempt: Attempt, reason: FailureReason, status: int, rendered: bytes, latency_ms: int
) -> Outcome:
    return Outcome(
        line=attempt.line,
        attempt=attempt.number,
        kind=OutcomeKind.FAILED,
        rendered=rendered,
        reason=reason.value,
        status_code=status,
        model=attempt.model,
        latency_ms=latency_ms,
    )
