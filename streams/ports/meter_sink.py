"""Where metered tokens go to be billed: Stripe, a file, or a fake of Stripe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class RefusalCode(StrEnum):
    """Why an event will not be taken; the names are Stripe's."""

    ARCHIVED_METER = "archived_meter"
    CUSTOMER_NOT_FOUND = "meter_event_customer_not_found"
    DIMENSION_COUNT_TOO_HIGH = "meter_event_dimension_count_too_high"
    INVALID_VALUE = "meter_event_invalid_value"
    NO_CUSTOMER_DEFINED = "meter_event_no_customer_defined"
    VALUE_TOO_MANY_DIGITS = "meter_event_value_too_many_digits"
    MISSING_DIMENSION_KEYS = "missing_dimension_payload_keys"
    NO_METER = "no_meter"
    TIMESTAMP_IN_FUTURE = "timestamp_in_future"
    TIMESTAMP_TOO_OLD = "timestamp_too_far_in_past"
    #: Anything else that the sink says is our mistake.
    INVALID_REQUEST = "invalid_request"

    @property
    def is_fixable(self) -> bool:
        """Whether the same event may be taken later, once an operator has seen to it."""
        return self in (
            RefusalCode.ARCHIVED_METER,
            RefusalCode.CUSTOMER_NOT_FOUND,
            RefusalCode.NO_METER,
        )


class MeterSinkError(Exception):
    """The sink did not do what it was asked to."""


class SinkUnavailable(MeterSinkError):  # noqa: N818 - a state of the sink, not of the caller
    """Whether it was done is not known; asking the same again later is right.

    reason: a word for a metric. retry_after_s: how long the sink asks to be left alone.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class EventRefused(MeterSinkError):  # noqa: N818 - as above
    """The sink will not take this event."""

    def __init__(self, code: RefusalCode) -> None:
        super().__init__(code.value)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterEvent:
    """Tokens to bill.

    identifier, event_name: at most 100 characters. customer: the sink's name of who pays.
    at_ms: Unix milliseconds, at most 35 days ago. dimensions: shown beside it; never personal.
    """

    identifier: str
    event_name: str
    customer: str
    tokens: int
    at_ms: int
    dimensions: Mapping[str, str] = field(default_factory=dict)


class MeterSink(Protocol):
    """Takes each event once, by its identifier, as long as it remembers that."""

    #: Whether an event needs a customer that was set for the tenant; if not, the tenant is one.
    needs_customer: bool
    #: How long its sums may lack what it has taken.
    sums_lag_s: float

    async def send(self, event: MeterEvent) -> None:
        """Returns when the sink has the event, by this call or by one before it.

        At most one call at a time for a customer and event name. Raises SinkUnavailable,
        EventRefused.
        """
        ...

    async def total(self, customer: str, event_name: str, start_ms: int, end_ms: int) -> int:
        """Tokens in [start, end), both whole minutes. Raises SinkUnavailable, EventRefused."""
        ...

    async def cancel(self, identifier: str, event_name: str) -> None:
        """Takes back an event of the last 24 hours. Raises SinkUnavailable, EventRefused."""
        ...

    async def close(self) -> None:
        """Disconnects. Idempotent."""
        ...
