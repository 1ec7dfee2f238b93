"""A real meter beside a real controller: what a batch used is written once, whatever dies."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from schemas.records import MeterSend, SendState
from schemas.topics import METER_SEND
from streams.adapters.meter_file import read_entries
from streams.kafka.failpoint import EXIT_CODE
from streams.kafka.reader import TopicReader
from streams.settings import Settings
from tests.integration.test_billing_commands import backhaul
from tests.support.fleet import running_fleet
from tests.support.lines import exit_code, terminate
from tests.support.waiting import eventually

pytestmark = pytest.mark.kafka
LINES = 1200


@contextmanager
def meter(
    settings: Settings, folder: Path, failpoint: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """A meter that sums up for a second; a failpoint ends it there."""
    env = {
        **os.environ,
        "BACKHAUL_KAFKA": settings.kafka,
        "BACKHAUL_KAFKA_REPLICAS": "1",
        "BACKHAUL_KAFKA_IDEMPOTENCE": str(settings.kafka_idempotence),
        "BACKHAUL_SESSION_TIMEOUT_S": str(settings.session_timeout_s),
        "BACKHAUL_TOPIC_PREFIX": settings.topic_prefix,
        "BACKHAUL_DATA_DIR": str(folder),
        "BACKHAUL_METER_WINDOW_S": "1",
        "BACKHAUL_FAILPOINT": failpoint,
    }
    with (folder / "meter.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "streams", "meter"], env=env, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def billed(folder: Path) -> Counter[str]:
    """Tokens by meter; each identifier has one line."""
    entries = [e for path in (folder / "usage").glob("*/*.jsonl") for e in read_entries(path)]
    assert len({entry.identifier for entry in entries}) == len(entries)
    found: Counter[str] = Counter()
    for entry in entries:
        found[entry.event_name] += entry.tokens
    return found


async def told(reader: TopicReader) -> dict[str, MeterSend]:
    """The latest state of each send on meter.send."""
    found = {}
    while records := await reader.poll(1.0):
        for read in records:
            assert isinstance(read.record, MeterSend)
            found[read.key] = read.record
    return found


async def test_a_batch_is_billed_once_though_the_meter_dies_at_every_step(
    kafka_settings: Settings, tmp_path: Path
) -> None:
    settings = kafka_settings.model_copy(update={"session_timeout_s": 6.0})
    async with running_fleet(settings, tmp_path) as fleet:
        fleet.run()
        await fleet.create("batch_a", LINES)
        for failpoint in ("meter.counted", "meter.sent_durable", "meter.called"):
            with meter(settings, tmp_path, failpoint) as process:
                assert await exit_code(process, 60) == EXIT_CODE
        await fleet.ended("batch_a")
        with meter(settings, tmp_path) as process:
            want = sum(line.usage.input_tokens for line in fleet.usage["batch_a"].values())
            assert len(fleet.usage["batch_a"]) == LINES
            meters = {"backhaul_batch_input_tokens": want}
            await eventually(lambda: billed(tmp_path) == meters, 60, "all is billed")
            reader = TopicReader(settings, [METER_SEND])
            await reader.start("beginning")
            sends: dict[str, MeterSend] = {}

            async def confirmed() -> bool:
                sends.update(await told(reader))
                return {send.state for send in sends.values()} == {SendState.CONFIRMED}

            await eventually(confirmed, 30, "all is confirmed")
            await reader.stop()
            assert sum(send.tokens for send in sends.values()) == want
            back = next(iter(sends.values()))
            words = ("--reason", "a test", "--by", "tests")
            adjust = ("billing", "adjust", back.identifier, *words)
            first, again = [await asyncio.to_thread(backhaul, settings, *adjust) for _ in range(2)]
            assert (first.returncode, again.returncode) == (0, 1), first.stderr
            assert "taken back. By tests: a test" in first.stdout
            assert "nothing to take back" in again.stderr
            meters["backhaul_batch_input_tokens"] = want - back.tokens
            terminate(process)
            assert await exit_code(process) == 0
        assert billed(tmp_path) == meters
