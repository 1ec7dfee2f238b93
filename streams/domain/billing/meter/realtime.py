"""Usage of real-time requests, on the road that batches' usage takes to the bill.

A worker's requests of one tenant at one endpoint on one day (UTC) are like a batch without a
window, each request a line of it, so that usage which is sent again counts once. What ended on a
day has that day's price.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from schemas.records import LineUsage, UsageRecorded
from streams.domain.billing.prices.book import REALTIME
from streams.domain.outcome.streamed import Used

#: Lines of one record, and models that its lines may be of: their names are a caller's.
MAX_LINES = 2000
MAX_MODELS = 200


@dataclass(slots=True)
class _Day:
    """What is like a batch. lines: so many have their numbers. waiting: not taken yet."""

    batch_id: str
    tenant: str
    endpoint: str
    begins_at_ms: int
    ends_at_ms: int
    lines: int = 0
    models: dict[str, int] = field(default_factory=dict)
    waiting: list[LineUsage] = field(default_factory=list)

    def full(self, model: str) -> bool:
        """Whether this model is one too many: each record names them all."""
        return len(self.models) >= MAX_MODELS and model not in self.models


class RealtimeUsage:
    """The usage of one start of a worker that is not on the log yet."""

    def __init__(self, process: str) -> None:
        """process: another one at each start, since the numbers of lines begin anew."""
        self._process = process
        self._days: dict[tuple[str, str], _Day] = {}
        self._full: list[_Day] = []
        self._begun = 0

    def add(self, tenant: str, endpoint: str, model: str, used: Used, now_ms: int) -> None:
        """A request has ended."""
        day = self._days.get((tenant, endpoint))
        if day is None or now_ms >= day.ends_at_ms or day.full(model):
            if day is not None and day.waiting:
                self._full.append(day)
            day = self._days[tenant, endpoint] = self._begin(tenant, endpoint, now_ms)
        day.waiting.append(
            LineUsage(
                line=day.lines,
                model=day.models.setdefault(model, len(day.models)),
                completed=True,
                usage=used.usage,
                usage_flag=used.flag,
            )
        )
        day.lines += 1

    def take(self, now_ms: int) -> list[UsageRecorded]:
        """All that was added and not taken yet; whoever takes it must get it onto the log."""
        days = [*self._full, *(day for day in self._days.values() if day.waiting)]
        self._full = []
        return [record for day in days for record in _taken(day, now_ms)]

    def _begin(self, tenant: str, endpoint: str, now_ms: int) -> _Day:
        begins = datetime.fromtimestamp(now_ms / 1000, UTC).replace(
            hour=0, minute=0, second=0, microsecond=0
        )
        self._begun += 1
        kind = endpoint.removeprefix("/v1/").replace("/", ".")
        return _Day(
            batch_id=f"realtime_{begins:%Y%m%d}_{self._process}_{self._begun}_{kind}",
            tenant=tenant,
            endpoint=endpoint,
            begins_at_ms=_ms(begins),
            ends_at_ms=_ms(begins + timedelta(days=1)),
        )


def _taken(day: _Day, now_ms: int) -> list[UsageRecorded]:
    waiting, day.waiting = day.waiting, []
    return [
        UsageRecorded(
            usage_id=f"{day.batch_id}:{waiting[at].line}",
            batch_id=day.batch_id,
            tenant=day.tenant,
            at_ms=now_ms,
            endpoint=day.endpoint,
            completion_window=REALTIME,
            batch_created_at_ms=day.begins_at_ms,
            models=tuple(day.models),
            lines=tuple(waiting[at : at + MAX_LINES]),
        )
        for at in range(0, len(waiting), MAX_LINES)
    ]


def _ms(when: datetime) -> int:
    return round(when.timestamp() * 1000)
