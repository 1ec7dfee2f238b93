"""What a line of an input file asks: its custom id, its body as bytes, and its model."""

from __future__ import annotations

import msgspec

from streams.domain.failures import FailureReason
from streams.domain.outcome.render import NO_CUSTOM_ID
from streams.domain.upstreams import Rewrite

#: A model's name is cut to this in outcomes; the body keeps it whole.
MAX_MODEL_CHARS = 256


class _Line(msgspec.Struct):
    custom_id: msgspec.Raw
    body: msgspec.Raw


class _Body(msgspec.Struct):
    model: str = ""


_line = msgspec.json.Decoder(_Line)
_body = msgspec.json.Decoder(_Body)


class Request(msgspec.Struct, frozen=True):
    """A line's request. `custom_id` is a JSON string as it stands in the file."""

    custom_id: bytes
    body: bytes
    model: str


class Unsendable(msgspec.Struct, frozen=True):
    """Why a line has no request, and what could be read of it."""

    reason: FailureReason
    custom_id: bytes = NO_CUSTOM_ID
    model: str = ""


def parse_request(raw: bytes, rewrite: Rewrite) -> Request | None:
    """The request in a line's bytes; None if intake can't have accepted them.

    rewrite: what the upstream must read instead of what the line says.
    """
    try:
        line = _line.decode(raw)
        model = _body.decode(line.body).model
        custom_id, body = bytes(line.custom_id), rewrite.body(bytes(line.body), model)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not custom_id.startswith(b'"'):
        return None
    return Request(custom_id, body, model[:MAX_MODEL_CHARS])
