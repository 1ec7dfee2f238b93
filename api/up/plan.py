"""Which processes `backhaul up` runs, how, and in which order they stop.

simulator ─ controller ─ collector ─ file-worker ─ batch-worker × N ─ realtime-worker ─ meter
    ─ webhook-worker ─ bridge ─ gateway
    started at once
gateway → bridge → realtime-worker → batch-workers → file-worker → collector → controller → meter
    → webhook-worker → simulator
    stopped so
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.up.broker import LOOPBACK, Abilities
from streams.settings import Settings

GATEWAY = "gateway"
BRIDGE = "bridge"
BATCH_WORKER = "batch-worker"
SIMULATOR = "simulator"
ROLES = (
    "controller",
    "collector",
    "file-worker",
    BATCH_WORKER,
    "realtime-worker",
    "meter",
    "webhook-worker",
    BRIDGE,
    GATEWAY,
)
#: Nothing new comes in first, then what feeds a process stops before it, so that it can finish.
STOP_ORDER = (
    *(GATEWAY, BRIDGE, "realtime-worker", BATCH_WORKER),
    *("file-worker", "collector", "controller", "meter", "webhook-worker", SIMULATOR),
)

#: What runs a role that isn't one of `python -m streams`.
_MODULES = {GATEWAY: ("api",), BRIDGE: ("api.bridge",)}

#: TLS and SASL are for a cluster of somebody else's; our own broker on loopback has neither.
_SECURITY = (
    "BACKHAUL_KAFKA_SECURITY",
    "BACKHAUL_KAFKA_SASL_MECHANISM",
    "BACKHAUL_KAFKA_USERNAME",
    "BACKHAUL_KAFKA_PASSWORD",
    "BACKHAUL_KAFKA_CA_FILE",
    "BACKHAUL_KAFKA_CERT_FILE",
    "BACKHAUL_KAFKA_KEY_FILE",
)


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process to run. live_url and ready_url answer 200 when it is."""

    role: str
    index: int
    command: tuple[str, ...]
    env: Mapping[str, str]
    live_url: str
    ready_url: str

    @property
    def name(self) -> str:
        """`controller`, `batch-worker`, `batch-worker-1`, …: of its log and its ports."""
        return process_name(self.role, self.index)


def process_name(role: str, index: int) -> str:
    """The name of the index-th process of a role."""
    return f"{role}-{index}" if index else role


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What all processes have in common.

    inherited: our own environment. own_broker: whether we started the broker. replicas: of
    topics. installation: part of instance names. port: the gateway's.
    """

    inherited: Mapping[str, str]
    kafka: str
    own_broker: bool
    abilities: Abilities
    replicas: int
    data_dir: Path
    upstreams_file: Path
    installation: str
    host: str
    port: int


def common_env(around: Surroundings) -> dict[str, str]:
    """The settings of every process, also for work that the supervisor does itself."""
    env = dict(around.inherited)
    if around.own_broker:
        for name in _SECURITY:
            env.pop(name, None)
    env["BACKHAUL_KAFKA"] = around.kafka
    env["BACKHAUL_KAFKA_REPLICAS"] = str(around.replicas)
    env["BACKHAUL_DATA_DIR"] = str(around.data_dir)
    env["BACKHAUL_UPSTREAMS_FILE"] = str(around.upstreams_file)
    env["BACKHAUL_HOST"] = around.host
    env["BACKHAUL_PORT"] = str(around.port)
    env["BACKHAUL_HEALTH_HOST"] = LOOPBACK
    if not around.abilities.idempotence:
        env["BACKHAUL_KAFKA_IDEMPOTENCE"] = "false"
    if not around.abilities.durable:
        env["BACKHAUL_SESSION_TIMEOUT_S"] = str(around.abilities.session_timeout_s)
    return env


def own_settings(around: Surroundings) -> Settings:
    """The settings for what the supervisor itself does on the cluster."""
    settings = Settings(
        kafka=around.kafka,
        kafka_replicas=around.replicas,
        kafka_idempotence=around.abilities.idempotence,
        data_dir=around.data_dir,
        upstreams_file=around.upstreams_file,
        instance=f"{around.installation}-up",
    )
    own = {"kafka_security": "PLAINTEXT"} if around.own_broker else {}
    return settings.model_copy(update=own)


#: The settings, by their names in streams.settings, that other commands need to reach our cluster
#: and to price and compare as our processes do.
_SHARED = (
    *("kafka", "kafka_replicas", "kafka_idempotence", "topic_prefix", "upstreams_file"),
    *("prices_file", "completion_windows", "meter_window_s"),
)


def shared_settings(settings: Settings) -> dict[str, Any]:
    """What `endpoint.json` tells the other commands. No secrets: those are in the environment."""
    prices = settings.prices_file
    # The other command may be started in another folder.
    told = settings.model_copy(update={"prices_file": prices and prices.absolute()})
    return told.model_dump(mode="json", include=set(_SHARED))


def role_process(around: Surroundings, role: str, index: int, health_port: int) -> Process:
    """One process of a role or of the gateway. Its instance name is the same at every start."""
    module = _MODULES.get(role, ("streams", role))
    base = f"http://{LOOPBACK}:{health_port}"
    return Process(
        role=role,
        index=index,
        # -P: a folder named `streams` or `api` where we were started is not ours.
        command=(sys.executable, "-P", "-m", *module),
        env={
            **common_env(around),
            "BACKHAUL_INSTANCE": f"{around.installation}-{index}",
            "BACKHAUL_HEALTH_PORT": str(health_port),
        },
        live_url=f"{base}/health",
        ready_url=f"{base}/ready",
    )


def simulator_process(env: Mapping[str, str], port: int, options: tuple[str, ...]) -> Process:
    """The simulated model server."""
    base = f"http://{LOOPBACK}:{port}"
    return Process(
        role=SIMULATOR,
        index=0,
        command=(
            *(sys.executable, "-P", "-m", "streams.simulator"),
            *("--host", LOOPBACK, "--port", str(port), "--json", *options),
        ),
        env=env,
        live_url=f"{base}/health",
        ready_url=f"{base}/health",
    )
