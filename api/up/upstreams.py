"""The upstream table of `backhaul up`: a file that was named, a URL, or the simulator."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import yaml

from api.up.broker import LOOPBACK
from api.up.options import Memory, UpError, UpOptions, write_private
from streams.adapters.engine_metrics import HTTPEngineMetrics
from streams.ports.engine_metrics import EngineMetricsError

#: If this is set, it is sent to the upstream as the bearer token.
KEY_VARIABLE = "BACKHAUL_UPSTREAM_KEY"
_ANSWERS_WITHIN_S = 10.0
#: A server with more models than this is a catalogue; '*' serves it better than a long list.
_MODELS_AT_MOST = 500
#: How a folder remembers what its upstream is.
_FILE = "file:"
_URL = "url:"
SIMULATED = "simulator"
#: Names for GET /v1/models; the simulator answers for any other, too.
_SIMULATED_MODELS = ["sim-chat", "sim-embedding", "*"]


def normal_base_url(url: str) -> str:
    """The URL up to and with its version, '/v1' if none is given. Raises UpError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UpError(f"--upstream {url!r} is not an http:// or https:// URL.")
    return url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"


async def models_at(base_url: str) -> list[str]:
    """The models that the server lists; ['*'] if it doesn't answer or lists none."""
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=_ANSWERS_WITHIN_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(f"{base_url}/models") as answer,
        ):
            answer.raise_for_status()
            listed = (await answer.json(content_type=None))["data"]
            models = sorted({str(model["id"]) for model in listed})
    except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError):
        return ["*"]
    return models if 0 < len(models) <= _MODELS_AT_MOST else ["*"]


async def metrics_at(base_url: str) -> str | None:
    """The address of the engine's Prometheus page, if the server is one and shows it."""
    url = f"{base_url.removesuffix('/v1')}/metrics"
    engine = HTTPEngineMetrics(url)
    try:
        await engine.read()
    except EngineMetricsError:
        return None
    finally:
        await engine.close()
    return url


async def write_url_table(path: Path, base_url: str) -> None:
    """Writes an upstream table with the server at this URL, as it shows itself."""
    models, metrics_url = await asyncio.gather(models_at(base_url), metrics_at(base_url))
    write_table(path, "upstream", base_url, models, metrics_url)


def write_table(
    path: Path, name: str, base_url: str, models: list[str], metrics_url: str | None = None
) -> None:
    """Writes an upstream table with one server. metrics_url: of vLLM or SGLang."""
    upstream: dict[str, object] = {"name": name, "base_url": base_url, "models": models}
    if metrics_url is not None:
        # Both engines drop a request whose connection is closed, so batch calls may be cut.
        upstream["yield"] = {"metrics_url": metrics_url, "abort": True}
    if os.environ.get(KEY_VARIABLE):
        upstream["api_key_env"] = KEY_VARIABLE
    text = yaml.safe_dump({"upstreams": [upstream]}, sort_keys=False)
    write_private(path, f"# Written by `backhaul up`.\n{text}".encode())


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Where the models are: the table's file, a name for people, and the simulator's port."""

    file: Path
    label: str
    simulator_port: int | None = None


async def choose(options: UpOptions, memory: Memory, folder: Path) -> Choice:
    """The upstreams to use: as asked, else those of last time, else the simulator.

    Raises UpError if what was asked for can't be used.
    """
    if options.upstreams is not None:
        memory.upstream = f"{_FILE}{options.upstreams.absolute()}"
    elif options.upstream is not None:
        base_url = normal_base_url(options.upstream)
        memory.upstream = f"{_URL}{base_url}"
        await write_url_table(_own_table(folder), base_url)
    if memory.upstream.startswith(_FILE):
        file = Path(memory.upstream.removeprefix(_FILE))
        return Choice(file=file, label=str(file))
    if memory.upstream.startswith(_URL):
        base_url = memory.upstream.removeprefix(_URL)
        # The table of last time may have been edited since; it is left as it is.
        if not has_table(folder):
            await write_url_table(_own_table(folder), base_url)
        return Choice(file=_own_table(folder), label=base_url)
    memory.upstream = SIMULATED
    port = await memory.port_for("simulator")
    write_table(_own_table(folder), "simulator", f"http://{LOOPBACK}:{port}/v1", _SIMULATED_MODELS)
    return Choice(file=_own_table(folder), label=SIMULATED, simulator_port=port)


def has_table(folder: Path) -> bool:
    """Whether the folder has an upstream table of its own."""
    return _own_table(folder).exists()


def _own_table(folder: Path) -> Path:
    return folder / "upstreams.yaml"
