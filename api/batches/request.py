"""The request that creates a batch: what it may say, and when two of them are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from api import checks
from api.errors import InvalidRequest
from api.files.upload import MAX_EXPIRY_S, MIN_EXPIRY_S
from streams.domain.batch.control import MAX_PRIORITY, MIN_PRIORITY

#: Endpoints whose requests a batch may hold.
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
#: Endpoints that OpenAI batches and this server does not.
OTHER_ENDPOINTS = (
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/videos",
)

_KNOWN = (
    "input_file_id",
    "endpoint",
    "completion_window",
    "metadata",
    "output_expires_after",
    "idempotency_key",
    "priority",
)
_MAX_METADATA = 16
_MAX_METADATA_KEY = 64
_MAX_METADATA_VALUE = 512
_MAX_ID = 256
_MAX_IDEMPOTENCY_KEY = 255


@dataclass(frozen=True, kw_only=True)
class CreateRequest:
    """A request found good. window_s: the completion window in seconds.

    key_id: the API key that asks. It is no part of what makes two requests the same.
    """

    input_file_id: str
    endpoint: str
    completion_window: str
    window_s: int
    metadata: dict[str, str]
    output_expires_after_s: int | None
    idempotency_key: str | None
    priority: int = 0
    origin_batch_id: str | None = None
    key_id: str | None = None

    def hash(self) -> str:
        """Equal for requests that ask for the same, metadata in any order."""
        canonical = msgspec.json.encode(
            [
                self.input_file_id,
                self.endpoint,
                self.completion_window,
                sorted(self.metadata.items()),
                self.output_expires_after_s,
                self.priority,
            ]
        )
        return hashlib.sha256(canonical).hexdigest()


def parse(
    body: Mapping[str, Any],
    header_key: str | None,
    windows: Mapping[str, int],
    *,
    key_id: str | None = None,
) -> CreateRequest:
    """Judges a body and the Idempotency-Key header. Raises InvalidRequest."""
    checks.known_only(body, _KNOWN)
    input_file_id = checks.string(body, "input_file_id", max_length=_MAX_ID)
    endpoint = endpoint_in(body)
    window = window_in(body, windows)
    return CreateRequest(
        input_file_id=input_file_id,
        endpoint=endpoint,
        completion_window=window,
        window_s=windows[window],
        metadata=_metadata(body.get("metadata")),
        output_expires_after_s=_expiry(body.get("output_expires_after")),
        idempotency_key=_idempotency_key(body, header_key),
        priority=priority_in(body) or 0,
        key_id=key_id,
    )


def window_in(body: Mapping[str, Any], windows: Mapping[str, int]) -> str:
    """The completion window that a body asks for. Raises InvalidRequest."""
    window = checks.string(body, "completion_window", max_length=_MAX_ID)
    if window not in windows:
        raise InvalidRequest(
            f"Invalid completion_window: '{checks.shortened(window)}'. "
            f"Supported values: {checks.quoted(windows)}.",
            param="completion_window",
            code="invalid_value",
        )
    return window


def endpoint_in(body: Mapping[str, Any]) -> str:
    """The endpoint that a body names. Raises InvalidRequest."""
    endpoint = checks.string(body, "endpoint", max_length=_MAX_ID)
    if endpoint in ENDPOINTS:
        return endpoint
    why = " is not available on this server" if endpoint in OTHER_ENDPOINTS else ""
    raise InvalidRequest(
        f"Invalid endpoint: '{checks.shortened(endpoint)}'{why}. "
        f"Supported values: {checks.quoted(ENDPOINTS)}.",
        param="endpoint",
        code="invalid_value",
    )


def _metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise checks.wrong_type("metadata", dict, value)
    if len(value) > _MAX_METADATA:
        raise InvalidRequest(
            f"Invalid 'metadata': too many properties. Expected an object with at most "
            f"{_MAX_METADATA} properties, but got an object with {len(value)} properties instead.",
            param="metadata",
            code="object_above_max_properties",
        )
    for name, text in value.items():
        if len(name) > _MAX_METADATA_KEY:
            raise InvalidRequest(
                f"Invalid 'metadata': property name too long. Expected a name with maximum "
                f"length {_MAX_METADATA_KEY}, but got a name with length {len(name)} instead.",
                param="metadata",
                code="string_above_max_length",
            )
        if not isinstance(text, str):
            raise checks.wrong_type(f"metadata.{name}", str, text)
        checks.at_most(f"metadata.{name}", text, _MAX_METADATA_VALUE)
    return dict(value)


def _expiry(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise checks.wrong_type("output_expires_after", dict, value)
    checks.known_only(value, ("anchor", "seconds"), "output_expires_after.")
    anchor, seconds = value.get("anchor"), value.get("seconds")
    if anchor is None:
        raise checks.missing("output_expires_after.anchor")
    if seconds is None:
        raise checks.missing("output_expires_after.seconds")
    if anchor != "created_at":
        if not isinstance(anchor, str):
            raise checks.wrong_type("output_expires_after.anchor", str, anchor)
        raise checks.unsupported("output_expires_after.anchor", anchor, ("created_at",))
    if not isinstance(seconds, int) or isinstance(seconds, bool):
        raise checks.wrong_type("output_expires_after.seconds", int, seconds)
    return checks.within("output_expires_after.seconds", seconds, MIN_EXPIRY_S, MAX_EXPIRY_S)


def priority_in(body: Mapping[str, Any]) -> int | None:
    """The priority that a body asks for, if it does. Raises InvalidRequest."""
    value = body.get("priority")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise checks.wrong_type("priority", int, value)
    return checks.within("priority", value, MIN_PRIORITY, MAX_PRIORITY)


def _idempotency_key(body: Mapping[str, Any], header: str | None) -> str | None:
    if body.get("idempotency_key") is None:
        return None if header is None else checked_key(header)
    key = checked_key(checks.string(body, "idempotency_key", max_length=_MAX_IDEMPOTENCY_KEY))
    if header is not None and header != key:
        raise InvalidRequest(
            "The Idempotency-Key header and 'idempotency_key' differ; send one of them.",
            param="idempotency_key",
            code="invalid_value",
        )
    return key


def checked_key(key: str) -> str:
    """An idempotency key, if it is one. Raises InvalidRequest."""
    # aiohttp decodes bytes of a header that are not UTF-8 as lone surrogates.
    if not key.strip() or any("\ud800" <= c <= "\udfff" for c in key):
        raise InvalidRequest(
            "The idempotency key must be text and not empty.",
            param="idempotency_key",
            code="invalid_value",
        )
    return checks.at_most("idempotency_key", key, _MAX_IDEMPOTENCY_KEY)
