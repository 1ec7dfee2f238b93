"""Requests about stored prompts: what they may say, and when two of them are the same.

A version's messages and model_config are kept as they were sent, so that no number or text
changes on the way; they are judged by compiling them once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import hdrs, web
from msgspec import Raw

from api import checks
from api.batches.request import checked_key
from api.errors import InvalidRequest, PreconditionFailed
from api.gateway import GATEWAY
from api.http.body import MAX_BODY_BYTES, decoded_object, json_object, read_body
from api.prompts.facts import Facts, facts_of
from schemas.records import PromptHead
from streams.domain.prompts.prompt import PromptError
from streams.domain.prompts.request import (
    MAX_VERSION,
    PROMPT_ENDPOINTS,
    SLUG_FIELDS,
    is_slug,
)

#: Largest body that holds a version: its text's limit is lower, and JSON escapes take room.
MAX_VERSION_BODY_BYTES = 256 * 1024
_MAX_DESCRIPTION = 2000
_MAX_SLUG = 128
_DEFAULT_ENDPOINT = next(iter(PROMPT_ENDPOINTS))
_TAG = re.compile(r'(?:W/)?"[^"]*"')
_fields = msgspec.json.Decoder(dict[str, Raw])


@dataclass(frozen=True, kw_only=True)
class VersionRequest:
    """A version's text, found good. key: the Idempotency-Key; hash: equal for equal requests."""

    messages: bytes
    model_config: bytes
    facts: Facts
    key: str | None
    hash: str

    @property
    def size_bytes(self) -> int:
        """What it takes of the tenant's room."""
        return len(self.messages) + len(self.model_config)


@dataclass(frozen=True, kw_only=True)
class PromptRequest:
    """A prompt to be created, with its first version; its hash covers slug and description."""

    slug: str
    description: str | None
    version: VersionRequest


@dataclass(frozen=True, kw_only=True)
class RenderRequest:
    """A preview. version None: the published one; variables and body as JSON by name."""

    version: int | None
    endpoint: str
    variables: dict[str, Raw]
    variables_json: bytes
    body: dict[str, Raw]


async def read_prompt(request: web.Request) -> PromptRequest:
    """The body of a create. Raises ApiError."""
    raw = await read_body(request, MAX_VERSION_BODY_BYTES)
    body = decoded_object(raw)
    checks.known_only(body, ("slug", "description", "messages", "model_config"))
    slug = checks.string(body, "slug", max_length=_MAX_SLUG)
    if not is_slug(slug):
        raise InvalidRequest(
            "Invalid 'slug': expected 1 to 128 letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit.",
            param="slug",
            code="invalid_value",
        )
    description = _description(body.get("description"))
    version = await _version(request, raw, body, [slug, description])
    return PromptRequest(slug=slug, description=description, version=version)


async def read_version(request: web.Request) -> VersionRequest:
    """The body that adds a version. Raises ApiError."""
    raw = await read_body(request, MAX_VERSION_BODY_BYTES)
    body = decoded_object(raw)
    checks.known_only(body, ("messages", "model_config"))
    return await _version(request, raw, body, [])


async def read_patch(request: web.Request) -> Callable[[str | None], str | None]:
    """What a PATCH makes of the description. Raises ApiError."""
    body = await json_object(request, max_bytes=MAX_VERSION_BODY_BYTES)
    checks.known_only(body, ("description",))
    if "description" not in body:
        return lambda before: before
    description = _description(body["description"])
    return lambda _: description


async def read_published(request: web.Request) -> int | None:
    """The number of the version to publish; None to withdraw the prompt. Raises ApiError."""
    body = await json_object(request, max_bytes=MAX_VERSION_BODY_BYTES)
    checks.known_only(body, ("version",))
    if "version" not in body:
        raise checks.missing("version")
    return _number(body["version"])


