"""The first API key: made once, its secret kept in the data folder for the owner's eyes only."""

from __future__ import annotations

from pathlib import Path

from api.accounts.keys import create_key, hash_of, list_keys
from api.up.options import write_private
from schemas.topics import ACCOUNT
from streams.kafka.producer import RecordProducer
from streams.kafka.reader import TopicReader
from streams.settings import Settings

TENANT = "default"
_NAME = "made by backhaul up"


async def ensure_key(folder: Path, settings: Settings) -> str:
    """The folder's secret, valid on the cluster.

    The same secret over restarts, also where the cluster has forgotten it (a broker in memory);
    a new one if the key was revoked. Raises KafkaBaseError.
    """
    path = folder / "api-key"
    secret = path.read_text("ascii").strip() if path.exists() else None
    if secret is not None:
        keys = await list_keys(TopicReader(settings, [ACCOUNT]))
        known = [key for key in keys if key.secret_sha256 == hash_of(secret)]
        if any(key.revoked_at_ms is None for key in known):
            return secret
        if known:
            secret = None
    producer = RecordProducer(settings)
    await producer.start()
    try:
        _, secret = await create_key(producer, TENANT, _NAME, secret=secret)
    finally:
        await producer.stop()
    write_private(path, f"{secret}\n".encode("ascii"))
    return secret
