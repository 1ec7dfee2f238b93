"""Query parameters of lists, judged once for all of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from aiohttp import web

from api import checks
from api.errors import InvalidRequest
from api.read_model.queries import Order

_MAX_ID = 256


@dataclass(frozen=True, kw_only=True)
class Paging:
    """after: the id behind which the page begins; None for the first page."""

    limit: int
    after: str | None
    order: Order


def paging(request: web.Request, *, default: int, maximum: int, known: Collection[str]) -> Paging:
    """The parameters of a list. Raises InvalidRequest."""
    query = request.query
    checks.known_only(dict(query), known)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise checks.unsupported("order", order, ("asc", "desc"))
    limit = default
    if "limit" in query:
        limit = checks.within("limit", checks.integer_text("limit", query["limit"]), 1, maximum)
    after = query.get("after") or None
    if after is not None:
        checks.at_most("after", after, _MAX_ID)
    return Paging(limit=limit, after=after, order="asc" if order == "asc" else "desc")


def unknown_after(after: str) -> InvalidRequest:
    """The error for a page that begins behind nothing: silence would begin at the first again."""
    return InvalidRequest(
        f"Invalid 'after': there is no object with id '{after}'.",
        param="after",
        code="invalid_value",
    )
