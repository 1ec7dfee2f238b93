"""The generator of batch lines from rows of variables."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from streams.domain.intake.lines import MAX_CUSTOM_ID_CHARS
from streams.domain.prompts.lines import MAX_DEPTH, PromptRef, RowError, batch_lines

SUMMARIZE = PromptRef(slug="summarize")

texts = st.text()
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=8,
)


def made(rows: list[Any], id_column: str | None = None, **options: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in batch_lines(SUMMARIZE, rows, id_column, **options)]


def refused(row: Any, id_column: str | None = None) -> RowError:
    """The error for a row that comes third."""
    good = {"id": "g1"}, {"id": "g2"}
    with pytest.raises(RowError) as caught:
        list(batch_lines(SUMMARIZE, [*good, row], id_column))
    assert caught.value.row == 3
    return caught.value


def test_a_line_names_the_prompt_and_holds_the_rows_variables() -> None:
    (line,) = made([{"text": "First…"}])
    assert line == {
        "custom_id": "row-000001",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"prompt_slug": "summarize", "variables": {"text": "First…"}},
    }


def test_model_version_and_endpoint_are_said_where_they_are_given() -> None:
    prompt = PromptRef(slug="s", version=3, model="m", endpoint="/v1/responses")
    (line,) = map(json.loads, batch_lines(prompt, [{}]))
    assert line["url"] == "/v1/responses"
    assert line["body"] == {
        "model": "m",
        "prompt_slug": "s",
        "prompt_version": 3,
        "variables": {},
    }


def test_rows_are_numbered_from_one() -> None:
    assert [line["custom_id"] for line in made([{}, {}, {}])] == [
        "row-000001",
        "row-000002",
        "row-000003",
    ]


@pytest.mark.parametrize("value", ["doc-1", Raw(b'"doc-1"')])
def test_an_id_column_gives_the_custom_ids_and_is_no_variable(value: object) -> None:
    (line,) = made([{"id": value, "text": "t"}], "id")
    assert line["custom_id"] == "doc-1"
    assert line["body"]["variables"] == {"text": "t"}


def test_the_id_column_can_stay_a_variable() -> None:
    (line,) = made([{"id": 7}], "id", keep_id=True)
    assert line["custom_id"] == "7"
    assert line["body"]["variables"] == {"id": 7}
    with pytest.raises(ValueError, match="id_column"):
        list(batch_lines(SUMMARIZE, [], keep_id=True))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "no id"}, "has no 'id'"),
        ({"id": ""}, "has no 'id'"),
        ({"id": None}, "has no 'id'"),
        ({"id": Raw(b"null")}, "has no 'id'"),
        ({"id": 1.5}, "neither a text nor a whole number"),
        ({"id": True}, "neither a text nor a whole number"),
        ({"id": ["x"]}, "neither a text nor a whole number"),
        ({"id": 10**5000}, "neither a text nor a whole number"),
        ({"id": "x" * (MAX_CUSTOM_ID_CHARS + 1)}, "more than 512 characters"),
        ({"id": "g1"}, "the same 'id' as row 1"),
        ({"id": Raw(b'"g2"')}, "the same 'id' as row 2"),
        ({"id": "\ud83d"}, "not valid Unicode"),
    ],
)
def test_an_id_that_can_not_be_one_is_told_with_its_row(row: Mapping[str, Any], said: str) -> None:
    error = refused(row, "id")
    assert said in error.message
    assert error.name == "id"


def test_a_number_and_a_text_that_read_the_same_are_one_id() -> None:
    with pytest.raises(RowError) as caught:
        made([{"id": 7}, {"id": "7"}], "id")
    assert caught.value.row == 2


@pytest.mark.parametrize("row", [[], "text", None, 3, Raw(b"{}")])
def test_a_row_that_is_no_object_is_refused(row: object) -> None:
    assert "is not an object" in refused(row).message


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        [1, {"x": float("-inf")}],
        Raw(b"1e999"),
        Raw(b'[{"x": 1e999}]'),
        Raw(b"9" * 5000),
        [10**4400],
        "\ud83d",
        ["\ud83d"],
        {"\ud83d": 1},
        {1: 2},
        b"bytes",
        {1, 2},
        datetime.date(2024, 1, 1),
    ],
)
def test_what_json_can_not_hold_is_refused_and_named(value: object) -> None:
    error = refused({"text": "t", "value": value})
    assert error.name == "value"
    assert "'value'" in error.message


def test_a_name_that_is_no_text_is_refused() -> None:
    assert "name" in refused({1: "x"}).message
    assert "Unicode" in refused({"\udc00": "x"}).message


def test_nesting_has_an_end() -> None:
    deep: list[Any] = []
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert "deep" in refused({"value": deep}).message


def test_a_long_name_is_cut_in_the_message() -> None:
    assert len(refused({"n" * 9999: float("nan")}).message) < 200


def test_the_error_itself_holds_no_word_of_the_callers() -> None:
    error = refused({"secret-name": float("nan")})
    assert "secret-name" not in str(error)
    assert "secret-name" not in repr(error.args)


def test_raw_json_is_taken_over_as_it_is_written_on_one_line() -> None:
    row = {"n": Raw(b"1.50"), "big": Raw(b"12345678901234567890123"), "l": Raw(b'[1,\r\n "a\\n"]')}
    (line,) = batch_lines(SUMMARIZE, [row])
    assert b'{"n":1.50,"big":12345678901234567890123,"l":[1,"a\\n"]}' in line
    assert line.count(b"\n") == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(texts, values, max_size=4), max_size=4))
def test_every_row_of_json_values_comes_out_as_it_went_in(rows: list[dict[str, Any]]) -> None:
    lines = list(batch_lines(SUMMARIZE, rows))
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert [json.loads(line)["body"]["variables"] for line in lines] == rows


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(texts, values, max_size=4), max_size=4))
def test_raw_values_and_decoded_ones_make_the_same_file(rows: list[dict[str, Any]]) -> None:
    raw = [{n: Raw(msgspec.json.encode(v)) for n, v in row.items()} for row in rows]
    assert list(batch_lines(SUMMARIZE, raw)) == list(batch_lines(SUMMARIZE, rows))


def test_rows_are_taken_one_at_a_time() -> None:
    taken = 0

    def rows() -> Iterator[dict[str, str]]:
        nonlocal taken
        while True:
            taken += 1
            yield {"text": "t"}

    lines = batch_lines(SUMMARIZE, rows())
    for _ in range(3):
        next(lines)
    assert taken == 3


def test_the_callers_row_is_left_as_it_was() -> None:
    row = {"id": "x", "text": "t"}
    made([row], "id")
    assert row == {"id": "x", "text": "t"}
