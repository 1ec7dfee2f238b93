"""The Range header (RFC 9110, section 14), as far as content is served by it: one range."""

from __future__ import annotations

import re
from collections.abc import Mapping

from aiohttp import hdrs, web

from api.errors import ApiError, RangeNotSatisfiable

_RANGE = re.compile(r"bytes=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*")
_NOTHING: Mapping[str, str] = {}


def asked_range(
    request: web.Request, etag: str | None, size: int, said: Mapping[str, str] = _NOTHING
) -> tuple[int, int] | None:
    """[start, end) of the one range asked for; None for the whole file.

    said: headers of a refusal. What is not one well-formed range is ignored, as the RFC allows.
    Raises RangeNotSatisfiable.
    """
    header = request.headers.get(hdrs.RANGE)
    if_range = request.headers.get(hdrs.IF_RANGE)
    match = _RANGE.fullmatch(header) if header else None
    if match is None or not (match[1] or match[2]) or (if_range is not None and if_range != etag):
        return None
    if match[1]:
        start = int(match[1])
        last = int(match[2]) if match[2] else size - 1
        if match[2] and last < start:
            return None
        end = min(last + 1, size)
    else:
        start, end = max(size - int(match[2]), 0), size
    if start >= end:
        raise _behind_the_end(size, said)
    return start, end


def _behind_the_end(size: int, said: Mapping[str, str]) -> ApiError:
    return RangeNotSatisfiable(
        "The requested range lies behind the end of the file.",
        param="range",
        code="range_not_satisfiable",
        headers={hdrs.CONTENT_RANGE: f"bytes */{size}", **said},
    )
