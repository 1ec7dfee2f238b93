"""Intake accepts exactly the good files, names what is wrong with the others, and never raises."""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import BatchError
from streams.domain.intake.intake import MAX_ERRORS, MAX_MODELS, Accepted, Intake, Refused, Rules
from streams.domain.intake.lines import ENDPOINTS
from streams.domain.plan import HEADER_BYTES, PlanRow, read_header, read_rows

_CHAT = "/v1/chat/completions"
_GONE = object()


def _line(n: int | str = 0, **changes: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    fields = {"custom_id": f"r{n}", "method": "POST", "url": _CHAT, "body": body} | changes
    return json.dumps({k: v for k, v in fields.items() if v is not _GONE}).encode()


def _body(**changes: Any) -> bytes:
    fields = {"model": "m", "messages": []} | changes
    return _line(body={k: v for k, v in fields.items() if v is not _GONE})


def _rules(**changes: Any) -> Rules:
    known = {"m", "other"}
    fields: dict[str, Any] = {"endpoint": _CHAT, "serves": known.__contains__}
    return Rules(**(fields | changes))


def _check(data: bytes, *, chunk: int = 1 << 20, **rules: Any) -> Accepted | Refused:
    intake = Intake(_rules(**rules))
    for start in range(0, len(data), chunk):
        intake.feed(data[start : start + chunk])
    return intake.finish()


def _errors(data: bytes, **rules: Any) -> list[tuple[str, int | None, str | None]]:
    verdict = _check(data, **rules)
    assert isinstance(verdict, Refused)
    return [(e.code, e.line, e.param) for e in verdict.errors]


def _only_error(data: bytes, **rules: Any) -> BatchError:
    verdict = _check(data, **rules)
    assert isinstance(verdict, Refused)
    assert len(verdict.errors) == 1
    return verdict.errors[0]


def _rows(verdict: Accepted | Refused) -> list[PlanRow]:
    assert isinstance(verdict, Accepted)
    assert read_header(verdict.plan) == verdict.total
    return read_rows(verdict.plan[HEADER_BYTES:])


def test_the_plan_says_where_each_line_lies() -> None:
    lines = [_line(1), _line(2, body={"model": "other", "messages": []}), _line(3)]
    data = b"\n".join(lines) + b"\n"
    verdict = _check(data)
    rows = _rows(verdict)
    assert [data[r.offset : r.offset + r.length] for r in rows] == lines
    assert isinstance(verdict, Accepted)
    assert [verdict.models[r.model] for r in rows] == ["m", "other", "m"]
    assert verdict.estimated_input_tokens == -(-sum(map(len, lines)) // 4)


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("after", ["cut", "", "\n", "\r\n \r\n\t\n", " "])
def test_byte_order_mark_crlf_and_blank_lines_at_the_end_are_accepted(
    before: bytes, end: bytes, after: str
) -> None:
    lines = [_line(n) for n in range(3)]
    data = before + end.join(lines) + (b"" if after == "cut" else end + after.encode())
    for chunk in (1, 7, 1 << 20):
        rows = _rows(_check(data, chunk=chunk))
        assert [data[r.offset : r.offset + r.length] for r in rows] == lines


def test_a_blank_line_elsewhere_is_not_json() -> None:
    data = b"\n".join([_line(1), b"", b"  ", _line(2), b"", b""])
    assert _errors(data) == [("invalid_json_line", 2, None), ("invalid_json_line", 3, None)]


def test_blank_lines_without_end_are_counted_as_lines() -> None:
    codes = [code for code, _, _ in _errors(_line(1) + b"\n" * 3000, max_lines=2000)]
    assert codes[-1] == "too_many_requests_in_file"


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n\r\n", b"\xef\xbb\xbf", b"  \n\t"])
def test_a_file_without_lines_is_empty(data: bytes) -> None:
    error = _only_error(data)
    assert (error.code, error.line) == ("empty_file", None)


@pytest.mark.parametrize(
    "bad",
    [
        b"not json",
        b"{",
        b'{"custom_id": "a",}',
        _line() + b" trailing",
        _line().replace(b"[", b"[NaN,"),
        _line().replace(b"[", b"[-Infinity,"),
        _line().replace(b"hello", b"\xff\xfe"),
        _line().replace(b"hello", b"\xed\xa0\x80"),
        _line().replace(b"hello", b"\\ud800"),
        _line().replace(b"hello", b"\\udc00 and more"),
        _line().replace(b"r0", b"\\ud83d"),
        _line().replace(b"hello", b"a\x00b"),
        _line().replace(b"[", b"[" * 100_000),
        _line().replace(b"[", b"[" * 100_000).replace(b"]", b"]" * 100_000),
        _line(1).decode().encode("utf-16"),
        b"\x00\x01\x02\x03",
        b"[1, 2]",
        b"null",
        b"17",
    ],
)
def test_what_is_no_json_object_is_named_by_its_line(bad: bytes) -> None:
    data = b"\n".join([_line("a"), bad.replace(b"\n", b" "), _line("b")])
    assert _errors(data) == [("invalid_json_line", 2, None)]


def test_an_unparseable_line_has_the_message_of_the_contract() -> None:
    assert _only_error(b"not json").message == "This line is not parseable as valid JSON."


@pytest.mark.parametrize("name", ["custom_id", "method", "url", "body"])
@pytest.mark.parametrize("value", [_GONE, None])
def test_a_missing_field_is_named(name: str, value: Any) -> None:
    error = _only_error(_line(**{name: value}))
    assert error.code == "missing_required_parameter"
    assert (error.line, error.param) == (1, name)
    assert error.message == f"Missing required parameter: '{name}'."


def test_a_line_with_many_faults_has_one_entry() -> None:
    assert _errors(b"{}") == [("missing_required_parameter", 1, "custom_id")]


@pytest.mark.parametrize("url", ["/v1/embeddings", "/chat/completions", _CHAT + "/", ""])
def test_another_url_than_the_batchs_is_refused(url: str) -> None:
    error = _only_error(_line(url=url))
    assert (error.code, error.param) == ("invalid_url", "url")
    assert error.message == "The URL provided for this request does not match the batch endpoint."


def test_another_method_than_post_is_refused_by_name() -> None:
    error = _only_error(_line(method="GET"))
    assert (error.code, error.param) == ("invalid_method", "method")
    assert "'GET'" in error.message


@pytest.mark.parametrize("stream", [True, "true", 1, {}])
def test_streaming_is_refused(stream: object) -> None:
    error = _only_error(_body(stream=stream))
    assert (error.code, error.line, error.param) == ("streaming_unsupported", 1, "body.stream")
    assert error.message == "Chat Completions: Streaming is not supported in the Batch API."


@pytest.mark.parametrize("stream", [False, None])
def test_not_streaming_may_be_said(stream: object) -> None:
    assert isinstance(_check(_body(stream=stream)), Accepted)


def test_a_model_that_nobody_serves_is_named() -> None:
    error = _only_error(_body(model="gpt-9"))
    assert (error.code, error.line, error.param) == ("model_not_found", 1, "body.model")
    assert error.message == "The provided model 'gpt-9' is not supported by the Batch API."


def test_an_absurdly_long_model_name_is_cut_in_the_message() -> None:
    assert len(_only_error(_body(model="x" * 100_000), serves=lambda _: True).message) < 200


@pytest.mark.parametrize("value", [_GONE, None, ""])
def test_a_model_is_required(value: object) -> None:
    error = _only_error(_body(model=value))
    assert (error.code, error.line, error.param) == ("invalid_request", 1, "body.model")
    assert error.message == "Model parameter is required."


@pytest.mark.parametrize("path", list(ENDPOINTS))
@pytest.mark.parametrize("value", [_GONE, None])
def test_each_endpoints_input_is_required(path: str, value: object) -> None:
    needed = ENDPOINTS[path].needed
    good = _line(url=path, body={"model": "m", needed: "text"})
    assert isinstance(_check(good, endpoint=path), Accepted)
    fields = {"model": "m", needed: value, "unused": "text"}
    bad = _line(url=path, body={k: v for k, v in fields.items() if v is not _GONE})
    error = _only_error(bad, endpoint=path)
    assert (error.code, error.param) == ("invalid_request", f"body.{needed}")
    assert error.message == f"{needed.capitalize()} parameter is required."


@pytest.mark.parametrize(
    ("line", "param"),
    [
        (_line(custom_id=17), "custom_id"),
        (_line(custom_id=["a"]), "custom_id"),
        (_line(custom_id=""), "custom_id"),
        (_line(custom_id="x" * 513), "custom_id"),
        (_line(method=1), "method"),
        (_line(url={}), "url"),
        (_line(body=[]), "body"),
        (_line(body="text"), "body"),
        (_body(model=1), "body.model"),
    ],
)
def test_a_field_of_the_wrong_type_or_length_is_named(line: bytes, param: str) -> None:
    error = _only_error(line)
    assert (error.code, error.line, error.param) == ("invalid_request", 1, param)


@pytest.mark.parametrize("custom_id", ["😀" * 512, "x" * 65, " ", "a/b\nc", "\x00"])
def test_any_text_up_to_512_characters_is_a_custom_id(custom_id: str) -> None:
    assert isinstance(_check(_line(custom_id=custom_id)), Accepted)
    raw = json.dumps({"custom_id": custom_id}, ensure_ascii=False)[1:-1].encode()
    if b"\n" not in raw:
        assert isinstance(
            _check(_line(custom_id=_GONE).replace(b"{", b"{" + raw + b",", 1)), Accepted
        )


def test_a_repeated_custom_id_is_named_with_both_lines() -> None:
    data = b"\n".join([_line("a"), _line("b"), _line("c"), _line("a")])
    error = _only_error(data)
    assert (error.code, error.line, error.param) == ("duplicate_custom_id", 4, "custom_id")
    assert error.message == "Duplicate custom_id 'ra': lines 1 and 4 have the same one."


def test_the_same_custom_id_escaped_differently_is_the_same() -> None:
    data = _line("a") + b"\n" + _line("x").replace(b'"rx"', b'"\\u0072a"')
    assert _errors(data) == [("duplicate_custom_id", 2, "custom_id")]


def test_the_number_of_lines_may_be_reached_but_not_passed() -> None:
    data = b"\n".join(_line(n) for n in range(50))
    assert isinstance(_check(data, max_lines=50), Accepted)
    assert isinstance(_check(data + b"\n\n\n", max_lines=50), Accepted)
    error = _only_error(data + b"\n" + _line(50), max_lines=50)
    assert (error.code, error.line) == ("too_many_requests_in_file", None)
    assert "50" in error.message


def test_fifty_thousand_lines_is_the_default_limit() -> None:
    data = b"\n".join(_line(n) for n in range(50_000))
    verdict = _check(data)
    assert isinstance(verdict, Accepted)
    assert verdict.total == 50_000
    assert _only_error(data + b"\n" + _line(50_000)).code == "too_many_requests_in_file"


def test_the_size_of_a_line_may_be_reached_but_not_passed() -> None:
    limit = 4 << 20
    longest = _line(1, custom_id="x").replace(b"hello", b"")
    longest = longest.replace(b'""', b'"' + b"x" * (limit - len(longest)) + b'"')
    assert len(longest) == limit
    for chunk in (1 << 16, 1 << 20, 1 << 25):
        for end in (b"", b"\n", b"\r\n"):
            verdict = _check(b"\xef\xbb\xbf" + longest + end, chunk=chunk)
            assert isinstance(verdict, Accepted)
        data = _line("a") + b"\n" + longest + b" \n" + b"{}"
        assert _errors(data, max_file_bytes=1 << 30) == [
            ("line_too_large", 2, None),
            ("missing_required_parameter", 3, "custom_id"),
        ]
        verdict = _check(data, chunk=chunk)
        assert isinstance(verdict, Refused)
        assert [e.line for e in verdict.errors] == [2, 3]


def test_an_endless_line_ends_the_reading_early_and_fills_no_memory() -> None:
    intake = Intake(_rules(max_file_bytes=1 << 40))
    chunk = b"x" * (1 << 20)
    tracemalloc.start()
    fed = 0
    while not intake.stopped:
        intake.feed(chunk)
        fed += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fed <= 20
    assert peak < 12 << 20
    verdict = intake.finish()
    assert isinstance(verdict, Refused)
    assert [(e.code, e.line) for e in verdict.errors] == [("line_too_large", 1)]


@pytest.mark.parametrize("chunk", [100, 1000, 1 << 20])
def test_the_size_of_a_file_may_be_reached_but_not_passed(chunk: int) -> None:
    data = b"\n".join(_line(n) for n in range(20)) + b"\nnot json\n"
    assert len(_errors(data, max_file_bytes=len(data))) == 1
    verdict = _check(data, chunk=chunk, max_file_bytes=len(data) - 1)
    assert isinstance(verdict, Refused)
    assert [(e.code, e.line) for e in verdict.errors] == [("file_too_large", None)]


def test_errors_are_collected_up_to_a_cap_and_then_counted() -> None:
    data = b"\n".join([b"bad"] * (MAX_ERRORS + 234))
    verdict = _check(data)
    assert isinstance(verdict, Refused)
    assert len(verdict.errors) == MAX_ERRORS + 1
    assert [e.line for e in verdict.errors[:-1]] == list(range(1, MAX_ERRORS + 1))
    assert verdict.errors[-1].line is None
    assert verdict.errors[-1].message.startswith("234 more")


def test_a_file_may_name_many_models_but_not_any_number() -> None:
    bodies = [{"model": f"m{n}", "messages": []} for n in range(MAX_MODELS + 1)]
    lines = [_line(n, body=body) for n, body in enumerate(bodies)]
    good = _check(b"\n".join(lines[:-1]), serves=lambda _: True)
    assert isinstance(good, Accepted)
    assert len(good.models) == MAX_MODELS
    error = _only_error(b"\n".join(lines), serves=lambda _: True)
    assert (error.code, error.line, error.param) == (
        "invalid_request",
        MAX_MODELS + 1,
        "body.model",
    )


@pytest.mark.parametrize(
    ("value", "inputs"),
    [
        ("one text", 1),
        ([1, 2, 3], 1),
        (["a", "b", "c"], 3),
        ([[1, 2], [3]], 2),
        ([], 0),
        (["a,b", 'c","d'], 2),
    ],
)
def test_embedding_inputs_are_counted(value: object, inputs: int) -> None:
    path = "/v1/embeddings"
    line = _line(url=path, body={"model": "m", "input": value})
    intake = Intake(_rules(endpoint=path))
    intake.feed(line + b"\n")
    assert intake.inputs == inputs


@pytest.mark.parametrize("per_line", [1000, 49_999])
def test_more_than_fifty_thousand_embedding_inputs_are_refused(per_line: int) -> None:
    path = "/v1/embeddings"
    counts = [per_line] * (50_000 // per_line) + [50_000 % per_line]
    lines = [
        _line(n, url=path, body={"model": "m", "input": ["x"] * count})
        for n, count in enumerate(counts)
    ]
    assert isinstance(_check(b"\n".join(lines), endpoint=path), Accepted)
    one_more = _line("more", url=path, body={"model": "m", "input": "x"})
    error = _only_error(b"\n".join([*lines, one_more]), endpoint=path)
    assert (error.code, error.line) == ("too_many_requests_in_file", None)


def test_a_hostile_list_of_inputs_costs_little_memory() -> None:
    path = "/v1/embeddings"
    line = _line(url=path, body={"model": "m", "input": "X"})
    line = line.replace(b'"X"', b"[" + b",".join([b"[]"] * 1_300_000) + b"]")
    intake = Intake(_rules(endpoint=path))
    tracemalloc.start()
    intake.feed(line + b"\n")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20
    assert isinstance(intake.finish(), Refused)


_PIECES = st.sampled_from(
    [
        _line("a"),
        _line("b"),
        _line("c", body={"model": "other", "messages": []}),
        _line("u", custom_id="😀é"),
        _body(stream=True),
        _body(model="gpt-9"),
        b"{}",
        b"bad",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n",
        b"\r\n",
        b"\n\n\n",
        b" ",
        b"x" * 300,
        b"y" * 1500,
        "Ω".encode(),
    ]
)
_FILES = st.one_of(
    st.binary(max_size=300),
    st.lists(_PIECES, max_size=12).map(b"".join),
    st.lists(_PIECES, max_size=12).map(b"\n".join),
)


@given(
    data=_FILES,
    cuts=st.lists(st.integers(0, 4000), max_size=8),
    max_lines=st.integers(1, 6),
    max_file_bytes=st.integers(1, 3000),
)
def test_the_verdict_depends_on_the_bytes_and_not_on_the_chunks(
    data: bytes, cuts: list[int], max_lines: int, max_file_bytes: int
) -> None:
    rules: dict[str, Any] = {"max_lines": max_lines, "max_line_bytes": 256}
    rules["max_file_bytes"] = max_file_bytes
    whole = _check(data, **rules)
    assert _check(data, chunk=1, **rules) == whole
    intake = Intake(_rules(**rules))
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        intake.feed(data[start:end])
    assert intake.finish() == whole


@given(data=st.binary(max_size=200), path=st.sampled_from(sorted(ENDPOINTS)))
def test_any_bytes_get_a_verdict(data: bytes, path: str) -> None:
    verdict = _check(data, endpoint=path)
    assert isinstance(verdict, Refused)
    assert verdict.errors


_JSON = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([{"a": []}])
)
_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "custom_id": _JSON | st.just("a"),
        "method": _JSON | st.just("POST"),
        "url": _JSON | st.just(_CHAT),
        "body": _JSON
        | st.fixed_dictionaries(
            {},
            optional={
                "model": _JSON | st.just("m"),
                "messages": _JSON,
                "stream": _JSON,
            },
        ),
        "more": _JSON,
    },
)


@given(lines=st.lists(_FIELDS, min_size=1, max_size=4))
def test_any_json_gets_one_error_a_line_or_a_row(lines: list[dict[str, object]]) -> None:
    verdict = _check("\n".join(json.dumps(line) for line in lines).encode())
    if isinstance(verdict, Accepted):
        assert len(_rows(verdict)) == len(lines)
        assert all(isinstance(line["custom_id"], str) for line in lines)
    else:
        numbers = [error.line for error in verdict.errors]
        assert sorted(set(numbers), key=str) == sorted(numbers, key=str)
