"""Estimates of what an input file's lines will use."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.cli.demo import write_sample
from streams.domain.billing.prices.input_tokens import (
    Asked,
    Estimator,
    Tally,
    TooMuchError,
    limit_and_model,
)
from streams.simulator.call import Endpoint, parse_call

CHAT = "/v1/chat/completions"


def _line(body: dict[str, Any], url: str = CHAT) -> bytes:
    return json.dumps({"custom_id": "1", "method": "POST", "url": url, "body": body}).encode()


def _chat(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def _estimator(data: bytes, url: str = CHAT, **limits: int) -> Estimator:
    estimator = Estimator(url, limits.get("lines", 50_000), limits.get("line_bytes", 1 << 20))
    estimator.feed(data)
    estimator.finish()
    return estimator


def _tally(body: dict[str, Any], url: str = CHAT) -> Tally:
    (tally,) = _estimator(_line(body, url), url).tallies.values()
    return tally


_PARTS = [{"type": "text", "text": "x" * 9}, {"type": "image_url", "image_url": {"url": "y" * 99}}]


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (CHAT, _chat("a question of some length, with “quotes” and 🚀")),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": _PARTS}]}),
        (
            CHAT,
            {"model": "m", "messages": [{"role": "user"}, {"role": "x", "content": "abcdefgh"}]},
        ),
        ("/v1/completions", {"model": "m", "prompt": "once upon a time"}),
        (
            "/v1/completions",
            {"model": "m", "prompt": ["once upon", "a time, and", "so on"], "n": 2},
        ),
        ("/v1/embeddings", {"model": "m", "input": ["first text", "second, longer text"]}),
        ("/v1/embeddings", {"model": "m", "input": [1, 2, 3]}),
        ("/v1/embeddings", {"model": "m", "input": [[1, 2, 3], [4, 5]]}),
        ("/v1/responses", {"model": "m", "input": "tell me", "instructions": "be brief, please"}),
        ("/v1/responses", {"model": "m", "input": [{"role": "user", "content": "tell me more"}]}),
    ],
)
def test_input_tokens_are_what_the_simulator_counts(url: str, body: dict[str, Any]) -> None:
    call = parse_call(Endpoint(url), json.dumps(body).encode())
    call.count_tokens(1, 1)
    assert _tally(body, url).input_tokens == call.prompt_tokens


def test_the_sample_is_estimated_within_a_tenth_of_what_the_simulator_counts(tmp_path: Any) -> None:
    write_sample(tmp_path / "sample.jsonl", 500)
    data = (tmp_path / "sample.jsonl").read_bytes()
    counted = 0
    for line in data.splitlines():
        call = parse_call(Endpoint(CHAT), json.dumps(json.loads(line)["body"]).encode())
        call.count_tokens(1, 1)
        counted += call.prompt_tokens
    (tally,) = _estimator(data).tallies.values()
    assert abs(tally.input_tokens - counted) <= counted / 10


@pytest.mark.parametrize(
    ("more", "limited", "unlimited"),
    [
        ({}, 0, 1),
        ({"max_tokens": 7}, 7, 0),
        ({"max_tokens": 7, "n": 3}, 21, 0),
        ({"max_completion_tokens": 5, "max_tokens": 9}, 5, 0),
        ({"n": 4}, 0, 4),
        ({"max_tokens": None, "n": None}, 0, 1),
        ({"max_tokens": 10**15}, 10_000_000, 0),
        ({"max_tokens": -3}, 0, 1),
        ({"max_tokens": "many"}, 0, 1),
    ],
)
def test_output_is_what_a_line_allows_and_assumed_where_it_allows_anything(
    more: dict[str, Any], limited: int, unlimited: int
) -> None:
    tally = _tally(_chat(**more))
    assert (tally.limited_tokens, tally.unlimited) == (limited, unlimited)


def test_embeddings_have_no_output() -> None:
    tally = _tally({"model": "m", "input": "text"}, "/v1/embeddings")
    assert (tally.limited_tokens, tally.unlimited) == (0, 0)


@pytest.mark.parametrize(
    "bad",
    [
        b"not json",
        b"[]",
        b"\xff",
        _line(_chat(), "/v1/embeddings"),
        _line({"messages": []}),
        _line({"model": "m"}),
        _line({"model": "m" * 300, "messages": []}),
        _line({"model": "m", "prompt_slug": "no slug!"}),
        b'{"url": "' + CHAT.encode() + b'", "body": ' + b"[" * 5000 + b"}",
        b"x" * 5000,
    ],
)
def test_lines_that_can_not_be_read_are_counted_and_the_others_estimated(bad: bytes) -> None:
    data = b"\n".join([_line(_chat()), bad, b"", _line(_chat()), b"", b""])
    estimator = _estimator(data, line_bytes=4000)
    assert (estimator.lines, estimator.unreadable) == (3, 1)
    assert estimator.tallies[Asked("m")].lines == 2


def test_a_list_that_is_no_list_of_texts_is_not_counted_in_part() -> None:
    estimator = _estimator(
        _line({"model": "m", "prompt": ["a", 1]}, "/v1/completions"), "/v1/completions"
    )
    assert (estimator.tallies, estimator.unreadable) == ({}, 1)


def test_lines_of_a_stored_prompt_are_told_apart_by_version_and_by_the_model_they_name() -> None:
    texts = {"variables": {"a": "12345678", "b": None}}
    bodies: list[dict[str, Any]] = [
        {"prompt_slug": "s", **texts},
        {"prompt_slug": "s", **texts, "max_tokens": 5},
        {"prompt_slug": "s", "prompt_version": 2, "model": "m"},
        _chat(),
    ]
    tallies = _estimator(b"\n".join([_line(body) for body in bodies])).tallies
    assert set(tallies) == {Asked(None, "s"), Asked("m", "s", 2), Asked("m")}
    assert tallies[Asked(None, "s")] == Tally(
        lines=2, input_characters=16, limited_tokens=5, unlimited=1, unlimited_lines=1
    )


def test_a_prompt_form_of_the_responses_endpoint_is_one_too() -> None:
    form = {"prompt": {"id": "s", "version": "3", "variables": {"a": "xy"}}}
    estimator = _estimator(_line(form, "/v1/responses"), "/v1/responses")
    assert set(estimator.tallies) == {Asked(None, "s", 3)}


@given(st.lists(st.integers(1, 400), max_size=30), st.integers(1, 5))
def test_however_the_file_is_cut_the_estimate_is_the_same(cuts: list[int], count: int) -> None:
    data = b"\xef\xbb\xbf" + b"\r\n".join(_line(_chat("x" * 40 * n)) for n in range(1, count + 1))
    whole = _estimator(data)
    pieces = Estimator(CHAT, 50_000, 1 << 20)
    at = 3
    pieces.feed(data[:at])
    for cut in cuts:
        pieces.feed(data[at : at + cut])
        at += cut
    pieces.feed(data[at:])
    assert pieces.finish() == whole.tallies
    assert (pieces.lines, pieces.unreadable) == (count, 0)


def test_more_lines_than_a_batch_may_have_end_the_reading() -> None:
    with pytest.raises(TooMuchError, match="at most 3 requests"):
        _estimator(b"\n".join([_line(_chat())] * 4), lines=3)
    with pytest.raises(TooMuchError, match="at most 3 requests"):
        _estimator(b"\n" * 2000, lines=3)


def test_more_models_than_a_batch_may_name_end_the_reading() -> None:
    lines = [_line({**_chat(), "model": f"m{n}"}) for n in range(1001)]
    with pytest.raises(TooMuchError, match="1000 different models"):
        _estimator(b"\n".join(lines))


def test_a_message_of_very_many_parts_is_taken_for_its_bytes() -> None:
    body = _chat()
    body["messages"] = [{"role": "user", "content": [{}] * 100_001}]
    assert _tally(body).input_tokens > 50_000


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (b"{}", (None, None)),
        (b'{"model": "m", "max_tokens": 9}', (9, "m")),
        (b'{"model": 1}', (None, None)),
        (b"[", (None, None)),
    ],
)
def test_what_a_stored_prompts_settings_say(config: bytes, found: tuple[Any, Any]) -> None:
    assert limit_and_model(config) == found
