"""Whole events out of whatever chunks a stream comes in, and the usage that it tells."""

from __future__ import annotations

import itertools
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import Usage
from streams.domain.outcome.estimated import ESTIMATED
from streams.domain.outcome.long_event import MAX_NAMES, MAX_USAGE_BYTES, LongEvent
from streams.domain.outcome.streamed import Used
from streams.domain.outcome.usage import ABSURD, MISSING
from streams.realtime_worker.events import MAX_EVENT_BYTES, Events

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
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


def test_an_end_that_is_cut_between_any_two_bytes_is_found() -> None:
    for end in (b"\n\n", b"\r\n\r\n", b"\r\r"):
        events = Events()
        passed = [events.feed(bytes([byte])) for byte in b"data: a" + end + b"data: b"]
        assert [part for part in passed if part] == [b"data: a" + end]
        assert events.rest() == b"data: b"


def _used_of(*chunks: bytes, endpoint: str = CHAT) -> Used:
    events = Events()
    for chunk in chunks:
        events.feed(chunk)
    return events.used(b"{}", endpoint)


def _usage_of(*chunks: bytes, endpoint: str = CHAT) -> Usage:
    return _used_of(*chunks, endpoint=endpoint).usage


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
        b'data: {"response": {"usage": {}}}\n\n',
        b": a comment\n\n",
    ],
)
def test_a_stream_that_tells_nothing_usable_is_estimated(event: bytes) -> None:
    assert _used_of(event) == Used(Usage(input_tokens=1), ESTIMATED)


def test_nothing_is_estimated_before_the_first_event_or_after_an_error() -> None:
    assert _used_of(b": half an ev") == Used()
    assert _used_of(_DELTA, b'data: {"error": {"message": "no"}}\n\n') == Used()
    failed = b'event: response.failed\ndata: {"type":"response.failed","response":{}}\n\n'
    assert _used_of(_DELTA, failed, endpoint=RESPONSES) == Used()


def test_a_tool_with_a_parameter_called_usage_hides_nothing_that_was_told() -> None:
    told = b'data: {"usage":{"prompt_tokens":6,"completion_tokens":13}}\n\n'
    tool = b'data: {"choices":[],"tools":[{"usage":{}}],"response":{"tools":[{"usage":{}}]}}\n\n'
    for chunks in ((told, tool), (told + tool,), (told + tool[:30], tool[30:])):
        assert _used_of(*chunks) == Used(Usage(input_tokens=6, output_tokens=13), "")


def test_what_an_upstream_tells_is_believed_rather_than_any_estimate() -> None:
    nothing = b'data: {"usage":{"prompt_tokens":0,"completion_tokens":0}}\n\n'
    assert _used_of(_DELTA, nothing) == Used(Usage(), "")
    half = b'data: {"usage":{"prompt_tokens":3}}\n\n'
    assert _used_of(_DELTA, half) == Used(Usage(input_tokens=3), MISSING)
    odd = b'data: {"usage": {"prompt_tokens": "many"}}\n\n'
    assert _used_of(_DELTA, odd) == Used(Usage(), ABSURD)


def _chat(**delta: object) -> bytes:
    return b"data: " + msgspec.json.encode({"choices": [{"delta": delta}]}) + b"\n\n"


def _response(kind: str, delta: object) -> bytes:
    data = msgspec.json.encode({"type": f"response.{kind}.delta", "delta": delta})
    return b"event: response." + kind.encode() + b".delta\ndata: " + data + b"\n\n"


_DELTA = _chat(content="four")


