"""The meter's tables, what is on its way to the bill, who pays, and what Stripe reports."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from schemas.records.common import Usage


class BillingCustomer(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a tenant's usage is billed to; the last record counts, a tombstone ends it."""

    tenant: str
    stripe_customer_id: str
    at_ms: int


class MeteredUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the accepted lines of one model."""

    model: str
    flagged: bool
    lines: int
    usage: Usage = Usage()


class MeterChunkRow(msgspec.Struct, frozen=True, kw_only=True):
    """Value of the meter's table 'chunks': the usage of 512 lines of a batch."""

    tenant: str
    batch_id: str
    chunk: int
    watermark: int
    endpoint: str
    completion_window: str
    batch_created_at_ms: int
    last_at_ms: int
    accepted: bytes
    sums: tuple[MeteredUsage, ...]


class SendState(StrEnum):
    """Where a send is."""

    UNKNOWN = "unknown"
    #: Written down, never tried.
    PENDING = "pending"
    #: Tried or about to be: whether it arrived is not known.
    SENT = "sent"
    #: It arrived.
    CONFIRMED = "confirmed"
    #: Refused for good.
    REJECTED = "rejected"
    #: Waits for something else than time, or for somebody to look.
    PARKED = "parked"
    #: It arrived and is being taken back.
    CANCELLING = "cancelling"
    #: It was taken back.
    CANCELLED = "cancelled"
    #: An operator gave it up: it is never billed.
    WRITTEN_OFF = "written_off"


class BillingCommandKind(StrEnum):
    """What an operator decides about an amount."""

    UNKNOWN = "unknown"
    #: Take back what arrived.
    CANCEL = "cancel"
    #: Send what waits for a decision.
    SEND = "send"
    #: Never bill what waits.
    WRITE_OFF = "write_off"
    #: It is at the sink already, whatever its sums seemed to say.
    ARRIVED = "arrived"


class BillingCommand(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's decision about an amount, for the meter to carry out."""

    command_id: str
    tenant: str
    identifier: str
    kind: BillingCommandKind
    reason: str
    by: str
    at_ms: int


class BillingDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a command; the books keep it for ever."""

    command: BillingCommand
    done: bool
    refusal: str = ""
    tokens: int
    at_ms: int


class MeterSend(msgspec.Struct, frozen=True, kw_only=True):
    """An amount of tokens on its way to the bill: a row of the meter's table, and its history."""

    identifier: str
    watermark: int
    tenant: str
    batch_id: str
    endpoint: str
    completion_window: str
    batch_created_at_ms: int
    model: str
    token_type: str
    flagged: bool
    flush: int
    tokens: int
    at_ms: int
    state: SendState
    reason: str = ""
    customer: str | None = None
    event_name: str | None = None
    first_sent_at_ms: int | None = None
    changed_at_ms: int
    command: BillingCommand | None = None
    command_offset: int = -1
    command_refusal: str = ""


class BillingReportError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with some of the usage."""

    code: str
    count: int
    identifiers: tuple[str, ...]


class BillingReport(msgspec.Struct, frozen=True, kw_only=True):
    """Stripe tells that it took usage and then found that it can't be billed."""

    event_id: str
    event_type: str
    at_ms: int
    meter_id: str | None = None
    asked: bool
    errors: tuple[BillingReportError, ...]
