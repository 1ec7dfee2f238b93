"""Whole events out of whatever chunks a stream comes in, and the usage that it tells."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import Usage
from streams.realtime_worker.events import MAX_EVENT_BYTES, Events

CHAT = "/v1/chat/completions"
_ENDS = st.sampled_from(["\n\n", "\r\n\r\n", "\r\r"])
_EVENTS = st.lists(
    st.tuples(st.text("abc: é\n", max_size=8).filter(lambda t: "\n\n" not in t), _ENDS).map(
        lambda made: f"data: {made[0].strip()}{made[1]}".encode()
    ),
    max_size=8,
)


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(_EVENTS, st.binary(max_size=6), st.lists(st.integers(0, 500), max_size=8))
def test_no_byte_is_lost_or_moved_however_it_is_cut(
    made: list[bytes], rest: bytes, places: list[int]
) -> None:
    data = b"".join(made) + rest
    events = Events()
    passed = [events.feed(chunk) for chunk in _cut(data, places)]
    assert b"".join(passed) + events.rest() == data


@given(_EVENTS, st.lists(st.integers(0, 500), max_size=8))
def test_only_whole_events_are_passed_on(made: list[bytes], places: list[int]) -> None:
    events = Events()
    passed = [events.feed(chunk) for chunk in _cut(b"".join(made), places)]
    assert all(part.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")) for part in passed if part)
    assert events.rest() == b""


def test_an_event_without_end_is_passed_on_in_pieces() -> None:
    events = Events()
    assert events.feed(b"x" * MAX_EVENT_BYTES) == b""
    assert len(events.feed(b"y")) == MAX_EVENT_BYTES + 1


def _usage_of(*chunks: bytes, endpoint: str = CHAT) -> Usage:
    events = Events()
    for chunk in chunks:
        events.feed(chunk)
    return events.used(endpoint).usage


def test_the_last_usage_counts() -> None:
    first = b'data: {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}\n\n'
    last = b'data: {"usage":{"prompt_tokens":3,"completion_tokens":2}}\r\n\r\ndata: [DONE]\r\n\r\n'
    assert _usage_of(first, last) == Usage(input_tokens=3, output_tokens=2)
    assert _usage_of(first + last) == Usage(input_tokens=3, output_tokens=2)
    assert _usage_of(*(bytes([byte]) for byte in last)) == Usage(input_tokens=3, output_tokens=2)


def test_a_response_tells_it_inside() -> None:
    event = (
        b"event: response.completed\n"
        b'data: {"type":"response.completed","response":{"usage":{"input_tokens":3,'
        b'"output_tokens":2,"output_tokens_details":{"reasoning_tokens":1}}}}\n\n'
    )
    told = _usage_of(event, endpoint="/v1/responses")
    assert told == Usage(input_tokens=3, output_tokens=2, reasoning_tokens=1)


@pytest.mark.parametrize(
    "event",
    [
        b"data: [DONE]\n\n",
        b'data: {"usage": null}\n\n',
        b'data: {"usage": {\n\n',
        b'data: {"usage": {"prompt_tokens": "many"}}\n\n',
        b'data: {"response": {"usage": {}}}\n\n',
        b": a comment\n\n",
    ],
)
def test_a_stream_that_tells_nothing_usable_counts_as_nothing(event: bytes) -> None:
    assert _usage_of(event) == Usage()
