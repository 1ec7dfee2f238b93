"""Reading an upstream's answer: its syntax and its usage, however hostile it is."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.records import Usage
from streams.domain.outcome.judge import Answer, Attempt, Judge
from streams.domain.outcome.retry import RetryPolicy
from streams.domain.outcome.usage import ABSURD, MAX_TOKENS, MISSING, read_answer, read_object

CHAT, EMBEDDINGS, RESPONSES = "/v1/chat/completions", "/v1/embeddings", "/v1/responses"


def usage_of(usage: object, endpoint: str = CHAT) -> tuple[Usage, str]:
    read = read_answer(json.dumps({"id": "x", "usage": usage}).encode(), endpoint)
    assert read is not None
    return read.usage, read.flag


def test_chat_completions_usage_is_read_with_its_details() -> None:
    found = {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "total_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    expected = Usage(input_tokens=10, cached_tokens=4, output_tokens=20, reasoning_tokens=5)
    assert usage_of(found) == (expected, "")


def test_responses_usage_is_read_with_its_details() -> None:
    found = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 5},
    }
    expected = Usage(input_tokens=10, cached_tokens=4, output_tokens=20, reasoning_tokens=5)
    assert usage_of(found, RESPONSES) == (expected, "")


def test_embeddings_have_no_output_tokens() -> None:
    found = {"prompt_tokens": 10, "total_tokens": 10}
    assert usage_of(found, EMBEDDINGS) == (Usage(input_tokens=10), "")
    assert usage_of(found, CHAT) == (Usage(input_tokens=10), MISSING)


@pytest.mark.parametrize("usage", [None, {}, {"total_tokens": 5}])
def test_no_usage_is_flagged_as_missing(usage: object) -> None:
    assert usage_of(usage) == (Usage(), MISSING)


def test_null_details_are_none() -> None:
    found = {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": None}
    assert usage_of(found) == (Usage(input_tokens=1, output_tokens=2), "")


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        (-1, 0),
        (MAX_TOKENS + 1, MAX_TOKENS),
        (2**70, MAX_TOKENS),
        (1.5, 1),
        ("12", 0),
        (True, 0),
        ([], 0),
        ({}, 0),
    ],
)
def test_absurd_figures_are_capped_and_flagged(sent: object, taken: int) -> None:
    found = {"prompt_tokens": sent, "completion_tokens": 2}
    assert usage_of(found) == (Usage(input_tokens=taken, output_tokens=2), ABSURD)


@pytest.mark.parametrize("usage", [5, "lots", [], True])
def test_usage_that_is_no_object_is_absurd(usage: object) -> None:
    assert usage_of(usage) == (Usage(), ABSURD)


def test_absurd_details_are_capped_beside_good_ones() -> None:
    found = {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 1.5},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    expected = Usage(input_tokens=3, cached_tokens=1, output_tokens=2, reasoning_tokens=2)
    assert usage_of(found) == (expected, ABSURD)


def test_a_number_beyond_any_range_is_absurd_and_not_an_invalid_answer() -> None:
    read = read_answer(b'{"usage":{"prompt_tokens":1e999}}', CHAT)
    assert read is not None
    assert (read.usage, read.flag) == (Usage(), ABSURD)


def test_a_part_is_never_larger_than_its_whole() -> None:
    found = {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 9},
        "completion_tokens_details": {"reasoning_tokens": 9},
    }
    expected = Usage(input_tokens=3, cached_tokens=3, output_tokens=2, reasoning_tokens=2)
    assert usage_of(found) == (expected, ABSURD)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[1]",
        b'"x"',
        b"{",
        b'{"a":1',
        b'{"a":1}}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":"\x01"}',
        b'{"a":"x\ny"}',
        b'{"a":"\xff"}',
        b'{"\xff":1}',
        b'{"a":"\\ud800"}',
        b'{"a":01}',
        b"{'a':1}",
        b"\xef\xbb\xbf{}",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"usage":' + b"[" * 100_000,
        b"<html>no</html>",
        b'data: {"a":1}\n\n',
        '{"a":1}'.encode("utf-16"),
    ],
)
def test_what_is_not_one_json_object_in_utf8_is_no_answer(body: bytes) -> None:
    assert read_answer(body, CHAT) is None
    assert read_object(body) is None


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
_figures = (
    st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
    | st.none()
)
_details = st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens"]), _figures) | _json
_usages = (
    st.fixed_dictionaries(
        {},
        optional={
            "prompt_tokens": _figures,
            "completion_tokens": _figures,
            "input_tokens": _figures,
            "output_tokens": _figures,
            "prompt_tokens_details": _details,
            "completion_tokens_details": _details,
        },
    )
    | _json
)


@given(usage=_usages, other=_json, indent=st.sampled_from([None, 2]))
@example(usage={"prompt_tokens": 1e308}, other=0, indent=None)
def test_any_usage_gives_whole_numbers_within_bounds(
    usage: Any, other: Any, indent: int | None
) -> None:
    body = json.dumps({"other": other, "usage": usage}, indent=indent, ensure_ascii=False)
    try:
        raw = body.encode()
    except UnicodeEncodeError:
        return
    read = read_answer(raw, CHAT)
    assert read is not None
    assert json.loads(read.body) == {"other": other, "usage": usage}
    found = read.usage
    assert 0 <= found.cached_tokens <= found.input_tokens <= MAX_TOKENS
    assert 0 <= found.reasoning_tokens <= found.output_tokens <= MAX_TOKENS
    assert read.flag in ("", MISSING, ABSURD)


def _strictly(data: bytes) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(data.decode(), parse_constant=refuse)


_almost_json = st.text(alphabet='{}[]":,\\u0dD8ef\n\r\t 1eE.-+ntrualsé', max_size=40).map(
    str.encode
)


@given(body=st.binary(max_size=60) | _almost_json | _json.map(json.dumps).map(str.encode))
def test_whatever_comes_back_the_line_is_one_json_object_on_one_line(body: bytes) -> None:
    judge = Judge(RetryPolicy(max_attempts=1), lambda: 0.0)
    attempt = Attempt("b", 0, 1, CHAT, b'"c"', "m")
    for status in (200, 400, 500):
        outcome = judge.answered(attempt, Answer(status, body), 0, 0)
        assert outcome.rendered is not None
        assert not {b"\n", b"\r"} & {
            outcome.rendered[i : i + 1] for i in range(len(outcome.rendered))
        }
        line = _strictly(outcome.rendered)
        assert line["custom_id"] == "c"
        if line["response"] is not None and status != 400:
            assert line["response"]["body"] == _strictly(body)


def test_a_long_answer_with_newlines_keeps_every_float_as_it_was_written() -> None:
    body = b'{"e":\n[' + b",".join(b"%.17g" % math.sin(i) for i in range(1000)) + b"]}"
    read = read_answer(body, EMBEDDINGS)
    assert read is not None
    assert read.body == body.replace(b"\n", b"")
