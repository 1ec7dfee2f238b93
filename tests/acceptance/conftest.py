"""One Backhaul and one simulated upstream for all acceptance tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.support.stack import Simulator, Stack, running, start_simulator, start_stack


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = start_simulator()
    with running(simulator):
        yield simulator


@pytest.fixture(scope="module")
def stack(
    simulator: Simulator, kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    data: Path = tmp_path_factory.mktemp("backhaul")
    stack = start_stack(
        data,
        *("--kafka", kafka_bootstrap, "--upstream", simulator.base_url),
        env={
            "BACKHAUL_TOPIC_PREFIX": f"acc{uuid4().hex[:10]}",
            # Receivers of webhooks are on loopback.
            "BACKHAUL_WEBHOOK_ALLOW_PRIVATE": "true",
            "BACKHAUL_WEBHOOK_RETRY_AFTER_S": "[0.2, 0.2, 1, 1, 1, 1, 1, 1]",
        },
    )
    with running(stack):
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=stack.base_url, api_key=stack.api_key) as client:
        yield client


@pytest.fixture
async def async_client(stack: Stack) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=stack.base_url, api_key=stack.api_key)
