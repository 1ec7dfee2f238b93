"""Submits a batch on Kafka and reads its results there: no HTTP, no API key.

    backhaul topics tenant acme                       # once, by the operator
    python examples/kafka_batch.py --kafka HOST:PORT --tenant acme --model MODEL "What is Kafka?"

docs/kafka.md has the protocol; any Kafka client speaks it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord

ENDPOINT = "/v1/chat/completions"


async def submit(kafka: str, topic: str, key: bytes, model: str, questions: Sequence[str]) -> None:
    """Writes a line for each question, then the seal that makes a batch of them."""
    # All records of a batch need one key, so that one partition keeps their order.
    # Idempotence keeps a retried line from coming twice or in another place.
    producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all", enable_idempotence=True)
    async with producer:
        for number, question in enumerate(questions):
            body = {"model": model, "messages": [{"role": "user", "content": question}]}
            line = {"custom_id": f"q-{number}", "method": "POST", "url": ENDPOINT, "body": body}
            await producer.send(topic, json.dumps(line).encode(), key=key)
        seal = {"endpoint": ENDPOINT, "completion_window": "24h", "lines": len(questions)}
        headers = [("backhaul-op", b"seal")]
        await producer.send_and_wait(topic, json.dumps(seal).encode(), key=key, headers=headers)


async def told(consumer: AIOKafkaConsumer, key: bytes) -> AsyncIterator[tuple[str, Any]]:
    """What is told of the batch, kind and value, until its end."""
    record: ConsumerRecord
    async for record in consumer:
        if record.key != key:
            continue
        kind = dict(record.headers)["backhaul-kind"].decode()
        yield kind, json.loads(record.value)
        if kind in ("end", "rejected"):
            return


async def run(options: argparse.Namespace) -> int:
    """Submits and reads; the exit code."""
    prefix, tenant = options.prefix, options.tenant
    key = f"example-{uuid.uuid4().hex[:8]}".encode()
    # A reader without a group begins at the topic's end, so it connects before anything is sent.
    consumer = AIOKafkaConsumer(
        f"{prefix}.batch-out.{tenant}.v1",
        bootstrap_servers=options.kafka,
        isolation_level="read_committed",
    )
    async with consumer:
        topic = f"{prefix}.batch-in.{tenant}.v1"
        await submit(options.kafka, topic, key, options.model, options.question)
        kind = ""
        async for kind, value in told(consumer, key):
            print(kind, json.dumps(value))
    return 0 if kind == "end" else 1


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kafka", default="127.0.0.1:9092", metavar="HOST:PORT")
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prefix", default="backhaul", help="first part of the topics' names")
    parser.add_argument("question", nargs="+")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
