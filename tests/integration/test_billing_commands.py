"""`backhaul billing` against a real broker, as its own process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.records import BillingReport, BillingReportError, MeterSend, SendState
from schemas.topics import BILLING_REPORT, METER_SEND
from streams.domain.billing.meter.send import TOO_OLD
from streams.kafka.producer import RecordProducer
from streams.settings import Settings

pytestmark = pytest.mark.kafka
_TIMEOUT_S = 60


def backhaul(settings: Settings, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs the command until it ends."""
    env = {
        **os.environ,
        "BACKHAUL_KAFKA": settings.kafka,
        "BACKHAUL_TOPIC_PREFIX": settings.topic_prefix,
        "BACKHAUL_KAFKA_REPLICAS": "1",
        "BACKHAUL_KAFKA_IDEMPOTENCE": str(settings.kafka_idempotence),
    }
    command = [str(Path(sys.executable).with_name("backhaul")), *args]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )


async def test_operators_set_customers_and_see_what_waits_for_them(
    kafka_settings: Settings,
) -> None:
    assert backhaul(kafka_settings, "topics", "apply").returncode == 0
    assert backhaul(kafka_settings, "billing", "customers", "set", "acme", "cus_1").returncode == 0
    assert "cus_1" in backhaul(kafka_settings, "billing", "customers", "list").stdout
    assert backhaul(kafka_settings, "billing", "customers", "unset", "acme").returncode == 0
    assert "cus_1" not in backhaul(kafka_settings, "billing", "customers", "list").stdout
    assert backhaul(kafka_settings, "billing", "status").returncode == 0
    parked = MeterSend(
        identifier="a",
        watermark=1,
        tenant="acme",
        batch_id="batch_1",
        endpoint="/v1/chat/completions",
        completion_window="24h",
        batch_created_at_ms=1,
        model="m",
        token_type="input",
        flagged=False,
        flush=0,
        tokens=10,
        at_ms=1,
        state=SendState.PARKED,
        reason=TOO_OLD,
        changed_at_ms=1,
    )
    error = BillingReportError(code="no_meter", count=1, identifiers=("a",))
    report = BillingReport(
        event_id="evt_1", event_type="t", at_ms=1, meter_id="mtr_1", asked=True, errors=(error,)
    )
    producer = RecordProducer(kafka_settings)
    await producer.start()
    try:
        await producer.send(METER_SEND, parked.identifier, parked)
        await producer.send(BILLING_REPORT, report.event_id, report)
    finally:
        await producer.stop()
    told = backhaul(kafka_settings, "billing", "status")
    assert told.returncode == 1
    assert TOO_OLD in told.stdout
    assert "a: acme, 10 input tokens of m, batch_1, parked" in told.stdout
