"""Fixtures that any test may ask for; a broker is started only when one does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from hypothesis import HealthCheck, settings

from streams.settings import Settings
from tests.support.brokers import (
    TestBroker,
    delete_topics,
    run,
    start_test_broker,
    stop_test_broker,
)

# A busy machine is no reason to fail; pytest-timeout ends what never would.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_configure() -> None:
    """A shell starts what runs in its background without Ctrl-C, and children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_keyboard_interrupt() -> None:
    """One of several test processes has ten seconds after Ctrl-C: no time to stop in order."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        for child in psutil.Process().children():
            child.kill()


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    """The session's broker. Where CI has no real one that is a failure, not a skip."""
    started = run(start_test_broker(tmp_path_factory.mktemp("broker")))
    yield started
    run(stop_test_broker(started))


@pytest.fixture(scope="session")
def kafka_bootstrap(kafka_broker: TestBroker) -> str:
    """The session broker's `host:port`."""
    return kafka_broker.bootstrap


@pytest.fixture
def topic_prefix(kafka_bootstrap: str) -> Iterator[str]:
    """A prefix of this test's own; topics that start with it are deleted afterwards."""
    prefix = f"t{uuid4().hex[:12]}"
    yield prefix
    run(delete_topics(kafka_bootstrap, prefix))


@pytest.fixture
def kafka_settings(kafka_broker: TestBroker, topic_prefix: str, tmp_path: Path) -> Settings:
    """Settings for the session's broker: its abilities, one replica, this test's prefix, folder."""
    return Settings(
        kafka=kafka_broker.bootstrap,
        kafka_replicas=1,
        kafka_idempotence=kafka_broker.abilities.idempotence,
        session_timeout_s=kafka_broker.abilities.session_timeout_s,
        topic_prefix=topic_prefix,
        data_dir=tmp_path,
    )


@pytest.fixture(autouse=True)
def _real_kafka(request: pytest.FixtureRequest) -> None:
    """Skips a test marked real_kafka, by name, where only the in-memory broker runs."""
    if request.node.get_closest_marker("real_kafka") is None:
        return
    started: TestBroker = request.getfixturevalue("kafka_broker")
    if not started.abilities.real:
        pytest.skip(f"{request.node.name} needs a real Apache Kafka, not {started.broker.kind}")