async def read_render(request: web.Request) -> RenderRequest:
    """The body of a preview; every field is optional. Raises ApiError."""
    raw = await read_body(request, MAX_BODY_BYTES) or b"{}"
    body = decoded_object(raw)
    checks.known_only(body, ("version", "variables", "endpoint", "body"))
    endpoint = body.get("endpoint", _DEFAULT_ENDPOINT)
    if not isinstance(endpoint, str):
        raise checks.wrong_type("endpoint", str, endpoint)
    if endpoint not in PROMPT_ENDPOINTS:
        raise checks.unsupported("endpoint", endpoint, tuple(PROMPT_ENDPOINTS))
    fields = _fields.decode(raw)
    variables = _object(body, fields, "variables")
    return RenderRequest(
        version=_number(body.get("version")),
        endpoint=endpoint,
        variables=_fields.decode(variables),
        variables_json=variables,
        body=_overrides(_fields.decode(_object(body, fields, "body")), endpoint),
    )


class IfMatch:
    """What If-Match says of a prompt's revision; nothing where the header isn't there."""

    def __init__(self, request: web.Request) -> None:
        parts = [
            part.strip()
            for header in request.headers.getall(hdrs.IF_MATCH, [])
            for part in header.split(",")
        ]
        self._tags = None if not parts or parts == ["*"] else frozenset(parts)
        if self._tags and not all(_TAG.fullmatch(tag) for tag in self._tags):
            raise InvalidRequest(
                "Invalid 'If-Match': expected the ETag of an earlier answer, in its quotes, or *.",
                param="If-Match",
                code="invalid_value",
            )

    def check(self, head: PromptHead) -> None:
        """Raises PreconditionFailed if the prompt has another revision."""
        # A weak tag never matches (RFC 9110, section 13.1.1).
        if self._tags is not None and etag(head) not in self._tags:
            raise PreconditionFailed(
                "The prompt was changed since: it no longer has the ETag that 'If-Match' gives. "
                "Read it again and decide anew.",
                param="If-Match",
                code="precondition_failed",
            )


def etag(head: PromptHead) -> str:
    """The ETag of the prompt as it is."""
    return f'"{head.revision}"'


def idempotency_key(request: web.Request) -> str | None:
    """The Idempotency-Key header. Raises InvalidRequest."""
    key = request.headers.get("Idempotency-Key")
    return None if key is None else checked_key(key)


async def _version(
    request: web.Request, raw: bytes, body: Mapping[str, Any], also: list[str | None]
) -> VersionRequest:
    if body.get("messages") is None:
        raise checks.missing("messages")
    fields = _fields.decode(raw)
    messages = bytes(fields["messages"])
    no_config = body.get("model_config") is None
    config = b"{}" if no_config else bytes(fields["model_config"])
    try:
        prompt = await request.app[GATEWAY].prompt_facts.compiled(messages, config)
    except PromptError as error:
        raise InvalidRequest(error.message, param=error.param, code="invalid_value") from error
    return VersionRequest(
        messages=messages,
        model_config=config,
        facts=facts_of(prompt),
        key=idempotency_key(request),
        hash=_hash([*also, body["messages"], {} if no_config else body["model_config"]]),
    )


def _hash(said: list[Any]) -> str:
    """Equal whatever the order of an object's fields, and however the JSON was spaced."""
    try:
        canonical = json.dumps(said, sort_keys=True)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            "The version can't be stored: a number is too long or lists are nested too deeply.",
            param="messages",
            code="invalid_value",
        ) from error
    return hashlib.sha256(canonical.encode()).hexdigest()


def _description(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise checks.wrong_type("description", str, value)
    return checks.at_most("description", value, _MAX_DESCRIPTION)


def _number(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise checks.wrong_type("version", int, value)
    return checks.within("version", value, 1, MAX_VERSION)


def _object(body: Mapping[str, Any], fields: Mapping[str, Raw], name: str) -> bytes:
    """The JSON of an optional object."""
    value = body.get(name)
    if value is None:
        return b"{}"
    if not isinstance(value, dict):
        raise checks.wrong_type(name, dict, value)
    return bytes(fields[name])


def _overrides(body: dict[str, Raw], endpoint: str) -> dict[str, Raw]:
    taken = (PROMPT_ENDPOINTS[endpoint], "prompt", *SLUG_FIELDS)
    for name in body:
        if name in taken:
            raise InvalidRequest(
                f"Invalid 'body.{name}': the prompt itself gives this field.",
                param=f"body.{name}",
                code="invalid_value",
            )
    return body
