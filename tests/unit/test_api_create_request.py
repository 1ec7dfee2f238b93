"""What a request to create a batch may say, and the exact words when it may not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.batches.request import ENDPOINTS, OTHER_ENDPOINTS, parse
from api.errors import InvalidRequest

WINDOWS = {"24h": 86_400, "1h": 3600}
GOOD: dict[str, Any] = {
    "input_file_id": "file-1",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}


def refused(header: str | None = None, /, **changes: object) -> InvalidRequest:
    body = {k: v for k, v in {**GOOD, **changes}.items() if v is not ...}
    with pytest.raises(InvalidRequest) as caught:
        parse(body, header, WINDOWS)
    return caught.value


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_supported_endpoint_is_taken(endpoint: str) -> None:
    assert parse({**GOOD, "endpoint": endpoint}, None, WINDOWS).endpoint == endpoint


@pytest.mark.parametrize("endpoint", [*OTHER_ENDPOINTS, "/v1/foo", "chat/completions", ""])
def test_other_endpoints_are_refused_by_name(endpoint: str) -> None:
    error = refused(endpoint=endpoint)
    assert error.message.startswith(f"Invalid endpoint: '{endpoint}'")
    assert "Supported values: '/v1/chat/completions', " in error.message
    assert (error.code, error.param) == ("invalid_value", "endpoint")


def test_an_unknown_window_is_named() -> None:
    error = refused(completion_window="48h")
    assert error.message == "Invalid completion_window: '48h'. Supported values: '24h' and '1h'."
    assert (error.code, error.param) == ("invalid_value", "completion_window")


@pytest.mark.parametrize("name", list(GOOD))
@pytest.mark.parametrize("absent", [..., None])
def test_a_missing_parameter_is_named(name: str, absent: object) -> None:
    error = refused(**{name: absent})
    assert error.message == f"Missing required parameter: '{name}'."
    assert (error.code, error.param) == ("missing_required_parameter", name)


@pytest.mark.parametrize(
    ("value", "called"),
    [
        (1, "an integer"),
        (1.5, "a decimal number"),
        (True, "a boolean"),
        (["a"], "an array"),
        ({}, "an object"),
        (None, "null"),
    ],
)
def test_a_metadata_value_of_another_type_is_named(value: object, called: str) -> None:
    error = refused(metadata={"tags": value})
    assert error.message == (
        f"Invalid type for 'metadata.tags': expected a string, but got {called} instead."
    )
    assert (error.code, error.param) == ("invalid_type", "metadata.tags")


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"input_file_id": 7}, "input_file_id", "invalid_type"),
        ({"input_file_id": "x" * 257}, "input_file_id", "string_above_max_length"),
        ({"endpoint": []}, "endpoint", "invalid_type"),
        ({"metadata": ["a"]}, "metadata", "invalid_type"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "object_above_max_properties"),
        ({"metadata": {"k" * 65: "v"}}, "metadata", "string_above_max_length"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "string_above_max_length"),
        ({"output_expires_after": 5}, "output_expires_after", "invalid_type"),
        (
            {"output_expires_after": {"seconds": 3600}},
            "output_expires_after.anchor",
            "missing_required_parameter",
        ),
        (
            {"output_expires_after": {"anchor": "now", "seconds": 3600}},
            "output_expires_after.anchor",
            "invalid_value",
        ),
        (
            {"output_expires_after": {"anchor": "created_at"}},
            "output_expires_after.seconds",
            "missing_required_parameter",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": True}},
            "output_expires_after.seconds",
            "invalid_type",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
            "output_expires_after.seconds",
            "integer_below_min_value",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}},
            "output_expires_after.seconds",
            "integer_above_max_value",
        ),
        ({"prioritie": 1}, "prioritie", "unknown_parameter"),
        ({"priority": "high"}, "priority", "invalid_type"),
        ({"priority": -101}, "priority", "integer_below_min_value"),
        ({"idempotency_key": 1}, "idempotency_key", "invalid_type"),
        ({"idempotency_key": " "}, "idempotency_key", "invalid_value"),
        ({"idempotency_key": "k" * 256}, "idempotency_key", "string_above_max_length"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_code(
    changes: dict[str, object], param: str, code: str
) -> None:
    error = refused(**changes)
    assert (error.param, error.code) == (param, code)
    assert code == "invalid_value" or param.rpartition(".")[2] in error.message


def test_sixteen_pairs_of_the_longest_metadata_are_taken() -> None:
    metadata = {f"{i:064}": "🚀" * 512 for i in range(16)}
    assert parse({**GOOD, "metadata": metadata}, None, WINDOWS).metadata == metadata


def test_the_idempotency_key_comes_from_header_or_body_but_not_from_both() -> None:
    assert parse(GOOD, "k", WINDOWS).idempotency_key == "k"
    assert parse({**GOOD, "idempotency_key": "k"}, "k", WINDOWS).idempotency_key == "k"
    assert refused("other", idempotency_key="k").param == "idempotency_key"
    assert refused("\udcff").param == "idempotency_key"


@given(st.dictionaries(st.text(max_size=10), st.text(max_size=10), max_size=8), st.randoms())
def test_requests_are_the_same_with_metadata_in_any_order(
    metadata: dict[str, str], rng: Any
) -> None:
    shuffled = list(metadata.items())
    rng.shuffle(shuffled)
    one = parse({**GOOD, "metadata": metadata}, None, WINDOWS)
    other = parse({**GOOD, "metadata": dict(shuffled)}, "key", WINDOWS)
    assert one.hash() == other.hash()


@pytest.mark.parametrize(
    "change",
    [
        {"input_file_id": "file-2"},
        {"endpoint": "/v1/embeddings"},
        {"completion_window": "1h"},
        {"priority": 1},
        {"metadata": {"a": "b"}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 3600}},
    ],
)
def test_requests_that_ask_for_something_else_differ(change: dict[str, object]) -> None:
    assert parse(GOOD, None, WINDOWS).hash() != parse({**GOOD, **change}, None, WINDOWS).hash()
