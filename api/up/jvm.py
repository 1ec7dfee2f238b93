"""Apache Kafka on the local JVM: one durable KRaft node in a data folder.

<folder>/kafka/broker.json         its ports and cluster id, kept over restarts
<folder>/kafka/server.properties   written anew at each start
<folder>/kafka/log/                Kafka's own data
<folder>/logs/kafka.log            what it says
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from api.up.broker import (
    ABILITIES,
    LOOPBACK,
    Abilities,
    BrokerError,
    BrokerKind,
    BrokerState,
    claim_port,
    new_cluster_id,
    wait_until_answers,
)
from api.up.jars import fetch_jars, java_binary
from api.up.process import ChildProcess, LogFile

_FORMAT_WITHIN_S = 60.0
_START_WITHIN_S = 90.0
_MIB = 1024 * 1024

#: Up in seconds and content with 400 MB: one node for one machine, not a cluster's member.
JVM_FLAGS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)


def server_properties(data: Path, port: int, controller_port: int) -> dict[str, str]:
    """The settings of our single node. Clients on this machine reach it at `port`."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": str(data),
        **SINGLE_NODE_PROPERTIES,
    }


#: What one small node needs, wherever it runs.
SINGLE_NODE_PROPERTIES: Mapping[str, str] = {
    # Topics come from our table; a typing error must not make one.
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    # A lone member need not wait for others to join its group.
    "group.initial.rebalance.delay.ms": "0",
    # The default of 6 s would refuse the short session time-outs of tests.
    "group.min.session.timeout.ms": "1000",
    "log.segment.bytes": str(64 * _MIB),
    # The default of 128 MB is a quarter of our heap.
    "log.cleaner.dedupe.buffer.size": str(16 * _MIB),
    # After a kill -9 the controller keeps the dead incarnation registered for this long, and a
    # restart waits for it (the default is 9 s).
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    "num.network.threads": "2",
    "num.io.threads": "4",
}


class JvmBroker:
    """Apache Kafka as a child process."""

    kind = BrokerKind.JVM

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self._home = (folder / "kafka").absolute()
        self._log = LogFile(folder.absolute() / "logs" / "kafka.log")
        self._say = say
        self._state_file = self._home / "broker.json"
        self._state = BrokerState.load(self._state_file)
        self._process: ChildProcess | None = None

    @property
    def abilities(self) -> Abilities:
        """What it can do."""
        return ABILITIES[self.kind]

    @property
    def bootstrap(self) -> str:
        """Its address, the same at each start unless another program took the port."""
        return f"{LOOPBACK}:{self._state.port}"

    @property
    def pids(self) -> list[int]:
        """Its one process."""
        return [self._process.pid] if self.running and self._process else []

    @property
    def running(self) -> bool:
        """Whether the JVM runs."""
        return self._process is not None and self._process.running

    async def start(self) -> None:
        """Starts the node on the folder's data; the first time it makes them."""
        java = await asyncio.to_thread(java_binary)
        classpath = f"{await fetch_jars(self._say)}/*"
        await self._write_configuration()
        if not (self._home / "log" / "meta.properties").exists():
            await self._format(java, classpath)
        command: list[str | Path] = [
            java,
            *JVM_FLAGS,
            "-cp",
            classpath,
            "kafka.Kafka",
            self._properties_file,
        ]
        self._process = ChildProcess(command, os.environ, self._log, cwd=self._home)
        self._process.start()
        try:
            await wait_until_answers(
                {"bootstrap_servers": [self.bootstrap]}, _START_WITHIN_S, lambda: self.running
            )
        except BrokerError as error:
            self.kill()
            raise BrokerError(self._failure("did not start")) from error
        except BaseException:
            self.kill()
            raise

    async def stop(self, within_s: float) -> None:
        """Stops it in order; its data stay."""
        if self._process is not None:
            await self._process.stop(within_s)

    def kill(self) -> None:
        """Ends it at once; its data stay, as after any crash."""
        if self._process is not None:
            self._process.kill()

    @property
    def _properties_file(self) -> Path:
        return self._home / "server.properties"

    async def _write_configuration(self) -> None:
        state = self._state
        state.kind = self.kind
        state.port = await claim_port(state.port)
        state.controller_port = await claim_port(state.controller_port)
        state.cluster_id = state.cluster_id or new_cluster_id()
        state.save(self._state_file)
        properties = server_properties(self._home / "log", state.port, state.controller_port)
        lines = [f"{name}={value}\n" for name, value in properties.items()]
        self._properties_file.write_text("".join(lines), "utf-8")

    async def _format(self, java: Path, classpath: str) -> None:
        """Makes the empty storage. Kafka writes meta.properties last, so a crash here is redone."""
        command: list[str | Path] = [
            java, *JVM_FLAGS, "-cp", classpath, "kafka.tools.StorageTool", "format",
            "--cluster-id", self._state.cluster_id, "--config", self._properties_file,
            "--ignore-formatted",
        ]  # fmt: skip
        tool = ChildProcess(command, os.environ, self._log, cwd=self._home)
        tool.start()
        try:
            done = await tool.wait(_FORMAT_WITHIN_S)
        finally:
            tool.kill()
        if not done or tool.exit_code != 0:
            raise BrokerError(self._failure("could not format its storage"))

    def _failure(self, what: str) -> str:
        tail = "\n  ".join(self._log.last_lines(5))
        return f"Apache Kafka {what}; {self._log.path} ends with:\n  {tail}"
