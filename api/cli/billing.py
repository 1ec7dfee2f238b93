"""`backhaul billing`: whom tenants are billed to and what became of it, straight to Kafka."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli import billing_sync
from api.cli.billing_reports import reports_shown, tell_reports
from api.cli.decide import adjust, release
from api.cli.failure import Exit, Misuse
from api.cli.kafka import KafkaData, KafkaServers, kafka_settings, run
from api.cli.options import AsJSON
from api.cli.reconcile import reconcile
from api.cli.terminal import note, out, out_json

if TYPE_CHECKING:
    from schemas.records import BillingCustomer, MeterSend
    from streams.domain.billing.reports.amounts import BillingStatus
    from streams.settings import Settings

_MS = 1000
#: Rows of parked sends for people; --json has all.
_SHOWN = 20

Tenant = Annotated[str, typer.Argument(help="Whose usage.")]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Billing: customers, what was billed."
)
customers = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Whom each tenant is billed to."
)
app.add_typer(customers, name="customers")
app.command()(billing_sync.sync)
app.command()(reconcile)
app.command()(adjust)
app.command()(release)


@customers.command("set")
def set_(
    tenant: Tenant,
    customer: Annotated[
        str, typer.Argument(metavar="CUSTOMER_ID", help="Stripe's customer, cus_...")
    ],
    as_json: AsJSON = False,
    kafka: KafkaServers = None,
    data_dir: KafkaData = None,
) -> None:
    """Bill a tenant's usage to a customer; what waited for one is sent now."""
    from api.accounts.keys import InvalidKeyName
    from api.billing.customers import InvalidCustomer

    try:
        record = run(_set(kafka_settings(kafka, data_dir), tenant, customer))
    except (InvalidKeyName, InvalidCustomer) as error:
        raise Misuse(str(error)) from error
    if as_json:
        out_json(_customer(record))
        return
    out(f"{record.tenant} is billed to {record.stripe_customer_id}.")


@customers.command("list")
def list_all(
    as_json: AsJSON = False, kafka: KafkaServers = None, data_dir: KafkaData = None
) -> None:
    """List the tenants that have a customer. With --json one a line."""
    records = run(_list(kafka_settings(kafka, data_dir)))
    if as_json:
        for record in records:
            out_json(_customer(record))
        return
    if not records:
        note("No tenant has a customer.")
        return
    out(f"{'TENANT':<64} CUSTOMER")
    for record in records:
        out(f"{record.tenant:<64} {record.stripe_customer_id}")


@customers.command()
def unset(tenant: Tenant, kafka: KafkaServers = None, data_dir: KafkaData = None) -> None:
    """Take a tenant's customer away: usage that isn't on its way yet waits for another one."""
    from api.accounts.keys import InvalidKeyName

    try:
        run(_unset(kafka_settings(kafka, data_dir), tenant))
    except InvalidKeyName as error:
        raise Misuse(str(error)) from error
    out(f"{tenant} has no customer; its usage waits.")


@app.command()
def status(as_json: AsJSON = False, kafka: KafkaServers = None, data_dir: KafkaData = None) -> None:
    """Show what was billed and what waits. Exit code 1 if something waits for a person."""
    found = run(_status(kafka_settings(kafka, data_dir)))
    now_ms = time.time_ns() // 1_000_000
    needs_somebody = found.needs_somebody() or found.reports.fresh(now_ms)
    if as_json:
        out_json({**_status_shown(found), "needs_somebody": needs_somebody})
    else:
        _tell(found, now_ms)
        tell_reports(found)
    if needs_somebody:
        raise typer.Exit(Exit.FAILURE)


async def _set(settings: Settings, tenant: str, customer: str) -> BillingCustomer:
    from api.billing.customers import set_customer
    from streams.kafka.producer import RecordProducer

    producer = RecordProducer(settings)
    await producer.start()
    try:
        return await set_customer(producer, tenant, customer)
    finally:
        await producer.stop()


