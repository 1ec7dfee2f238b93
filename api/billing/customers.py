"""Billing as operators see it on Kafka: whom tenants are billed to, and what became of amounts."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from api.accounts.keys import check_tenant
from api.log_port import LogProducer, LogReader
from schemas.records import BillingCustomer, BillingReport, MeterSend
from schemas.topics import ACCOUNT
from streams.domain.billing.meter.customers import key_of, tenant_of
from streams.domain.billing.reports.amounts import BillingStatus
from streams.domain.clock import Clock, SystemClock
from streams.kafka.reader import ReadRecord

#: Stripe's are `cus_` and some letters and digits; stand-ins may have other ones.
_CUSTOMER = re.compile(r"[A-Za-z0-9_-]{1,255}")


class InvalidCustomer(ValueError):  # noqa: N818 - it is what is wrong
    """What was given can't be the id of a customer; the message says why."""


async def set_customer(
    producer: LogProducer, tenant: str, customer: str, *, clock: Clock | None = None
) -> BillingCustomer:
    """Bills the tenant's usage to the customer from now on.

    Whether Stripe has such a customer is not asked. Raises InvalidKeyName, InvalidCustomer,
    KafkaBaseError.
    """
    check_tenant(tenant)
    if not _CUSTOMER.fullmatch(customer):
        raise InvalidCustomer(
            "A customer's id is 1 to 255 letters, digits, '-' and '_', like cus_NffrFeUfNV2Hib."
        )
    now_ms = (clock or SystemClock()).now_ms()
    record = BillingCustomer(tenant=tenant, stripe_customer_id=customer, at_ms=now_ms)
    await producer.send(ACCOUNT, key_of(tenant), record)
    return record


async def unset_customer(producer: LogProducer, tenant: str) -> None:
    """Bills the tenant to nobody: its usage waits. Raises InvalidKeyName, KafkaBaseError."""
    check_tenant(tenant)
    await producer.send(ACCOUNT, key_of(tenant), None)


async def list_customers(reader: LogReader) -> list[BillingCustomer]:
    """Whom each tenant is billed to, by tenant; `reader` is a fresh one of the topic ACCOUNT.

    Raises KafkaBaseError.
    """
    found: dict[str, BillingCustomer] = {}
    async for read in all_records(reader):
        tenant = tenant_of(read.key)
        if tenant is None:
            continue
        if isinstance(read.record, BillingCustomer):
            found[tenant] = read.record
        elif read.record is None:
            found.pop(tenant, None)
    return [found[tenant] for tenant in sorted(found)]


async def read_status(reader: LogReader) -> BillingStatus:
    """What became of all amounts, and what Stripe said of them later.

    reader: a fresh one of METER_SEND and BILLING_REPORT. Raises KafkaBaseError.
    """
    status = BillingStatus()
    async for read in all_records(reader):
        if isinstance(read.record, MeterSend):
            status.apply(read.record)
        elif isinstance(read.record, BillingReport):
            status.reports.apply(read.record)
    return status


async def all_records(reader: LogReader, since_ms: int | None = None) -> AsyncIterator[ReadRecord]:
    """What the topics of a fresh reader hold now, or what of it came since.

    Raises KafkaBaseError.
    """
    await reader.start("beginning")
    try:
        if since_ms is not None:
            await reader.go_to(since_ms)
        ends = await reader.ends()
        while any(reader.positions().get(place, 0) < end for place, end in ends.items()):
            for read in await reader.poll():
                yield read
    finally:
        await reader.stop()
