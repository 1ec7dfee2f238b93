"""`backhaul keys`: API keys and their budgets, on the operator's side, through Kafka."""

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
from api.cli.failure import Failure, Misuse
from api.cli.kafka import KafkaData, KafkaServers, kafka_settings, run
from api.cli.options import AsJSON
from api.cli.terminal import note, out, out_json

if TYPE_CHECKING:
    from schemas.records import ApiKeyRecord
    from streams.settings import Settings

_MS = 1000
_TENANT_WIDTH = 16
_NAME_WIDTH = 11

app = typer.Typer(no_args_is_help=True, add_completion=False, help="API keys of tenants.")


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Whose key; batches belong to the tenant.")],
    name: Annotated[str, typer.Option("--name", help="What it is for.")] = "",
    as_json: AsJSON = False,
    kafka: KafkaServers = None,
    data_dir: KafkaData = None,
) -> None:
    """Make an API key. Its secret is shown once and stored nowhere."""
    from api.accounts.keys import InvalidKeyName

    try:
        record, secret = run(_create(kafka_settings(kafka, data_dir), tenant, name))
    except InvalidKeyName as error:
        raise Misuse(str(error)) from error
    if as_json:
        out_json({**_shown(record), "secret": secret})
        return
    note(f"Key {record.key_id} of tenant {record.tenant}; its secret, shown this once:")
    out(secret)


@app.command("list")
def list_all(
    as_json: AsJSON = False, kafka: KafkaServers = None, data_dir: KafkaData = None
) -> None:
    """List all keys, oldest first. With --json one a line."""
    records = run(_list(kafka_settings(kafka, data_dir)))
    if as_json:
        for record in records:
            out_json(_shown(record))
        return
    if not records:
        note("No keys.")
        return
    out(f"{'KEY':<36} {'TENANT':<{_TENANT_WIDTH}} {'NAME':<{_NAME_WIDTH}} STATE")
    for record in records:
        out(_row(record))


@app.command("set")
def set_(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id, or its beginning.")],
    budget: BudgetAmount = None,
    budget_period: BudgetPeriod = None,
    as_json: AsJSON = False,
    kafka: KafkaServers = None,
    data_dir: KafkaData = None,
) -> None:
    """Set what batches created with a key may cost; above it they wait."""
    settings = kafka_settings(kafka, data_dir)
    changes = budget_changes(settings, budget, budget_period)
    if not changes:
        raise Misuse("Give --budget, --budget-period, or both.")
    record = run(_change(settings, key_id, changes))
    if as_json:
        out_json(_shown(record))
        return
    out(_row(record))


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id, or its beginning.")],
    as_json: AsJSON = False,
    kafka: KafkaServers = None,
    data_dir: KafkaData = None,
) -> None:
    """Revoke a key, for good; requests with it are refused from then on."""
    record = run(_revoke(kafka_settings(kafka, data_dir), key_id))
    if as_json:
        out_json(_shown(record))
        return
    out(f"{record.key_id} of tenant {record.tenant} is revoked.")


async def _create(settings: Settings, tenant: str, name: str) -> tuple[ApiKeyRecord, str]:
    from api.accounts.keys import create_key
    from streams.kafka.producer import RecordProducer

    producer = RecordProducer(settings)
    await producer.start()
    try:
        return await create_key(producer, tenant, name)
    finally:
        await producer.stop()


async def _list(settings: Settings) -> list[ApiKeyRecord]:
    from api.accounts.keys import list_keys
    from schemas.topics import ACCOUNT
    from streams.kafka.reader import TopicReader

    return await list_keys(TopicReader(settings, [ACCOUNT]))


async def _change(settings: Settings, key_id: str, changes: dict[str, Any]) -> ApiKeyRecord:
    from api.accounts.keys import change_key
    from streams.kafka.producer import RecordProducer

    key = await _found(settings, key_id)
    producer = RecordProducer(settings)
    await producer.start()
    try:
        return await change_key(producer, key, changes)
    finally:
        await producer.stop()


async def _revoke(settings: Settings, key_id: str) -> ApiKeyRecord:
    from api.accounts.keys import revoke_key
    from streams.kafka.producer import RecordProducer

    key = await _found(settings, key_id)
    producer = RecordProducer(settings)
    await producer.start()
    try:
        return await revoke_key(producer, key)
    finally:
        await producer.stop()


async def _found(settings: Settings, key_id: str) -> ApiKeyRecord:
    """The key whose id this is, or begins so. Raises Failure."""
    found = [record for record in await _list(settings) if record.key_id.startswith(key_id)]
    exact = [record for record in found if record.key_id == key_id]
    if len(exact or found) != 1:
        what = "No key's id begins" if not found else f"{len(found)} keys' ids begin"
        raise Failure(f"{what} with {key_id!r}.", "`backhaul keys list` shows them all.")
    return (exact or found)[0]


def _shown(record: ApiKeyRecord) -> dict[str, Any]:
    """What may be shown of a key."""
    revoked = record.revoked_at_ms
    return {
        "key_id": record.key_id,
        "tenant": record.tenant,
        "name": record.name,
        "hint": record.hint,
        "created_at": record.created_at_ms // _MS,
        "revoked_at": None if revoked is None else revoked // _MS,
        "budget": budget_shown(record.budget_micros, record.budget_period),
    }


def _row(record: ApiKeyRecord) -> str:
    budget = ""
    if record.budget_micros is not None:
        budget = f", budget {budget_text(record.budget_micros, record.budget_period)}"
    state = "revoked" if record.revoked_at_ms is not None else f"…{record.hint}"
    return (
        f"{record.key_id:<36} {_fit(record.tenant, _TENANT_WIDTH)} "
        f"{_fit(record.name, _NAME_WIDTH)} {state}{budget}"
    )


def _fit(text: str, width: int) -> str:
    return f"{text:<{width}}" if len(text) <= width else f"{text[: width - 1]}…"
