"""How far a group has committed is asked for until somebody knows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    NotCoordinatorForGroupError,
)
from aiokafka.structs import OffsetAndMetadata

from streams.kafka import groups
from streams.kafka.groups import committed_marks
from streams.settings import Settings

_PART, _MARK = TopicPartition("t", 0), OffsetAndMetadata(7, "note")


@pytest.mark.parametrize(
    "error", [KafkaConnectionError, NodeNotReadyError, NotCoordinatorForGroupError]
)
async def test_a_broker_that_has_just_died_is_not_the_last_word(
    monkeypatch: pytest.MonkeyPatch, error: type[KafkaError]
) -> None:
    fails = iter([error("dead")] * 3)

    class _Admin:
        async def list_consumer_group_offsets(
            self, group: str, partitions: list[TopicPartition]
        ) -> dict[TopicPartition, OffsetAndMetadata]:
            for failure in fails:
                raise failure
            return {_PART: _MARK}

    @asynccontextmanager
    async def admin_client(settings: Settings) -> AsyncIterator[_Admin]:
        yield _Admin()

    monkeypatch.setattr(groups, "admin_client", admin_client)
    monkeypatch.setattr(groups, "_RETRY_S", 0.0)
    assert await committed_marks(Settings(), "g", [_PART]) == {_PART: _MARK}
