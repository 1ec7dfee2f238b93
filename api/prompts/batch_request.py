"""The request that makes a batch from a stored prompt and rows of variables.

Its rows are read one at a time: a body of 32 MiB can hold millions of small values, which as
Python objects would take gigabytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Raw

from api import checks
from api.auth import KEY_ID
from api.batches.request import CreateRequest, parse
from api.errors import InvalidRequest
from api.http.body import not_json, not_object, read_body
from streams.domain.intake.lines import MAX_MODEL_CHARS
from streams.domain.prompts.lines import DEFAULT_ENDPOINT, PromptRef
from streams.domain.prompts.request import MAX_VERSION, PROMPT_ENDPOINTS

#: Largest body of this route.
MAX_BATCH_BODY_BYTES = 32 * 1024 * 1024
_MAX_NAME = 256
_NULL = Raw(b"null")
#: The last is for bytes that are not UTF-8, and for numbers of too many digits.
_NOT_JSON = (msgspec.DecodeError, RecursionError, ValueError)
_UNKNOWN = re.compile(r"unknown field `(.*)`", re.DOTALL)
#: What POST /v1/batches has, too.
_OF_BATCH = ("metadata", "output_expires_after", "idempotency_key", "priority")
#: In place of an item that isn't there.
_ABSENT = Raw(b"")


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    """The fields as they were sent."""

    slug: Raw = _NULL
    version: Raw = _NULL
    model: Raw = _NULL
    endpoint: Raw = _NULL
    variables: Raw = _NULL
    id_column: Raw = _NULL
    keep_id: Raw = _NULL
    completion_window: Raw = _NULL
    metadata: Raw = _NULL
    output_expires_after: Raw = _NULL
    idempotency_key: Raw = _NULL
    priority: Raw = _NULL


_body = msgspec.json.Decoder(_Body)
_row = msgspec.json.Decoder(dict[str, Raw])


@dataclass(frozen=True, kw_only=True)
class PromptBatchRequest:
    """A request found good, but for its rows.

    variables: a JSON array. batch: without its input file. hash: equal for requests that ask for
    the same with the same bytes as `variables`; empty without an idempotency key.
    """

    prompt: PromptRef
    variables: bytes
    id_column: str | None
    keep_id: bool
    batch: CreateRequest
    hash: str


async def read_prompt_batch(request: web.Request, windows: Mapping[str, int]) -> PromptBatchRequest:
    """Reads and judges the body, but for its rows. Raises ApiError."""
    fields = _fields(await read_body(request, MAX_BATCH_BODY_BYTES))
    slug = checks.string(fields, "slug", max_length=_MAX_NAME)
    batch = _batch(fields, request, windows)
    prompt = PromptRef(
        slug=slug,
        version=_version(fields.get("version")),
        model=_optional(fields, "model", MAX_MODEL_CHARS),
        endpoint=batch.endpoint,
    )
    id_column = _optional(fields, "id_column", _MAX_NAME)
    keep_id = fields.get("keep_id") or False
    if not isinstance(keep_id, bool):
        raise checks.wrong_type("keep_id", bool, keep_id)
    if keep_id and id_column is None:
        raise checks.missing("id_column")
    rows: bytes = fields["variables"]
    said = [slug, prompt.version, prompt.model, id_column, keep_id, batch.hash()]
    return PromptBatchRequest(
        prompt=prompt,
        variables=rows,
        id_column=id_column,
        keep_id=keep_id,
        batch=batch,
        # Large bodies take a while, which other requests share.
        hash=await asyncio.to_thread(_hash, said, rows) if batch.idempotency_key else "",
    )


def rows_of(variables: bytes, *, max_rows: int, max_row_bytes: int) -> Iterator[dict[str, Raw]]:
    """The rows in a JSON array, one at a time. Raises InvalidRequest."""
    items = msgspec.structs.astuple(_items(max_rows).decode(variables))
    if items[-1] is not _ABSENT:
        raise InvalidRequest(
            f"Invalid 'variables': array too long. Expected an array with maximum length "
            f"{max_rows}.",
            param="variables",
            code="array_above_max_length",
        )
    if items[0] is _ABSENT:
        raise InvalidRequest(
            "Invalid 'variables': empty array. Expected an array with minimum length 1.",
            param="variables",
            code="empty_array",
        )
    for number, item in enumerate(items):
        if item is _ABSENT:
            return
        yield _row_of(bytes(item), f"variables[{number}]", max_row_bytes)


@lru_cache
def _items(max_rows: int) -> msgspec.json.Decoder[Any]:
    """Reads the first items of an array, and one more if there are too many.

    A list would be filled with however many millions there are before its length is known; a
    struct in the form of an array keeps what it has fields for.
    """
    fields = [(f"item_{number}", Raw, _ABSENT) for number in range(max_rows + 1)]
    return msgspec.json.Decoder(msgspec.defstruct("Items", fields, array_like=True))


def check_row_size(size_bytes: int, param: str, max_bytes: int) -> None:
    """Refuses a row that would make too long a line. Raises InvalidRequest."""
    if size_bytes > max_bytes:
        raise _too_long(param, max_bytes)


def _too_long(param: str, max_bytes: int) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{param}': the line would have more than {max_bytes} bytes.",
        param=param,
        code="line_too_large",
    )


def _row_of(raw: bytes, param: str, max_bytes: int) -> dict[str, Raw]:
    check_row_size(len(raw), param, max_bytes)
    if raw[:1] != b"{":
        raise checks.wrong_type(param, dict, _kind(raw))
    try:
        # Bytes that are not UTF-8 can hide in what the decoder only skips.
        raw.decode()
        return _row.decode(raw)
    except _NOT_JSON as error:
        raise not_json() from error


def _kind(raw: bytes) -> object:
    """A value of the type that the JSON has."""
    ends = {b"{": {}, b"[": [], b'"': ""}
    try:
        return ends[raw[:1]] if raw[:1] in ends else msgspec.json.decode(raw)
    except _NOT_JSON:
        return 0.0


def _fields(raw: bytes) -> dict[str, Any]:
    """The fields by name; `variables` as JSON, the others as values."""
    try:
        body = _body.decode(raw)
        names = [name for name in _Body.__struct_fields__ if name != "variables"]
        fields = {name: msgspec.json.decode(getattr(body, name)) for name in names}
    except msgspec.ValidationError as error:
        if found := _UNKNOWN.search(str(error)):
            checks.known_only({found[1]: None}, ())
        raise not_object() from error
    except _NOT_JSON as error:
        raise not_json() from error
    rows = bytes(body.variables)
    if rows == b"null":
        raise checks.missing("variables")
    if rows[:1] != b"[":
        raise checks.wrong_type("variables", list, _kind(rows))
    return {**fields, "variables": rows}


def _batch(
    fields: Mapping[str, Any], request: web.Request, windows: Mapping[str, int]
) -> CreateRequest:
    """What the request says of the batch, judged as POST /v1/batches does."""
    body = {name: fields[name] for name in _OF_BATCH if fields[name] is not None}
    window, endpoint = fields["completion_window"], fields["endpoint"]
    body["completion_window"] = next(iter(windows)) if window is None else window
    body["endpoint"] = DEFAULT_ENDPOINT if endpoint is None else endpoint
    header_key = request.headers.get("Idempotency-Key")
    found = parse({**body, "input_file_id": ""}, header_key, windows, key_id=request[KEY_ID])
    if found.endpoint not in PROMPT_ENDPOINTS:
        raise checks.unsupported("endpoint", found.endpoint, tuple(PROMPT_ENDPOINTS))
    return found


def _version(value: object) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise checks.wrong_type("version", int, value)
    return checks.within("version", value, 1, MAX_VERSION)


def _optional(fields: Mapping[str, Any], name: str, max_length: int) -> str | None:
    if fields[name] is None:
        return None
    text = checks.string(fields, name, max_length=max_length)
    if not text:
        raise InvalidRequest(
            f"Invalid '{name}': empty string. Leave it out, or give a name.",
            param=name,
            code="empty_string",
        )
    return text


def _hash(said: list[Any], rows: bytes) -> str:
    digest = hashlib.sha256(msgspec.json.encode(said))
    digest.update(rows)
    return digest.hexdigest()
