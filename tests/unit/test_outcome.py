"""What a call to an upstream means for its line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import LINE_MESSAGES, LineCode
from schemas.records import Outcome, OutcomeKind
from streams.domain.failures import FailureReason
from streams.domain.outcome.judge import Answer, Attempt, Judge, reason_for
from streams.domain.outcome.retry import MAX_RETRY_AFTER_S, RetryPolicy, asked_pause_s, pause_s

NOW = 1_700_000_000_000
POLICY = RetryPolicy(max_attempts=3, first_s=1.0, max_s=10.0)
CHAT = "/v1/chat/completions"
ERROR = b'{"error":{"message":"no","type":"t","param":null,"code":null}}'


def attempt(number: int = 1) -> Attempt:
    return Attempt("batch_1", 7, number, CHAT, b'"r-\\u00e9"', "m")


def judge(answer: Answer, number: int = 1) -> Outcome:
    return Judge(POLICY, lambda: 0.5).answered(attempt(number), answer, NOW, 12)


def fail(reason: FailureReason, number: int = 1) -> Outcome:
    return Judge(POLICY, lambda: 0.5).unanswered(attempt(number), reason, NOW, 12)


def rendered(outcome: Outcome) -> dict[str, object]:
    assert outcome.rendered is not None
    assert b"\n" not in outcome.rendered
    found = json.loads(outcome.rendered)
    assert list(found) == ["id", "custom_id", "response", "error"]
    return found  # type: ignore[no-any-return]


def test_a_good_answer_completes_the_line_with_the_upstreams_own_body() -> None:
    body = b'{"n":1.10,"usage":{"prompt_tokens":3,"completion_tokens":4}}'
    outcome = judge(Answer(200, body, "req_up"))
    assert outcome.kind is OutcomeKind.COMPLETED
    assert (outcome.line, outcome.attempt, outcome.model) == (7, 1, "m")
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (3, 4)
    assert (outcome.reason, outcome.status_code, outcome.latency_ms) == ("", 200, 12)
    assert outcome.rendered is not None
    assert body in outcome.rendered
    assert rendered(outcome)["custom_id"] == "r-é"
    assert rendered(outcome)["error"] is None
    assert rendered(outcome)["response"] == {
        "status_code": 200,
        "request_id": "req_up",
        "body": json.loads(body),
    }


def test_the_lines_id_is_the_same_at_every_attempt() -> None:
    first, second = judge(Answer(200, b"{}"), 1), judge(Answer(200, b"{}"), 2)
    assert rendered(first)["id"] == rendered(second)["id"]
    assert str(rendered(first)["id"]).startswith("batch_req_")


@pytest.mark.parametrize("sent", ["", 'x"y', "a b", "é", "x" * 200, "\n"])
def test_a_request_id_that_could_break_the_line_is_replaced(sent: str) -> None:
    response = rendered(judge(Answer(200, b"{}", sent)))["response"]
    assert isinstance(response, dict)
    assert str(response["request_id"]).startswith("req_")


def test_a_body_on_several_lines_is_put_on_one_and_keeps_its_values() -> None:
    body = b'{\n  "text": "a\\nb  c",\r\n  "n": 1.10\n}\n'
    outcome = judge(Answer(200, body))
    assert outcome.rendered is not None
    assert b'{"text":"a\\nb  c","n":1.10}' in outcome.rendered


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (200, None),
        (201, None),
        (299, None),
        (400, FailureReason.UPSTREAM_REJECTED),
        (401, FailureReason.UPSTREAM_REJECTED),
        (404, FailureReason.UPSTREAM_REJECTED),
        (422, FailureReason.UPSTREAM_REJECTED),
        (408, FailureReason.UPSTREAM_ERROR),
        (409, FailureReason.UPSTREAM_ERROR),
        (429, FailureReason.RATE_LIMITED),
        (500, FailureReason.UPSTREAM_ERROR),
        (503, FailureReason.UPSTREAM_ERROR),
        (599, FailureReason.UPSTREAM_ERROR),
        (302, FailureReason.INVALID_RESPONSE),
        (100, FailureReason.INVALID_RESPONSE),
        (600, FailureReason.INVALID_RESPONSE),
    ],
)
def test_the_status_decides(status: int, reason: FailureReason | None) -> None:
    assert reason_for(status) is reason


def test_a_refusal_is_final_at_the_first_attempt_and_keeps_the_answer() -> None:
    outcome = judge(Answer(400, ERROR, "req_up"))
    assert outcome.kind is OutcomeKind.FAILED
    assert outcome.reason == "upstream_rejected"
    assert outcome.usage_flag == ""
    assert rendered(outcome)["response"] == {
        "status_code": 400,
        "request_id": "req_up",
        "body": json.loads(ERROR),
    }


@pytest.mark.parametrize("body", [b"", b"<html>413</html>", b'"no"', b"\xff"])
def test_a_refusal_without_a_json_object_still_says_its_status(body: bytes) -> None:
    outcome = judge(Answer(413, body))
    response = rendered(outcome)["response"]
    assert isinstance(response, dict)
    assert response["status_code"] == 413
    assert "413" in response["body"]["error"]["message"]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_passing_failure_is_repeated_and_at_last_final_with_the_last_answer(status: int) -> None:
    for number in (1, 2):
        outcome = judge(Answer(status, ERROR), number)
        assert outcome.kind is OutcomeKind.RETRY
        assert outcome.rendered is None
        assert outcome.retry_at_ms > NOW
        assert outcome.status_code == status
    last = judge(Answer(status, ERROR), 3)
    assert last.kind is OutcomeKind.FAILED
    response = rendered(last)["response"]
    assert isinstance(response, dict)
    assert response["body"] == json.loads(ERROR)


def test_a_last_answer_that_is_not_json_becomes_an_error_of_ours() -> None:
    outcome = judge(Answer(502, b"<html>"), 3)
    assert rendered(outcome)["response"] is None
    assert rendered(outcome)["error"] == {
        "code": "upstream_invalid_response",
        "message": LINE_MESSAGES[LineCode.UPSTREAM_INVALID_RESPONSE],
    }


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (FailureReason.TIMEOUT, "request_timeout"),
        (FailureReason.UNREACHABLE, "upstream_unreachable"),
        (FailureReason.INVALID_RESPONSE, "upstream_invalid_response"),
    ],
)
def test_no_answer_is_repeated_and_at_last_an_error(reason: FailureReason, code: str) -> None:
    assert fail(reason).kind is OutcomeKind.RETRY
    last = fail(reason, 3)
    assert last.kind is OutcomeKind.FAILED
    assert last.reason == reason.value
    error = rendered(last)["error"]
    assert isinstance(error, dict)
    assert error["code"] == code


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (FailureReason.RESPONSE_TOO_LARGE, "response_too_large"),
        (FailureReason.INPUT_LOST, "input_lost"),
    ],
)
def test_what_another_attempt_can_not_change_is_final_at_once(
    reason: FailureReason, code: str
) -> None:
    outcome = fail(reason)
    assert outcome.kind is OutcomeKind.FAILED
    error = rendered(outcome)["error"]
    assert isinstance(error, dict)
    assert error["code"] == code


def test_a_line_tried_more_often_than_allowed_is_final() -> None:
    assert fail(FailureReason.TIMEOUT, 99).kind is OutcomeKind.FAILED


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "0"}, 0.0),
        ({"retry_after": "1.5"}, 1.5),
        ({"retry_after_ms": "1500", "retry_after": "7"}, 1.5),
        ({"retry_after_ms": "soon", "retry_after": "7"}, 7.0),
        ({"retry_after": "99999999"}, MAX_RETRY_AFTER_S),
        ({"retry_after": "1e300"}, MAX_RETRY_AFTER_S),
        ({"retry_after": "-3"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "inf"}, None),
        ({"retry_after": "later"}, None),
        ({"retry_after": ""}, None),
    ],
)
def test_retry_after_is_read_within_bounds(headers: dict[str, str], expected: float | None) -> None:
    found = asked_pause_s(headers.get("retry_after_ms", ""), headers.get("retry_after", ""), NOW)
    assert found == expected


def test_retry_after_may_be_a_date() -> None:
    soon = format_datetime(datetime.fromtimestamp(NOW / 1000 + 30, UTC), usegmt=True)
    past = format_datetime(datetime.fromtimestamp(NOW / 1000 - 30, UTC), usegmt=True)
    assert asked_pause_s("", soon, NOW) == 30.0
    assert asked_pause_s("", past, NOW) == 0.0


def test_an_upstream_that_asks_for_a_pause_gets_it_and_not_much_more() -> None:
    outcome = judge(Answer(429, b"", "", "30"))
    assert NOW + 30_000 <= outcome.retry_at_ms <= NOW + 33_000


@given(
    attempt=st.integers(min_value=-5, max_value=10**9),
    asked=st.none() | st.floats(min_value=0, max_value=MAX_RETRY_AFTER_S),
    chance=st.floats(min_value=0, max_value=1, exclude_max=True),
)
def test_a_pause_is_never_shorter_than_asked_nor_without_bound(
    attempt: int, asked: float | None, chance: float
) -> None:
    pause = pause_s(POLICY, attempt, asked, lambda: chance)
    if asked is None:
        assert POLICY.first_s / 2 <= pause <= POLICY.max_s
    else:
        assert asked <= pause <= asked + 5.0


def test_pauses_grow_until_their_bound() -> None:
    pauses = [pause_s(POLICY, n, None, lambda: 0.0) for n in (1, 2, 3, 4)]
    assert pauses == [0.5, 2.0, 5.0, 5.0]


@given(text=st.text(max_size=40), ms=st.text(max_size=20))
def test_no_header_breaks_the_judge(text: str, ms: str) -> None:
    outcome = judge(Answer(503, b"", text, text, ms))
    assert NOW <= outcome.retry_at_ms <= NOW + (MAX_RETRY_AFTER_S + 5) * 1000
