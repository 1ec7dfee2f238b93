"""The one place where our settings become the arguments of an aiokafka client."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    RequestTimedOutError,
    UnknownTopicOrPartitionError,
)

from streams.kafka.errors import BrokerUnreachable, KafkaBaseError, TopicMissing
from streams.kafka.records import read_strangers
from streams.settings import Settings

#: How long one request may take before the client tries again or gives up.
REQUEST_TIMEOUT_MS = 20_000
#: How long a client may wait at start for a broker that doesn't answer.
_ADMIN_TIMEOUT_MS = 10_000
#: A broker that has just died is asked until the others have noticed.
NO_ANSWER = (KafkaConnectionError, NodeNotReadyError, RequestTimedOutError, OSError, TimeoutError)


def connection(settings: Settings) -> dict[str, Any]:
    """Keyword arguments that every aiokafka client takes: servers, TLS and SASL.

    Who uses them reads what strangers wrote without falling over (records.py).
    """
    read_strangers()
    kwargs: dict[str, Any] = {
        "bootstrap_servers": [s.strip() for s in settings.kafka.split(",") if s.strip()],
        "security_protocol": settings.kafka_security,
        "client_id": f"{settings.topic_prefix}-{settings.instance}",
    }
    if settings.kafka_security in ("SSL", "SASL_SSL"):
        kwargs["ssl_context"] = _ssl_context(settings)
    if settings.kafka_security in ("SASL_PLAINTEXT", "SASL_SSL"):
        password = settings.kafka_password
        if settings.kafka_username is None or password is None:
            raise KafkaBaseError(
                f"BACKHAUL_KAFKA_SECURITY={settings.kafka_security} needs "
                "BACKHAUL_KAFKA_USERNAME and BACKHAUL_KAFKA_PASSWORD."
            )
        kwargs["sasl_mechanism"] = settings.kafka_sasl_mechanism
        kwargs["sasl_plain_username"] = settings.kafka_username
        kwargs["sasl_plain_password"] = password.get_secret_value()
    return kwargs


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ca_file)
        if settings.kafka_cert_file is not None:
            context.load_cert_chain(settings.kafka_cert_file, settings.kafka_key_file)
    except OSError as error:
        raise KafkaBaseError(f"Kafka's TLS files can't be used: {error}") from error
    return context


def friendly(error: BaseException, settings: Settings) -> KafkaBaseError:
    """The error a person can act on, in place of aiokafka's own."""
    if isinstance(error, KafkaBaseError):
        return error
    if isinstance(error, UnknownTopicOrPartitionError):
        return TopicMissing(f"{TopicMissing.__doc__} ({error})")
    if isinstance(error, NO_ANSWER):
        return BrokerUnreachable(
            f"No Kafka broker answers at {settings.kafka}. Start one (`backhaul up`), or set "
            "BACKHAUL_KAFKA to one that runs."
        )
    return KafkaBaseError(f"Kafka: {type(error).__name__}: {error}")


@asynccontextmanager
async def admin_client(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A started admin client. Raises KafkaBaseError in place of aiokafka's errors."""
    client = AIOKafkaAdminClient(**connection(settings), request_timeout_ms=_ADMIN_TIMEOUT_MS)
    try:
        await client.start()
        yield client
    except (KafkaError, OSError, TimeoutError) as error:
        raise friendly(error, settings) from error
    finally:
        await client.close()


async def partition_counts(
    settings: Settings, topics: Mapping[str, str]
) -> Mapping[str, tuple[int, ...]]:
    """Partitions by Topic.name, of `topics` (Topic.name to full name). Raises TopicMissing."""
    async with admin_client(settings) as admin:
        described = await admin.describe_topics(list(topics.values()))
    found = {t["topic"]: tuple(sorted(p["partition"] for p in t["partitions"])) for t in described}
    missing = sorted(full for full in topics.values() if not found.get(full))
    if missing:
        raise TopicMissing(
            f"These topics do not exist at {settings.kafka}: {', '.join(missing)}. "
            "Run `backhaul topics apply`."
        )
    return {name: found[full] for name, full in topics.items()}
