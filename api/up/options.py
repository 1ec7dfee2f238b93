"""What was asked of `backhaul up`, and what its data folder remembers between runs.

<folder>/up.lock            see api.up.lock
<folder>/up.json            ports, name of the installation, where the models are
<folder>/api-key            the first API key's secret, mode 0600
<folder>/endpoint.json      tells other commands where this server is, mode 0600
<folder>/upstreams.yaml     written for `--upstream URL` and for the simulator
<folder>/kafka/, logs/, objects/, and what the gateway keeps
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import msgspec

from api.up.broker import claim_port, free_port, port_is_free

#: Where the gateway listens if nobody says otherwise and it is free.
DEFAULT_PORT = 8080


class UpError(Exception):
    """`backhaul up` can't go on; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """The command line's wishes.

    port: None for the remembered one or 8080, 0 for the remembered one or any free one.
    kafka: an existing cluster. upstream: an OpenAI-style server's URL. upstreams: a table's file.
    simulator: extra arguments for the simulator where it is the upstream.
    """

    data_dir: Path
    host: str = "127.0.0.1"
    port: int | None = None
    workers: int = 1
    kafka: str | None = None
    upstream: str | None = None
    upstreams: Path | None = None
    simulator: tuple[str, ...] = ()


class Memory(msgspec.Struct, kw_only=True):
    """What a data folder remembers.

    name: tells this installation's processes from others' on a shared cluster.
    ports: by process. upstream: where the models are, in `kind:value` form.
    """

    name: str = ""
    ports: dict[str, int] = {}
    upstream: str = ""

    @classmethod
    def load(cls, folder: Path) -> Memory:
        """The folder's memory; a fresh one for a new folder. Raises UpError if it is damaged."""
        path = _path(folder)
        try:
            memory = msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls(name=secrets.token_hex(3))
        except (OSError, msgspec.DecodeError) as error:
            raise UpError(f"{path} can't be read ({error}). Remove it to start anew.") from error
        memory.name = memory.name or secrets.token_hex(3)
        return memory

    def save(self, folder: Path) -> None:
        """Writes it, whole or not at all."""
        write_private(_path(folder), msgspec.json.format(msgspec.json.encode(self)) + b"\n")

    async def port_for(self, process: str) -> int:
        """The process's port of last time if it can be had, else a free one, then remembered."""
        self.ports[process] = await claim_port(self.ports.get(process, 0))
        return self.ports[process]

    def gateway_port(self, options: UpOptions) -> int:
        """The gateway's port. Raises UpError if one was asked for that is taken."""
        wanted = options.port
        if wanted:
            if not port_is_free(wanted, options.host):
                raise UpError(
                    f"Port {wanted} on {options.host} is taken. "
                    "Name another with --port, or 0 for any free one."
                )
            self.ports["gateway"] = wanted
            return wanted
        candidates = [self.ports.get("gateway", 0), DEFAULT_PORT if wanted is None else 0]
        for port in filter(None, candidates):
            if port_is_free(port, options.host):
                break
        else:
            port = free_port()
        self.ports["gateway"] = port
        return port


def write_private(path: Path, content: bytes) -> None:
    """Replaces a file that only its owner may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    part.replace(path)


def _path(folder: Path) -> Path:
    return folder / "up.json"
