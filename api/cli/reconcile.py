"""`backhaul billing reconcile`: are output files, ledger, sends and the sink's sums equal?"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.failure import BooksDiffer, Failure, Misuse
from api.cli.kafka import KafkaData, KafkaServers, kafka_settings, run
from api.cli.options import AsJSON

if TYPE_CHECKING:
    from api.billing.reconcile.run import Places, Report
    from api.billing.reconcile.scope import Scope
    from streams.ports.meter_sink import MeterSink
    from streams.settings import Settings


def reconcile(
    batch: Annotated[str | None, typer.Option(metavar="ID", help="This batch only.")] = None,
    day: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            metavar="YYYY-MM-DD",
            help="Batches created on this day (UTC). Else those of the last 30 days.",
        ),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="This tenant's batches only.")] = None,
    as_json: AsJSON = False,
    kafka: KafkaServers = None,
    data_dir: KafkaData = None,
) -> None:
    """Compare output files, ledger, what was sent and Stripe's sums, token for token.

    Exit code 5 if anything differs. What is still on its way is no difference.
    """
    from api.billing.reconcile.scope import scope_of
    from api.cli import reconcile_view as view

    if batch is not None and day is not None:
        raise Misuse("Give --batch or --day, not both.")
    settings = _settings(kafka, data_dir)
    now_ms = time.time_ns() // 1_000_000
    scope = scope_of(batch, None if day is None else day.date(), tenant, now_ms)
    report = run(_reconcile(settings, scope, now_ms))
    if batch is not None and not report.batches and not report.running and not report.sends:
        raise Failure(f"There is no batch {batch}.", "`backhaul list` shows a tenant's batches.")
    (view.print_json if as_json else view.print_all)(report)
    if not report.balanced:
        raise BooksDiffer(
            "The books differ; see above.",
            "docs/billing.md says under `Reconcile` what each difference means.",
        )


def _settings(kafka: str | None, data_dir: Path | None) -> Settings:
    """Those of Kafka, and where `backhaul up` keeps its data."""
    settings = kafka_settings(kafka, data_dir)
    return settings if data_dir is None else settings.model_copy(update={"data_dir": data_dir})


async def _reconcile(settings: Settings, scope: Scope, now_ms: int) -> Report:
    from api.billing.reconcile.run import reconcile as compare
    from streams.ports.meter_sink import SinkUnavailable
    from streams.ports.object_store import ObjectStoreError

    places = _places(settings)
    try:
        return await compare(places, scope, now_ms)
    except ObjectStoreError as error:
        raise Failure(f"Output files can't be read: {error}") from error
    except SinkUnavailable as error:
        raise Failure(
            f"What was billed can't be asked: {error.reason}.",
            "Is BACKHAUL_STRIPE_KEY a key that may read meters? Try again later otherwise.",
        ) from error
    finally:
        if places.sink is not None:
            await places.sink.close()


def _places(settings: Settings) -> Places:
    from api.billing.reconcile.run import Places
    from streams.adapters.object_store import open_store
    from streams.kafka.reader import TopicReader

    url = settings.resolved_store_url
    if settings.store_url is None and not Path(url).is_dir():
        raise Misuse(
            f"There are no output files at {url}.",
            "Name the object store in BACKHAUL_STORE_URL, or the data folder with --data.",
        )
    return Places(
        reader=lambda topics: TopicReader(settings, topics),
        store=open_store(url),
        sink=_sink(settings),
        window_s=settings.meter_window_s,
    )


def _sink(settings: Settings) -> MeterSink | None:
    """Where usage is billed; None if nothing here says so."""
    from streams.adapters.meter_sink import open_sink, usage_folder

    key = settings.stripe_key
    if key is None and not usage_folder(settings.data_dir).is_dir():
        return None
    secret = None if key is None else key.get_secret_value()
    return open_sink(secret, settings.stripe_api_base, settings.data_dir)
