"""Real-time usage in the read model: the amounts of meter.send that belong to no batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import aiosqlite

from api.read_model.statement import Statement
from schemas.records import MeterSend, SendState
from streams.domain.billing.prices.book import REALTIME
from streams.domain.billing.tokens import TokenType
from streams.kafka.reader import ReadRecord

REALTIME_TABLES = """
CREATE TABLE realtime_sends (
    identifier TEXT PRIMARY KEY, tenant TEXT NOT NULL, day_s INTEGER NOT NULL,
    endpoint TEXT NOT NULL, model TEXT NOT NULL, token_type TEXT NOT NULL,
    tokens INTEGER NOT NULL, confirmed INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX realtime_sends_of_tenant ON realtime_sends (tenant, day_s);
"""

_SEND = "INSERT OR REPLACE INTO realtime_sends VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_GONE = "DELETE FROM realtime_sends WHERE identifier = ?"
_SUMS = """
SELECT day_s, endpoint, model, token_type, sum(tokens), min(confirmed) FROM realtime_sends
WHERE tenant = ? AND day_s >= ? AND day_s < ?
GROUP BY day_s, endpoint, model, token_type ORDER BY day_s DESC, model, endpoint
"""
_TYPES = frozenset(kind.value for kind in TokenType)
#: Never to be billed, or not any more.
_OFF = (SendState.CANCELLING, SendState.CANCELLED, SendState.WRITTEN_OFF)


@dataclass(frozen=True, slots=True)
class RealtimeSum:
    """Tokens of one type, one model and one endpoint on the day that began at `day_s`.

    confirmed: 1 if all of it has arrived where it is billed, else 0.
    """

    day_s: int
    endpoint: str
    model: str
    token_type: str
    tokens: int
    confirmed: int


def realtime_statements(read: ReadRecord) -> Iterator[Statement]:
    """The statements that fold a record of meter.send."""
    send = read.record
    if not isinstance(send, MeterSend) or send.completion_window != REALTIME:
        return
    if send.token_type not in _TYPES:
        return
    # Absurd figures are nobody's bill until somebody has looked.
    if send.state in _OFF or (send.flagged and send.state is SendState.PARKED):
        yield _GONE, (send.identifier,)
    else:
        day_s = send.batch_created_at_ms // 1000
        place = (send.identifier, send.tenant, day_s, send.endpoint, send.model, send.token_type)
        yield _SEND, (*place, send.tokens, send.state is SendState.CONFIRMED)


class RealtimeQueries:
    """Reads one connection of the read model's database. Each question is one tenant's."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def sums(self, tenant: str, start_s: int, end_s: int) -> list[RealtimeSum]:
        """Sums of the days that begin in that time, Unix seconds, the newest day first."""
        rows = await self._connection.execute_fetchall(_SUMS, (tenant, start_s, end_s))
        return [RealtimeSum(*row) for row in rows]
