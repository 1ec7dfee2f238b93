"""`backhaul tenants`: what each tenant may have enqueued and spend, on the operator's side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.budgets import (
    BudgetAmount,
    BudgetPeriod,
    budget_changes,
    budget_shown,
    budget_text,
)
from api.cli.failure import Misuse
from api.cli.kafka import KafkaData, KafkaServers, kafka_settings, run
from api.cli.options import AsJSON
from api.cli.terminal import note, out, out_json

if TYPE_CHECKING:
    from api.accounts.tenants import TenantShown
    from schemas.records import TenantRecord
    from streams.settings import Settings

_MS = 1000
_NONE = "none"
_MOST = 10**15

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Tenants: limits and keys.")


@app.command("set")
def set_(
    tenant: Annotated[str, typer.Argument(help="Whose limits.")],
    lines: Annotated[
        str | None,
        typer.Option(
            "--max-enqueued-lines",
            metavar="N|none",
            help="Most lines of its running batches that are not done.",
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--max-enqueued-tokens",
            metavar="N|none",
            help="Most estimated input tokens of these lines.",
        ),
    ] = None,
    budget: BudgetAmount = None,
    budget_period: BudgetPeriod = None,
    as_json: AsJSON = False,
    kafka: KafkaServers = None,
    data_dir: KafkaData = None,
) -> None:
    """Set a tenant's limits and its budget: batches above them are accepted, and wait."""
    from api.accounts.keys import InvalidKeyName

    asked = {"max_enqueued_lines": lines, "max_enqueued_tokens": tokens}
    settings = kafka_settings(kafka, data_dir)
    changes = {
        **{name: _limit(name, text) for name, text in asked.items() if text is not None},
        **budget_changes(settings, budget, budget_period),
    }
    if not changes:
        raise Misuse("Give a limit (--max-enqueued-lines, --max-enqueued-tokens) or a --budget.")
    try:
        record = run(_set(settings, tenant, changes))
    except InvalidKeyName as error:
        raise Misuse(str(error)) from error
    if as_json:
        out_json(_shown(record))
        return
    out(_row(record))


@app.command("list")
def list_all(
    as_json: AsJSON = False, kafka: KafkaServers = None, data_dir: KafkaData = None
) -> None:
    """List all tenants with their limits. With --json one a line."""
    tenants = run(_list(kafka_settings(kafka, data_dir)))
    if as_json:
        for tenant in tenants:
            out_json({**_shown(tenant.limits), "keys": tenant.keys})
        return
    if not tenants:
        note("No tenants.")
        return
    out(f"{'TENANT':<24} {'MAX LINES':>12} {'MAX TOKENS':>16} {'BUDGET':>18} {'KEYS':>5}")
    for tenant in tenants:
        out(f"{_row(tenant.limits)} {tenant.keys:>5}")


async def _set(settings: Settings, tenant: str, changes: dict[str, Any]) -> TenantRecord:
    from api.accounts.tenants import set_limits
    from schemas.topics import ACCOUNT
    from streams.kafka.producer import RecordProducer
    from streams.kafka.reader import TopicReader

    producer = RecordProducer(settings)
    await producer.start()
    try:
        return await set_limits(producer, TopicReader(settings, [ACCOUNT]), tenant, changes)
    finally:
        await producer.stop()


async def _list(settings: Settings) -> list[TenantShown]:
    from api.accounts.tenants import list_tenants
    from schemas.topics import ACCOUNT
    from streams.kafka.reader import TopicReader

    return await list_tenants(TopicReader(settings, [ACCOUNT]))


def _limit(name: str, text: str) -> int | None:
    """A limit as it was typed. Raises Misuse."""
    if text.lower() == _NONE:
        return None
    if text.isascii() and text.isdigit() and 1 <= int(text) <= _MOST:
        return int(text)
    option = f"--{name.replace('_', '-')}"
    raise Misuse(f"{option} is a whole number of at least 1, or '{_NONE}', not {text!r}.")


def _shown(record: TenantRecord) -> dict[str, Any]:
    return {
        "tenant": record.tenant,
        "max_enqueued_lines": record.max_enqueued_lines,
        "max_enqueued_tokens": record.max_enqueued_tokens,
        "budget": budget_shown(record.budget_micros, record.budget_period),
        "set_at": record.at_ms // _MS or None,
    }


def _row(record: TenantRecord) -> str:
    lines, tokens = (
        _NONE if limit is None else f"{limit:,}"
        for limit in (record.max_enqueued_lines, record.max_enqueued_tokens)
    )
    budget = budget_text(record.budget_micros, record.budget_period)
    return f"{record.tenant:<24} {lines:>12} {tokens:>16} {budget:>18}"
