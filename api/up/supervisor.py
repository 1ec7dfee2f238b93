"""Starts everything that `backhaul up` promises, keeps it alive, and stops it in order.

broker ─► topics ─► first key ─► simulator, roles, gateway ─► all ready ─► watch ─► stop
                                 (each is started again when it dies, the broker too)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import aiohttp

from api.up.backoff import RestartPolicy
from api.up.board import Board, State
from api.up.broker import Broker, BrokerError, BrokerKind
from api.up.external import ExternalBroker
from api.up.first_key import ensure_key
from api.up.ladder import start_best
from api.up.options import Memory, UpError, UpOptions, write_private
from api.up.plan import (
    BATCH_WORKER,
    ROLES,
    STOP_ORDER,
    Process,
    Surroundings,
    common_env,
    own_settings,
    process_name,
    role_process,
    shared_settings,
    simulator_process,
)
from api.up.process import LogFile
from api.up.role import RoleProcess
from api.up.upstreams import Choice, choose
from schemas.topics import LINE_READY
from streams.kafka.admin import apply_topics
from streams.kafka.connection import admin_client
from streams.settings import Settings, load_upstreams

_READY_WITHIN_S = 120.0
_POLL_S = 0.1
_ROTATE_EVERY_S = 1.0
#: All processes together have this long to finish what they have in hand; the broker then
#: gets its own time.
STOP_BUDGET_S = 25.0
BROKER_STOP_BUDGET_S = 10.0
#: What is left to a process when those before it have used up the budget.
_LEAST_STOP_S = 0.5
#: Each batch-worker needs partitions of its own to be fed through.
_PARTITIONS_PER_WORKER = 2
#: More gain nothing, and fewer would lose data with one broker.
_REPLICAS = 3
_BROKER = "broker"


@dataclass(frozen=True, kw_only=True)
class Running:
    """What runs, for people and scripts: the line that `--json` prints."""

    base_url: str
    api_key: str
    kafka: str
    broker: str
    durable: bool
    upstream: str
    data_dir: str
    supervisor_pid: int
    pids: dict[str, list[int]]

    def as_dict(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


class Supervisor:
    """Everything of one data folder. Hold the folder's lock, and use it in the main thread."""

    def __init__(self, options: UpOptions, board: Board) -> None:
        self._options = options
        self._board = board
        self._folder = options.data_dir.absolute()
        self._memory = Memory.load(self._folder)
        self._http = aiohttp.ClientSession()
        self._settings = Settings()
        self._broker: Broker | None = None
        self._processes: list[RoleProcess] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> Running:
        """Starts everything and returns when all of it is ready.

        Raises UpError, BrokerError, KafkaBaseError, UpstreamTableError.
        """
        broker = self._broker = await self._start_broker()
        choice = await choose(self._options, self._memory, self._folder)
        around = await self._surroundings(broker, choice)
        self._settings = own_settings(around)
        load_upstreams(self._settings)
        api_key = await self._prepare_cluster()
        for process in await self._plan(around, choice):
            self._keep(process)
        self._memory.save(self._folder)
        self._tasks.append(asyncio.create_task(self._keep_broker(broker)))
        self._tasks.append(asyncio.create_task(self._rotate_logs()))
        await self._all_ready()
        self._leave_endpoint(_base_url(around), api_key)
        return Running(
            base_url=_base_url(around),
            api_key=api_key,
            kafka=broker.bootstrap,
            broker=broker.kind,
            durable=broker.abilities.durable,
            upstream=choice.label,
            data_dir=str(self._folder),
            supervisor_pid=os.getpid(),
            pids=self.pids(),
        )

    async def watch(self) -> None:
        """Runs until cancelled. Raises what a watcher could not cope with."""
        await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Stops everything in order, within the budgets."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        deadline = time.monotonic() + STOP_BUDGET_S
        for role in STOP_ORDER:
            left_s = max(_LEAST_STOP_S, deadline - time.monotonic())
            members = [p for p in self._processes if p.process.role == role]
            await asyncio.gather(*(member.stop(left_s) for member in members))
        if self._broker is not None:
            await self._stop_broker(self._broker)
        await self._http.close()

    def kill(self) -> None:
        """Ends everything at once."""
        for process in self._processes:
            process.kill()
        if self._broker is not None:
            self._broker.kill()

    def pids(self) -> dict[str, list[int]]:
        """The present processes by role."""
        found: dict[str, list[int]] = {_BROKER: self._broker.pids if self._broker else []}
        for process in self._processes:
            found.setdefault(process.process.role, []).append(process.pid)
        return found

    # Start-up, in the order of its steps

    async def _start_broker(self) -> Broker:
        self._board.show(_BROKER, State.STARTING)
        broker: Broker
        if self._options.kafka:
            broker = ExternalBroker(Settings(kafka=self._options.kafka))
            await broker.start()
        else:
            climb = await start_best(self._folder, self._board.say)
            broker = climb.broker
            if not broker.abilities.durable:
                self._board.say(_warning(climb.refused))
        self._board.show(_BROKER, State.READY, f"{broker.kind}, {broker.bootstrap}")
        return broker

    async def _surroundings(self, broker: Broker, choice: Choice) -> Surroundings:
        own = broker.kind is not BrokerKind.EXTERNAL
        return Surroundings(
            inherited=os.environ,
            kafka=broker.bootstrap,
            own_broker=own,
            abilities=broker.abilities,
            replicas=1 if own else await _replicas(Settings(kafka=broker.bootstrap)),
            data_dir=self._folder,
            upstreams_file=choice.file,
            installation=self._memory.name,
            host=self._options.host,
            port=self._memory.gateway_port(self._options),
        )

    async def _prepare_cluster(self) -> str:
        """Topics and the first key, which is returned."""
        partitions = max(LINE_READY.partitions, _PARTITIONS_PER_WORKER * self._options.workers)
        self._board.show("topics", State.STARTING)
        changes = await apply_topics(self._settings, {LINE_READY.name: partitions})
        self._board.show("topics", State.READY, f"{len(changes)} created" if changes else "")
        return await ensure_key(self._folder, self._settings)

    async def _plan(self, around: Surroundings, choice: Choice) -> list[Process]:
        plan: list[Process] = []
        if choice.simulator_port is not None:
            env = common_env(around)
            plan.append(simulator_process(env, choice.simulator_port, self._options.simulator))
        for role in ROLES:
            for index in range(self._options.workers if role == BATCH_WORKER else 1):
                port = await self._memory.port_for(f"{process_name(role, index)}.health")
                plan.append(role_process(around, role, index, port))
        return plan

    def _keep(self, process: Process) -> None:
        kept = RoleProcess(process, self._folder / "logs", self._http, self._board)
        self._processes.append(kept)
        self._tasks.append(asyncio.create_task(kept.keep_running()))

    def _leave_endpoint(self, base_url: str, api_key: str) -> None:
        """Tells the other commands where we are (api.cli.place reads it)."""
        shared = shared_settings(self._settings)
        endpoint = {"base_url": base_url, "api_key": api_key, "settings": shared}
        write_private(self._folder / "endpoint.json", json.dumps(endpoint).encode())

    async def _all_ready(self) -> None:
        deadline = time.monotonic() + _READY_WITHIN_S
        while True:
            missing = [p for p in self._processes if not p.ready.is_set()]
            if not missing:
                return
            for process in missing:
                if process.hopeless:
                    raise UpError(f"{process.process.name} keeps dying:{process.last_words()}")
            for task in self._tasks:
                if task.done():
                    task.result()
            if time.monotonic() > deadline:
                first = missing[0]
                names = ", ".join(p.process.name for p in missing)
                raise UpError(
                    f"Not ready within {_READY_WITHIN_S:.0f} s: {names}. "
                    f"The log of {first.process.name} ends with:{first.last_words()}"
                )
            await asyncio.sleep(_POLL_S)

    # While it runs

    async def _keep_broker(self, broker: Broker) -> None:
        policy = RestartPolicy()
        policy.became_ready(time.monotonic())
        while True:
            await asyncio.sleep(_POLL_S)
            if broker.running:
                continue
            delay_s = policy.died(time.monotonic())
            self._board.show(_BROKER, State.DIED, "starting it again")
            await asyncio.sleep(delay_s)
            try:
                await broker.start()
            except BrokerError as error:
                self._board.say(str(error))
                continue
            policy.became_ready(time.monotonic())
            self._board.show(_BROKER, State.READY, broker.bootstrap)
            if not broker.abilities.durable:
                await self._begin_anew()

    async def _begin_anew(self) -> None:
        """The broker has lost everything: makes the topics again and restarts all roles."""
        self._board.say("The in-memory broker died, and with it all batches. Starting empty.")
        await self._prepare_cluster()
        for process in self._processes:
            process.kill()

    async def _rotate_logs(self) -> None:
        while True:
            for path in (self._folder / "logs").glob("*.log"):
                with contextlib.suppress(OSError):  # a full disk must not end the supervisor
                    LogFile(path).rotate()
            await asyncio.sleep(_ROTATE_EVERY_S)

    async def _stop_broker(self, broker: Broker) -> None:
        self._board.show(_BROKER, State.STOPPING)
        try:
            await broker.stop(BROKER_STOP_BUDGET_S)
        except BrokerError as error:
            self._board.say(str(error))
        self._board.show(_BROKER, State.STOPPED)


async def _replicas(settings: Settings) -> int:
    """As many as are usual on a cluster of this size, unless the environment says."""
    if "BACKHAUL_KAFKA_REPLICAS" in os.environ:
        return settings.kafka_replicas
    async with admin_client(settings) as admin:
        cluster = await admin.describe_cluster()
    return max(1, min(_REPLICAS, len(cluster["brokers"])))


def _base_url(around: Surroundings) -> str:
    host = "127.0.0.1" if around.host in ("0.0.0.0", "::", "") else around.host  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{around.port}/v1"


def _warning(refused: Sequence[str]) -> str:
    return (
        "The broker keeps everything in memory: all batches are gone when this stops. For one that "
        f"lasts, install Docker, or Java 17 and Maven ({'; '.join(refused)})."
    )
