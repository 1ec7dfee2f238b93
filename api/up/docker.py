"""Apache Kafka in Docker: the image apache/kafka with its data in a named volume.

The container is named after the data folder. It belongs to the Docker engine, so it outlives a
kill -9 of ours; the next start on the same folder replaces it, on the same volume.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from api.up.broker import (
    ABILITIES,
    KAFKA_VERSION,
    LOOPBACK,
    Abilities,
    BrokerError,
    BrokerKind,
    BrokerState,
    BrokerUnavailableError,
    claim_port,
    new_cluster_id,
    wait_until_answers,
)
from api.up.jvm import server_properties

#: Pinned: the version that the tests run on.
IMAGE = f"apache/kafka:{KAFKA_VERSION}"
_ENGINE_WITHIN_S = 10.0
_PULL_WITHIN_S = 600.0
_COMMAND_WITHIN_S = 60.0
_START_WITHIN_S = 90.0
_GIVE_UP_WITHIN_S = 10.0
#: Where the image, which doesn't run as root, may write.
_DATA = Path("/var/lib/kafka/data")
_CONTROLLER_PORT = 9093


async def docker(*arguments: str, within_s: float = _COMMAND_WITHIN_S) -> str:
    """What `docker ARGUMENTS` prints. Raises BrokerError with what it complains about."""
    try:
        process = await asyncio.create_subprocess_exec(
            "docker", *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        raise BrokerError(f"docker can't be run: {error.strerror}") from error
    try:
        out, complaint = await asyncio.wait_for(process.communicate(), within_s)
    except TimeoutError:
        raise BrokerError(f"docker {arguments[0]} took longer than {within_s:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = complaint.decode("utf-8", "replace").strip()[-400:]
        raise BrokerError(f"docker {arguments[0]} failed: {said}")
    return out.decode("utf-8", "replace").strip()


async def engine_answers() -> None:
    """Returns if a Docker engine answers. Raises BrokerUnavailableError."""
    if not shutil.which("docker"):
        raise BrokerUnavailableError("there is no docker command")
    try:
        await docker("version", "--format", "{{.Server.Version}}", within_s=_ENGINE_WITHIN_S)
    except BrokerError as error:
        raise BrokerUnavailableError("no Docker engine answers") from error


class DockerBroker:
    """Apache Kafka in a container of its own."""

    kind = BrokerKind.DOCKER

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda _: None) -> None:
        digest = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]
        self.container = f"backhaul-kafka-{digest}"
        self._say = say
        self._state_file = folder.absolute() / "kafka" / "broker.json"
        self._state = BrokerState.load(self._state_file)
        self._started = False

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
        """None: the container's processes are the engine's."""
        return []

    @property
    def running(self) -> bool:
        """Whether it was started; Docker restarts a container that crashed."""
        return self._started

    async def start(self) -> None:
        """Starts the container on the folder's volume; the first time both are made."""
        await engine_answers()
        await self._pull()
        with contextlib.suppress(BrokerError):  # left by a run that was killed
            await docker("rm", "--force", self.container)
        await self._remember()
        await docker(*run_arguments(self.container, self._state))
        self._started = True
        try:
            connection = {"bootstrap_servers": [self.bootstrap]}
            await wait_until_answers(connection, _START_WITHIN_S, lambda: True)
        except BaseException as error:
            await asyncio.shield(self.stop(_GIVE_UP_WITHIN_S))
            if isinstance(error, BrokerError):
                raise BrokerError(f"Apache Kafka did not start in Docker: {error}") from error
            raise

    async def stop(self, within_s: float) -> None:
        """Stops and removes the container; the volume stays."""
        if self._started:
            self._started = False
            await docker(
                "stop", "--time", f"{within_s:.0f}", self.container, within_s=within_s + 20
            )
            await docker("rm", "--force", self.container)

    def kill(self) -> None:
        """Nothing: a container that is left is replaced by the next start."""
        self._started = False

    async def forget(self) -> None:
        """Removes the container and its volume."""
        self._started = False
        for arguments in (("rm", "--force"), ("volume", "rm", "--force")):
            with contextlib.suppress(BrokerError):
                await docker(*arguments, self.container)

    async def _pull(self) -> None:
        try:
            await docker("image", "inspect", "--format", "{{.Id}}", IMAGE)
        except BrokerError:
            self._say(f"Pulling {IMAGE} (once)")
            try:
                await docker("pull", "--quiet", IMAGE, within_s=_PULL_WITHIN_S)
            except BrokerError as error:
                raise BrokerUnavailableError(f"the image can't be pulled: {error}") from error

    async def _remember(self) -> None:
        self._state.kind = self.kind
        self._state.port = await claim_port(self._state.port)
        self._state.cluster_id = self._state.cluster_id or new_cluster_id()
        self._state.save(self._state_file)


def run_arguments(container: str, state: BrokerState) -> list[str]:
    """The arguments of `docker` that start the broker; host and container use the same port."""
    properties = {
        **server_properties(_DATA, state.port, _CONTROLLER_PORT),
        "listeners": f"PLAINTEXT://0.0.0.0:{state.port},CONTROLLER://{LOOPBACK}:{_CONTROLLER_PORT}",
    }
    environment = {image_variable(name): value for name, value in properties.items()}
    environment["CLUSTER_ID"] = state.cluster_id
    environment["KAFKA_HEAP_OPTS"] = "-Xmx512m"
    arguments = ["run", "--detach", "--name", container, "--restart", "on-failure"]
    arguments += ["--label", "backhaul=broker", "--volume", f"{container}:{_DATA}"]
    arguments += ["--publish", f"{LOOPBACK}:{state.port}:{state.port}"]
    for name, value in environment.items():
        arguments += ["--env", f"{name}={value}"]
    return [*arguments, IMAGE]


def image_variable(setting: str) -> str:
    """The environment variable by which the image takes a setting of server.properties."""
    return "KAFKA_" + setting.upper().replace("_", "__").replace("-", "___").replace(".", "_")
