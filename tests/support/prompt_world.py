"""A Backhaul with stored prompts and an upstream that records bodies, for acceptance tests.

Everything that callers send in these tests carries MARK, so that one search through all logs,
metrics and dead letters shows whether any of it leaked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import psutil
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from openai import OpenAI
from openai.types import Batch

from schemas.topics import DLQ_SUFFIX
from tests.support.prompt_api import Prompts, Recorded
from tests.support.prompts import CHAT, SUMMARIZE, Book, book, mixed_jsonl
from tests.support.stack import Simulator, Stack, running, start_simulator, start_stack
from tests.support.waiting import eventually_sync

MODELS = ("sim", "sim-2", "gpt-4o-mini", "slow")
#: Stands in every template, variable, custom id and answer of these tests.
MARK = "Marzipan7391"
#: Calls in flight at most, so that a batch of the model `slow` lasts.
IN_FLIGHT = 16
#: How long a call of the model `slow` takes until a batch is found in the middle, and then.
SLOW_S, QUICK_S = "1", "0.02"


@dataclass
class PromptWorld:
    """The running stack, what its upstream was sent, and the prompts that were made at first."""

    stack: Stack
    simulator: Simulator
    recorded: Recorded
    shelf: Book
    topic_prefix: str

    def client(self) -> OpenAI:
        """A client for the first tenant."""
        return OpenAI(base_url=self.stack.base_url, api_key=self.stack.api_key)

    @contextlib.contextmanager
    def mid_batch(self, client: OpenAI, lines: list[dict[str, Any]]) -> Iterator[Batch]:
        """Holds the model `slow` once some lines of a batch on it are done; the batch by then."""
        self.simulator.configure(models={"slow": {"latency": SLOW_S}})
        batch_id = submit_mixed(client, lines).id

        def some_done() -> Batch | None:
            batch = client.batches.retrieve(batch_id)
            return batch if batch.request_counts and batch.request_counts.completed else None

        batch = eventually_sync(some_done, within_s=60)
        assert batch is not None
        self.simulator.configure(models={"slow": {"hang": True}})
        try:
            yield batch
            status = client.batches.retrieve(batch_id).status
            assert status == "in_progress", "it must really have been in mid-batch"
        finally:
            self.simulator.configure(models={"slow": {"hang": False, "latency": QUICK_S}})


@contextlib.contextmanager
def prompt_world(kafka_bootstrap: str, folder: Path) -> Iterator[PromptWorld]:
    """Starts it, with book(f"-{MARK}") and `summarize` in the registry."""
    recorded = folder / "bodies.jsonl"
    models = [word for name in MODELS[1:] for word in ("--model", name)]
    simulator = start_simulator(*models, "--bodies", str(recorded))
    with running(simulator):
        upstream = {
            "name": "recording",
            "base_url": simulator.base_url,
            "models": list(MODELS),
            "max_in_flight": IN_FLIGHT,
        }
        table = folder / "table.yaml"
        table.write_text(yaml.safe_dump({"upstreams": [upstream]}))
        prefix = f"prompts{uuid4().hex[:10]}"
        stack = start_stack(
            folder / "data",
            *("--kafka", kafka_bootstrap, "--upstreams", str(table)),
            env={"BACKHAUL_TOPIC_PREFIX": prefix},
        )
        with running(stack):
            shelf = book(f"-{MARK}")
            shelf.add("summarize", *SUMMARIZE)
            world = PromptWorld(stack, simulator, Recorded(recorded), shelf, prefix)
            with world.client() as client:
                Prompts(client).make(shelf)
            yield world


def run_of(what: str) -> str:
    """A name that no other test uses, and that no log may have."""
    return f"{MARK}-{what}-{uuid4().hex[:6]}"


def submit_mixed(client: OpenAI, lines: list[dict[str, Any]], endpoint: Any = CHAT) -> Batch:
    """Uploads the lines, as different JSON encoders write them, and creates a batch."""
    file = client.files.create(file=("input.jsonl", mixed_jsonl(lines)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def leaks(world: PromptWorld, mark: str = MARK) -> list[str]:
    """Where the mark is found: log files, metrics pages, headers of dead letters."""
    logs = sorted((world.stack.data_dir / "logs").glob("*.log"))
    assert logs, "there must be logs to look at"
    found = [path.name for path in logs if mark in path.read_text("utf-8", "replace")]
    pages = metrics_pages(world.stack)
    assert pages, "there must be metrics to look at"
    found += [url for url, page in pages.items() if mark in page]
    return found + [topic for topic, text in dead_letters(world) if mark in text]


def metrics_pages(stack: Stack) -> dict[str, str]:
    """What each process of the stack shows at /metrics, by URL."""
    pages = {}
    for process in psutil.Process(stack.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("tcp"):
                if connection.status != psutil.CONN_LISTEN:
                    continue
                url = f"http://127.0.0.1:{connection.laddr.port}/metrics"
                with contextlib.suppress(OSError, HTTPException), urlopen(url, timeout=5) as page:
                    pages[url] = page.read().decode()
    return pages


def dead_letters(world: PromptWorld) -> list[tuple[str, str]]:
    """(topic, header) for each header of every dead letter of the stack."""
    return asyncio.run(_headers(world))


async def _headers(world: PromptWorld) -> list[tuple[str, str]]:
    admin = AIOKafkaAdminClient(bootstrap_servers=world.stack.info["kafka"])
    await admin.start()
    try:
        names = [n for n in await admin.list_topics() if n.startswith(world.topic_prefix)]
    finally:
        await admin.close()
    topics = [name for name in names if name.endswith(DLQ_SUFFIX)]
    assert topics, "there must be dead-letter topics to look at"
    consumer = AIOKafkaConsumer(*topics, bootstrap_servers=world.stack.info["kafka"])
    await consumer.start()
    try:
        partitions = list(consumer.assignment())
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found: list[tuple[str, str]] = []
        while any([await consumer.position(p) < ends[p] for p in partitions]):
            for partition, records in (await consumer.getmany(timeout_ms=500)).items():
                found += [
                    (partition.topic, f"{name} {value.decode('utf-8', 'replace')}")
                    for record in records
                    for name, value in record.headers
                ]
        return found
    finally:
        await consumer.stop()


def send_garbage(world: PromptWorld, topic: str, value: bytes) -> None:
    """Puts a record that nobody can read on a topic of the stack."""
    asyncio.run(_send(world, topic, value))


async def _send(world: PromptWorld, topic: str, value: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=world.stack.info["kafka"])
    await producer.start()
    try:
        await producer.send_and_wait(f"{world.topic_prefix}.{topic}", value, key=b"odd")
    finally:
        await producer.stop()
