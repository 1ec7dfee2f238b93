"""What a request for usage asks: which batches, grouped how, and from where on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from aiohttp import web

from api import checks
from api.errors import InvalidRequest
from streams.domain.clock import Clock

GROUPS = ("day", "model", "batch", "key")
GROUPS_OF_REALTIME = ("day", "model")
_KNOWN_OF_REALTIME = ("group_by", "start_time", "end_time", "format")
_KNOWN = ("group_by", "start_time", "end_time", "limit", "after", "format")
_FORMATS = ("json", "csv")
_DEFAULT_DAYS = 30
#: More than that is asked for in several requests: a day may have many batches.
_MAX_DAYS = 366
_DAY_S = 86_400
_DEFAULT_LIMIT, _MAX_LIMIT = 31, 1000
_MAX_ID = 256
#: The year 9999, beyond which there are no dates.
_MAX_TIME = 253_402_300_799


@dataclass(frozen=True, kw_only=True)
class UsageQuery:
    """A request found good. start_s, end_s: Unix seconds, the end not included.

    limit: most buckets (days or batches) of a page. after: the batch's id or the day that the
    page begins behind, if it isn't the first.
    """

    groups: frozenset[str]
    start_s: int
    end_s: int
    limit: int
    after: str | None
    csv: bool

    @property
    def bucket(self) -> str | None:
        """What pages are made of; None if the answer is one page."""
        return next((group for group in ("batch", "day") if group in self.groups), None)


def usage_query(request: web.Request, clock: Clock) -> UsageQuery:
    """The request's parameters. Raises InvalidRequest."""
    return _parsed(request, clock, _KNOWN, GROUPS)


def realtime_usage_query(request: web.Request, clock: Clock) -> UsageQuery:
    """The same for usage of real-time requests, all in one page. Raises InvalidRequest."""
    return _parsed(request, clock, _KNOWN_OF_REALTIME, GROUPS_OF_REALTIME)


def _parsed(
    request: web.Request, clock: Clock, known: Sequence[str], offered: Sequence[str]
) -> UsageQuery:
    query = request.query
    checks.known_only(dict(query), known)
    groups = _groups(query.getall("group_by", ["day"]), offered)
    end_s = _time(query.get("end_time"), "end_time") or clock.now_ms() // 1000 + 1
    first_s = (end_s - 1) // _DAY_S * _DAY_S - (_DEFAULT_DAYS - 1) * _DAY_S
    start_s = _time(query.get("start_time"), "start_time")
    found = UsageQuery(
        groups=groups,
        start_s=max(0, first_s) if start_s is None else start_s,
        end_s=end_s,
        limit=_limit(query.get("limit")),
        after=query.get("after") or None,
        csv=_is_csv(request),
    )
    if found.end_s - found.start_s > _MAX_DAYS * _DAY_S:
        raise _invalid("start_time", f"at most {_MAX_DAYS} days can be asked for at once.")
    if found.after is not None:
        checks.at_most("after", found.after, _MAX_ID)
    if found.csv and (found.after is not None or "limit" in query):
        raise _invalid("format", "CSV has all rows; 'limit' and 'after' are for JSON.")
    if found.bucket is None and found.after is not None:
        raise _invalid("after", "without 'day' or 'batch' in 'group_by' there is only one page.")
    return found


def day_of(unix_s: int) -> str:
    """The UTC day, such as `2026-11-28`."""
    return datetime.fromtimestamp(unix_s, UTC).date().isoformat()


def day_start_s(day: str) -> int:
    """When a day began, Unix seconds. Raises InvalidRequest."""
    try:
        return int((date.fromisoformat(day) - date(1970, 1, 1)) / timedelta(seconds=1))
    except ValueError as error:
        raise _invalid("after", "expected a day such as 2026-11-28.") from error


def _groups(values: list[str], offered: Sequence[str]) -> frozenset[str]:
    groups = [group for value in values for group in value.split(",") if group]
    for group in groups:
        if group not in offered:
            raise checks.unsupported("group_by", group, offered)
    return frozenset(groups)


def _time(text: str | None, param: str) -> int | None:
    if text is None:
        return None
    return checks.within(param, checks.integer_text(param, text), 0, _MAX_TIME)


def _limit(text: str | None) -> int:
    if text is None:
        return _DEFAULT_LIMIT
    return checks.within("limit", checks.integer_text("limit", text), 1, _MAX_LIMIT)


def _is_csv(request: web.Request) -> bool:
    wanted = request.query.get("format")
    if wanted is None:
        return request.headers.get("Accept", "").split(";")[0].strip() == "text/csv"
    if wanted not in _FORMATS:
        raise checks.unsupported("format", wanted, _FORMATS)
    return wanted == "csv"


def _invalid(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': {why}", param=param, code="invalid_value")
