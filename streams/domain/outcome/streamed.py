"""The usage of streamed answers, which engines tell only when they are asked to.

Whoever doesn't ask is billed all the same, and doesn't get the event that tells it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec
from msgspec import Raw

from schemas.records import Usage
from streams.domain.not_json import NOT_JSON
from streams.domain.outcome.usage import MISSING

#: The endpoints whose streams are asked; those of the others tell by themselves.
_ASKED = frozenset({"/v1/chat/completions", "/v1/completions"})
_YES, _NULL = Raw(b"true"), Raw(b"null")
_EVENT = re.compile(rb".*?(?:\r?\n\r?\n|\r\r)", re.DOTALL)
_USAGE = re.compile(rb'"usage"\s*:\s*\{')

_fields = msgspec.json.Decoder(dict[str, Raw])


class Used(NamedTuple):
    """What an answer cost, and why that is not quite known, if so (outcome.usage's flags)."""

    usage: Usage = Usage()
    flag: str = MISSING


class _Chunk(msgspec.Struct):
    choices: list[Raw]


_chunk = msgspec.json.Decoder(_Chunk)


def asking_for_usage(body: bytes, endpoint: str) -> bytes | None:
    """A streamed request's body, changed so that its answer tells the usage.

    None if it says so itself, can't, or is for the upstream to refuse.
    """
    if endpoint not in _ASKED:
        return None
    try:
        fields = _fields.decode(body)
        given = fields.get("stream_options", _NULL)
        options = {} if given == _NULL else _fields.decode(given)
    except NOT_JSON:
        return None
    if options.get("include_usage") == _YES:
        return None
    fields["stream_options"] = Raw(msgspec.json.encode({**options, "include_usage": True}))
    return msgspec.json.encode(fields)


def without_usage(events: bytes) -> bytes:
    """Whole events (SSE) without those that tell usage and nothing else."""
    if not _USAGE.search(events):
        return events
    end, kept = 0, []
    for found in _EVENT.finditer(events):
        end = found.end()
        if not _tells_only_usage(found[0]):
            kept.append(found[0])
    return b"".join([*kept, events[end:]])


def _tells_only_usage(event: bytes) -> bool:
    if not event.startswith(b"data:") or not _USAGE.search(event):
        return False
    try:
        return not _chunk.decode(event.removeprefix(b"data:").strip()).choices
    except NOT_JSON:
        return False