async def _unset(settings: Settings, tenant: str) -> None:
    from api.billing.customers import unset_customer
    from streams.kafka.producer import RecordProducer

    producer = RecordProducer(settings)
    await producer.start()
    try:
        await unset_customer(producer, tenant)
    finally:
        await producer.stop()


async def _list(settings: Settings) -> list[BillingCustomer]:
    from api.billing.customers import list_customers
    from schemas.topics import ACCOUNT
    from streams.kafka.reader import TopicReader

    return await list_customers(TopicReader(settings, [ACCOUNT]))


async def _status(settings: Settings) -> BillingStatus:
    from api.billing.customers import read_status
    from schemas.topics import BILLING_REPORT, METER_SEND
    from streams.kafka.reader import TopicReader

    return await read_status(TopicReader(settings, [METER_SEND, BILLING_REPORT]))


def _customer(record: BillingCustomer) -> dict[str, Any]:
    return {
        "tenant": record.tenant,
        "stripe_customer_id": record.stripe_customer_id,
        "set_at": record.at_ms // _MS,
    }


def _status_shown(status: BillingStatus) -> dict[str, Any]:
    oldest = status.oldest_open()
    return {
        "states": {
            state.value: {"sends": amount.sends, "tokens": amount.tokens}
            for state, amount in status.by_state().items()
        },
        "meters": [
            {
                "tenant": tenant,
                "meter": meter or None,
                "sent_tokens": tokens.confirmed,
                "waiting_tokens": tokens.waiting,
                "rejected_tokens": tokens.rejected,
                "adjusted_tokens": tokens.adjusted,
            }
            for (tenant, meter), tokens in status.by_meter().items()
        ],
        "stuck": [_send(send) for send in status.stuck()],
        "oldest_unconfirmed": None if oldest is None else _send(oldest),
        "error_reports": reports_shown(status),
    }


def _send(send: MeterSend) -> dict[str, Any]:
    return {
        "identifier": send.identifier,
        "tenant": send.tenant,
        "batch_id": send.batch_id,
        "model": send.model,
        "token_type": send.token_type,
        "tokens": send.tokens,
        "state": send.state.value,
        "reason": send.reason or None,
        "at": send.at_ms // _MS,
    }


def _tell(status: BillingStatus, now_ms: int) -> None:
    states = status.by_state()
    if not states:
        note("Nothing was metered yet.")
        return
    out(f"{'STATE':<10} {'SENDS':>10} {'TOKENS':>18}")
    for state, amount in states.items():
        out(f"{state.value:<10} {amount.sends:>10,} {amount.tokens:>18,}")
    out("")
    out(f"{'TENANT':<16} {'SENT':>16} {'WAITING':>16} {'REJECTED':>16} {'ADJUSTED':>16} METER")
    for (tenant, meter), tokens in status.by_meter().items():
        out(
            f"{tenant:<16} {tokens.confirmed:>16,} {tokens.waiting:>16,} {tokens.rejected:>16,} "
            f"{tokens.adjusted:>16,} "
            f"{meter or '(none yet)'}"
        )
    _tell_stuck(status.stuck())
    oldest = status.oldest_open()
    if oldest is not None:
        age = max(0, now_ms - oldest.at_ms) // _MS
        note(f"The oldest unconfirmed amount, {oldest.identifier}, is {age:,} s old.")


def _tell_stuck(stuck: list[MeterSend]) -> None:
    if not stuck:
        return
    out("")
    out(f"{'STATE':<10} {'REASON':<32} {'TENANT':<16} {'TOKENS':>14} IDENTIFIER, MODEL, TYPE")
    for send in stuck[:_SHOWN]:
        out(
            f"{send.state.value:<10} {send.reason:<32} {send.tenant:<16} {send.tokens:>14,} "
            f"{send.identifier} {send.model} {send.token_type}"
        )
    if len(stuck) > _SHOWN:
        note(f"{len(stuck) - _SHOWN:,} more; --json shows all.")
