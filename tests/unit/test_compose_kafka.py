"""docker-compose.kafka.yml holds what the documentation promises; no Docker engine runs it here."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.up.broker import KAFKA_VERSION
from api.up.docker import IMAGE, image_variable
from api.up.jvm import SINGLE_NODE_PROPERTIES

_FILE = Path(__file__).parents[2] / "docker-compose.kafka.yml"
#: What only a test or a restart on the same machine wants.
_ONLY_OURS = {
    "group.min.session.timeout.ms",
    "broker.heartbeat.interval.ms",
    "broker.session.timeout.ms",
    "num.network.threads",
    "num.io.threads",
}


@pytest.fixture
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(_FILE.read_text("utf-8"))
    return document


@pytest.fixture
def kafka(compose: dict[str, Any]) -> dict[str, Any]:
    service: dict[str, Any] = compose["services"]["kafka"]
    return service


def test_the_image_is_pinned_to_the_release_that_the_tests_run(kafka: dict[str, Any]) -> None:
    assert kafka["image"] == IMAGE
    assert IMAGE.endswith(f":{KAFKA_VERSION}")


def test_the_node_is_broker_and_controller_in_one(kafka: dict[str, Any]) -> None:
    environment = kafka["environment"]
    assert environment["KAFKA_PROCESS_ROLES"] == "broker,controller"
    assert environment["KAFKA_CONTROLLER_QUORUM_VOTERS"] == "1@localhost:9093"
    assert len(base64.urlsafe_b64decode(environment["CLUSTER_ID"] + "==")) == 16


def test_every_listener_has_a_protocol_and_clients_can_reach_each(kafka: dict[str, Any]) -> None:
    environment = kafka["environment"]
    listeners = _names(environment["KAFKA_LISTENERS"])
    advertised = _names(environment["KAFKA_ADVERTISED_LISTENERS"])
    mapped = {
        pair.split(":")[0]
        for pair in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    }
    assert listeners == mapped
    assert advertised == listeners - {"CONTROLLER"}
    assert environment["KAFKA_INTER_BROKER_LISTENER_NAME"] in advertised


def test_it_listens_on_this_machine_only_as_it_has_no_passwords(kafka: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for port in kafka["ports"])


def test_the_data_outlive_the_container(compose: dict[str, Any], kafka: dict[str, Any]) -> None:
    volume, _, path = kafka["volumes"][0].partition(":")
    assert volume in compose["volumes"]
    assert path == kafka["environment"]["KAFKA_LOG_DIRS"]


def test_health_is_an_answer_of_the_broker_itself(kafka: dict[str, Any]) -> None:
    check = kafka["healthcheck"]
    assert "localhost:9092" in check["test"]
    assert check["retries"] * int(check["interval"].removesuffix("s")) >= 60


def test_it_has_the_settings_of_the_node_that_backhaul_up_starts(kafka: dict[str, Any]) -> None:
    environment = kafka["environment"]
    for name, value in SINGLE_NODE_PROPERTIES.items():
        if name not in _ONLY_OURS:
            assert environment[image_variable(name)] == value, name


def test_the_topics_are_made_once_kafka_is_healthy(compose: dict[str, Any]) -> None:
    topics = compose["services"]["topics"]
    assert topics["depends_on"]["kafka"]["condition"] == "service_healthy"
    assert topics["environment"]["BACKHAUL_KAFKA"] == "kafka:9094"
    assert topics["environment"]["BACKHAUL_KAFKA_REPLICAS"] == "1"
    assert "backhaul topics apply" in topics["command"][-1]
    assert (
        "INSIDE://kafka:9094"
        in compose["services"]["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    )


def _names(listeners: str) -> set[str]:
    return {listener.split("://")[0] for listener in listeners.split(",")}
