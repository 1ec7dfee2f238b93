"""The multipart parser: the same parts whatever the pieces, and no cut body taken for a whole."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http.multipart import (
    MultipartError,
    MultipartParser,
    PartBegin,
    PartData,
    PartEnd,
    boundary_of,
)

BOUNDARY = b"----x1"


def encode(parts: list[tuple[str, str | None, bytes]], boundary: bytes = BOUNDARY) -> bytes:
    body = b""
    for name, filename, data in parts:
        disposition = f'form-data; name="{name}"'
        if filename is not None:
            disposition += f'; filename="{filename}"'
        body += b"--" + boundary + b"\r\n"
        body += f"Content-Disposition: {disposition}\r\n\r\n".encode() + data + b"\r\n"
    return body + b"--" + boundary + b"--\r\n"


def parse(body: bytes, cuts: list[int] | None = None) -> list[tuple[str, str | None, bytes]]:
    parser = MultipartParser(BOUNDARY)
    edges = sorted({0, len(body), *(c % (len(body) + 1) for c in cuts or [])})
    found: list[tuple[str, str | None, bytes]] = []
    data, begin, complete = b"", PartBegin("", None), True
    for start, end in pairwise(edges):
        for event in parser.feed(body[start:end]):
            match event:
                case PartBegin():
                    begin, data, complete = event, b"", False
                case PartData(data=more):
                    data += more
                case PartEnd():
                    found.append((begin.name, begin.filename, data))
                    complete = True
    parser.close()
    assert complete
    return found


# Bytes that are likely to look like a delimiter's beginning, but never the whole of it.
tricky = st.lists(
    st.sampled_from([b"\r\n", b"--", b"----x", b"\r\n----x", b"\r\n------", b"a", b"\r", b"\n"])
).map(b"".join)
contents = (tricky | st.binary(max_size=200)).filter(lambda data: b"--" + BOUNDARY not in data)


@given(st.lists(contents, min_size=1, max_size=4), st.lists(st.integers(0)))
def test_parts_come_out_as_they_went_in_however_the_body_is_cut(
    datas: list[bytes], cuts: list[int]
) -> None:
    parts = [(f"p{i}", "f" if i % 2 else None, data) for i, data in enumerate(datas)]
    assert parse(encode(parts), cuts) == parts


@given(st.integers(0, 10_000))
def test_a_body_cut_anywhere_before_its_final_boundary_is_refused(at: int) -> None:
    body = encode([("purpose", None, b"batch"), ("file", "a.jsonl", b'{"a": 1}\n' * 20)])
    whole = len(body) - len(b"\r\n")
    with pytest.raises(MultipartError):
        parse(body[: at % whole])


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("plain.jsonl", "plain.jsonl"),
        ("a %22quoted%22.jsonl", 'a "quoted".jsonl'),
        (r"a \"quoted\".jsonl", 'a "quoted".jsonl'),
        ("naïve 🚀.jsonl", "naïve 🚀.jsonl"),
        ("semi;colon.jsonl", "semi;colon.jsonl"),
        ("", ""),
    ],
)
def test_file_names_are_unescaped(sent: str, meant: str) -> None:
    assert parse(encode([("file", sent, b"x")]))[0][1] == meant


@pytest.mark.parametrize(
    "body",
    [
        b"--" + BOUNDARY + b"\r\nContent-Type: text/plain\r\n\r\nx\r\n--" + BOUNDARY + b"--",
        b"--" + BOUNDARY + b"\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"--" + BOUNDARY + b" and more\r\n\r\n",
        b"no boundary at all",
        b"",
    ],
)
def test_what_is_not_multipart_is_refused(body: bytes) -> None:
    with pytest.raises(MultipartError):
        parse(body)


@pytest.mark.parametrize(
    "header",
    ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 71],
)
def test_a_content_type_without_a_usable_boundary_is_refused(header: str) -> None:
    with pytest.raises(MultipartError):
        boundary_of(header)


@pytest.mark.parametrize("header", ['boundary="a b"; charset=utf-8', "charset=x; Boundary=a"])
def test_the_boundary_is_found_quoted_or_not(header: str) -> None:
    assert boundary_of(f"Multipart/Form-Data; {header}") in (b"a b", b"a")


def test_preamble_and_epilogue_are_passed_over() -> None:
    body = b"preamble\r\n" + encode([("a", None, b"1")]) + b"epilogue" * 1000
    assert parse(body, [3, 9]) == [("a", None, b"1")]