@pytest.mark.parametrize(
    ("events", "endpoint", "tokens"),
    [
        ([_chat(role="assistant", content=""), *[_chat(content="a")] * 3], CHAT, 3),
        ([_chat(content="x" * 40)], CHAT, 10),
        ([_chat(reasoning_content="x" * 20), _chat(reasoning="x" * 20)], CHAT, 10),
        ([_chat(refusal="x" * 8)], CHAT, 2),
        ([_chat(tool_calls=[{"function": {"name": "abcd", "arguments": "x" * 36}}])], CHAT, 10),
        ([b'data: {"choices":[{"text":"abcdefgh"}]}\r\n\r\n'], "/v1/completions", 2),
        ([_response("output_text", "abcdefgh")], RESPONSES, 2),
        ([_response("function_call_arguments", "{}")], RESPONSES, 1),
        ([_response("audio", "x" * 4000), _response("reasoning_summary_text", "x")], RESPONSES, 0),
        ([_response("odd", {"text": "x"}), b"data: {\n\n", b"data: [DONE]\n\n"], RESPONSES, 1),
        ([b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n', _chat(content=[])], CHAT, 2),
        ([b'data: {"choices":null}\n\n'], CHAT, 1),
    ],
)
def test_output_is_estimated_by_the_text_that_was_passed_on(
    events: list[bytes], endpoint: str, tokens: int
) -> None:
    for chunks in (events, [b"".join(events)]):
        found = _used_of(*chunks, endpoint=endpoint)
        assert found == Used(Usage(input_tokens=1, output_tokens=tokens), ESTIMATED)


@pytest.mark.parametrize(
    ("body", "endpoint"),
    [
        (b'{"messages":[{"role":"user","content":"12345678"}]}', CHAT),
        (b'{"prompt":"12345678"}', "/v1/completions"),
        (b'{"input":"1234","instructions":"5678"}', RESPONSES),
        (b'{"input":[{"role":"user","content":[{"text":"12345678"}]}]}', RESPONSES),
    ],
)
def test_input_is_estimated_by_the_prompt(body: bytes, endpoint: str) -> None:
    events = Events()
    events.feed(b"data: {}\n\n")
    assert events.used(body, endpoint) == Used(Usage(input_tokens=2), ESTIMATED)


#: As a server may repeat them: each of these has the name in a place that doesn't count.
_TRAPS = (
    {"tools": [{"parameters": {"usage": {"input_tokens": 7, "output_tokens": 7}}}]},
    {"instructions": '"usage": {"input_tokens": 7} \\" \\\\ é \n } ] "response":{ \\'},
    {"x": {"response": {"usage": {"input_tokens": 7, "output_tokens": 7}}}},
    {'a\\"usage': {"input_tokens": 7}, 'b"usage': {"input_tokens": 7, "output_tokens": 7}},
    {"metadata": {"usage": "text", "response": "usage"}},
    {"y": {"response": {}, "usage": {"input_tokens": 7, "output_tokens": 7}}},
)


def _long_end(trap: dict[str, object], *, usage_last: bool) -> bytes:
    told = {"usage": {"input_tokens": 3, "output_tokens": 2, "x": {"y": ["}"]}}}
    response = {**trap, **told} if usage_last else {**told, **trap}
    event = {"type": "response.completed", "response": response, "sequence_number": 4, **trap}
    return (
        b"event: response.completed\ndata: "
        + json.dumps(event, indent=1).replace("\n", "\ndata: ").encode()
        + b"\n\n"
    )


@pytest.mark.parametrize("usage_last", [True, False])
@pytest.mark.parametrize("trap", _TRAPS)
def test_the_usage_of_an_event_too_long_to_be_held_is_read_however_it_is_cut(
    trap: dict[str, object], usage_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.realtime_worker.events.MAX_EVENT_BYTES", 100)
    data = _DELTA + _long_end(trap, usage_last=usage_last) + b"data: [DONE]\n\n"
    for cut in range(1, len(data)):
        for chunks in ([data[:cut], data[cut:]], _pieces(data, cut)):
            events = Events()
            passed = [events.feed(chunk) for chunk in chunks]
            assert b"".join(passed) + events.rest() == data
            assert events.used(b"{}", RESPONSES) == _TOLD


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


_TOLD = Used(Usage(input_tokens=3, output_tokens=2), "")


def test_an_event_of_megabytes_is_passed_on_in_pieces_and_its_usage_is_read() -> None:
    text = 'a "quoted" line\n' * 200_000
    for usage_last in (True, False):
        data = _long_end({"instructions": text}, usage_last=usage_last)
        events = Events()
        passed = [events.feed(chunk) for chunk in _pieces(data, 65_536)]
        assert max(map(len, passed)) < MAX_EVENT_BYTES + 2 * 65_536
        assert b"".join(passed) == data
        assert events.used(b"{}", RESPONSES) == _TOLD


@pytest.mark.parametrize(
    "usage",
    [
        b'{"input_tokens":3,"x":"' + b"x" * MAX_USAGE_BYTES + b'"}',
        b'{"input_tokens":3',
        b'{"input_tokens":\xff}',
        b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"input_tokens":3},' + b'"usage":{},' * MAX_NAMES + b'"x":{}',
    ],
)
def test_usage_that_can_not_be_read_is_estimated_and_not_free(usage: bytes) -> None:
    text = b'"' + b"x" * MAX_EVENT_BYTES + b'"'
    end = b'data: {"response":{"text":' + text + b',"usage":' + usage + b"}}\n\n"
    found = _used_of(_response("output_text", "abcd"), *_pieces(end, 65_536), endpoint=RESPONSES)
    assert found == Used(Usage(input_tokens=1, output_tokens=1), ESTIMATED)


def test_the_end_of_a_long_event_is_passed_on_in_one() -> None:
    # Whoever takes out the event that follows looks for where it begins.
    events = Events()
    assert events.feed(b"x" * MAX_EVENT_BYTES + b"y\r\n\r")[-1:] == b"y"
    assert events.feed(b"\ndata: 1\n\n") == b"\r\n\r\ndata: 1\n\n"


def test_usage_that_comes_after_a_long_event_is_read_and_the_last_one_counts() -> None:
    long = _long_end({"x": "x" * MAX_EVENT_BYTES}, usage_last=True)
    later = b'data: {"response":{"usage":{"input_tokens":9,"output_tokens":9}}}\n\n'
    nine = Usage(input_tokens=9, output_tokens=9)
    assert _usage_of(*_pieces(long + later, 65_536), endpoint=RESPONSES) == nine
    assert _used_of(*_pieces(later + long, 65_536), endpoint=RESPONSES) == _TOLD


_JSON = st.recursive(
    st.sampled_from(["usage", "response", 'x"', "\\", 'é\\"usage":{', 1, None]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "response", 'a"', "\\"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["a", "usage", "response", "b"]), _JSON, max_size=4),
    st.sampled_from([None, 1]),
    st.lists(st.integers(0, 500), max_size=8),
)
def test_pieces_tell_what_the_whole_event_tells(
    event: dict[str, object], indent: int | None, places: list[int]
) -> None:
    data = json.dumps(event, indent=indent, ensure_ascii=False).encode()
    scan = LongEvent()
    for piece in _cut(data, places):
        scan.feed(piece)
    found = scan.end()
    response = event.get("response")
    inside = response.get("usage") if isinstance(response, dict) else None
    candidates = [value for value in (event.get("usage"), inside) if isinstance(value, dict)]
    if found is None:
        assert candidates == []
    else:
        assert json.loads(found) in candidates
