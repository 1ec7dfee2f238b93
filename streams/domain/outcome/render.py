"""The bytes of a line of the output or error file, exactly as OpenAI writes it:

{"id":…,"custom_id":…,"response":{"status_code":…,"request_id":…,"body":{…}},"error":null}
{"id":…,"custom_id":…,"response":null,"error":{"code":…,"message":…}}

The body is the upstream's own, byte for byte, and the custom id the caller's; neither is parsed
and written anew, so nothing in them can change.
"""

from __future__ import annotations

import re

import msgspec

from schemas.errors import LINE_MESSAGES, LineCode
from streams.domain.ids import line_request_id, new_request_id

_SAFE_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)

#: The custom id of a line that could not be read back.
NO_CUSTOM_ID = b"null"


def answered(
    batch_id: str, line: int, custom_id: bytes, status: int, request_id: str, body: bytes
) -> bytes:
    """The line of a request that was answered. `custom_id` and `body` are JSON on one line."""
    return (
        b'{"id":"%b","custom_id":%b,"response":{"status_code":%d,"request_id":"%b","body":%b},'
        b'"error":null}'
    ) % (
        line_request_id(batch_id, line).encode(),
        custom_id,
        status,
        _request_id(request_id).encode(),
        body,
    )


def unanswered(batch_id: str, line: int, custom_id: bytes, code: LineCode) -> bytes:
    """The line of a request that has no answer. `custom_id` is JSON on one line."""
    return b'{"id":"%b","custom_id":%b,"response":null,"error":{"code":"%b","message":%b}}' % (
        line_request_id(batch_id, line).encode(),
        custom_id,
        code.value.encode(),
        msgspec.json.encode(LINE_MESSAGES[code]),
    )


def bodiless(status: int) -> bytes:
    """A body in place of a refusal that came without a JSON object, as from a proxy."""
    return msgspec.json.encode(
        {
            "error": {
                "message": f"The model server answered with status {status} and no JSON body.",
                "type": "upstream_error",
                "param": None,
                "code": None,
            }
        }
    )


def _request_id(from_upstream: str) -> str:
    return from_upstream if _SAFE_ID.fullmatch(from_upstream) else new_request_id()
