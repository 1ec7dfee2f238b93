"""The webhook-worker's memory of deliveries: its table's rows, and what the gateways are shown."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from schemas.partitions import partition_for
from schemas.records import DeliveryState, Record, WebhookDelivery, WebhookState
from schemas.topics import WEBHOOK_DELIVERY, Topic
from streams.domain.webhooks.deliveries import key_of
from streams.kafka.producer import Place

_PUBLISH_S = 0.05
_AT_ONCE = 500

Row = WebhookDelivery | WebhookState


@dataclass(frozen=True, slots=True)
class Cause:
    """The event that a row follows from."""

    partition: int
    offset: int


class Rows(Protocol):
    """A table of rows (streams.kafka.tables.RowTable)."""

    def put(self, key: str, row: Row, cause: Cause) -> None: ...

    def delete(self, key: str, cause: Cause) -> None: ...

    def items(self) -> Iterator[tuple[str, Row]]: ...


class Publisher(Protocol):
    """The role's producer (streams.kafka.producer.RecordProducer)."""

    async def send(self, topic: Topic, key: str, record: Record | None) -> Place: ...


class Guard(Protocol):
    """The role's fence (streams.kafka.fence.Fence)."""

    async def wait(self) -> None: ...


class Books:
    """Deliveries and states by endpoint, of the partitions held, and the only writer of both."""

    def __init__(self, rows: Rows, publisher: Publisher, guard: Guard) -> None:
        self._rows = rows
        self._publisher = publisher
        self._guard = guard
        self._partitions = 1
        self._unpublished: dict[str, Row | None] = {}
        self.deliveries: dict[str, dict[str, WebhookDelivery]] = {}
        self._states: dict[str, WebhookState] = {}

    def load(self, held: Iterable[int], partitions: int) -> None:
        """Starts over with what the table has of these partitions, of so many in all."""
        self.clear()
        self._partitions = partitions
        mine = set(held)
        for key, row in self._rows.items():
            if partition_for(row.tenant, partitions) in mine:
                self._remember(row)
                # A crash may have come before it was published.
                self._unpublished[key] = row

    def clear(self) -> None:
        """Forgets everything: the partitions are another's."""
        self.deliveries.clear()
        self._states.clear()
        self._unpublished.clear()

    def get(self, endpoint_id: str, event: str) -> WebhookDelivery | None:
        """The delivery, if it is kept."""
        return self.deliveries.get(endpoint_id, {}).get(event)

    def state(self, tenant: str, endpoint_id: str) -> WebhookState:
        """The endpoint's state; that of one without a row is fresh."""
        known = self._states.get(endpoint_id)
        return known or WebhookState(endpoint_id=endpoint_id, tenant=tenant, watermark=-1)

    def of(self, endpoint_id: str) -> list[WebhookDelivery]:
        """All deliveries of an endpoint that are kept."""
        return list(self.deliveries.get(endpoint_id, {}).values())

    def pending(self, endpoint_id: str) -> list[WebhookDelivery]:
        """Those that are neither delivered nor given up."""
        return [d for d in self.of(endpoint_id) if d.state is DeliveryState.PENDING]

    def endpoints(self) -> set[str]:
        """Every endpoint of which something is kept."""
        return {*self.deliveries, *self._states}

    def put(self, row: Row) -> None:
        """Writes a row and shows it soon."""
        key = _key(row)
        self._remember(row)
        self._rows.put(key, row, self._cause(row))
        self._unpublished[key] = row

    def delete(self, row: Row) -> None:
        """Deletes a row, also from what is shown."""
        key = _key(row)
        if isinstance(row, WebhookDelivery):
            self.deliveries.get(row.endpoint_id, {}).pop(row.event_id, None)
        self._rows.delete(key, self._cause(row))
        self._unpublished[key] = None

    def forget(self, endpoint_id: str) -> None:
        """Deletes everything of an endpoint that is gone."""
        for delivery in self.of(endpoint_id):
            self.delete(delivery)
        self.deliveries.pop(endpoint_id, None)
        state = self._states.pop(endpoint_id, None)
        if state is not None:
            self.delete(state)

    async def publish(self) -> None:
        """Publishes what changed, for ever."""
        while True:
            await asyncio.sleep(_PUBLISH_S)
            while self._unpublished:
                await self._guard.wait()
                keys = list(self._unpublished)[:_AT_ONCE]
                changed = [(key, self._unpublished.pop(key)) for key in keys]
                await asyncio.gather(
                    *(self._publisher.send(WEBHOOK_DELIVERY, key, row) for key, row in changed)
                )

    def _remember(self, row: Row) -> None:
        if isinstance(row, WebhookDelivery):
            self.deliveries.setdefault(row.endpoint_id, {})[row.event_id] = row
        else:
            self._states[row.endpoint_id] = row

    def _cause(self, row: Row) -> Cause:
        return Cause(partition_for(row.tenant, self._partitions), max(0, row.watermark))


def _key(row: Row) -> str:
    if isinstance(row, WebhookDelivery):
        return key_of(row.endpoint_id, row.event_id)
    return row.endpoint_id
