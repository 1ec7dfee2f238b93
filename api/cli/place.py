"""Where the server is and with which key: options, environment, then what `backhaul up` left.

`backhaul up` writes `<data folder>/endpoint.json` (mode 0600) when it is ready:
{"base_url": …, "api_key": …, "settings": {…}}, where `settings` are those of its processes
that a command needs to reach the same Kafka, by the names of streams.settings.Settings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from api.cli.failure import Misuse

ENDPOINT_FILE = "endpoint.json"
DEFAULT_BASE_URL = "http://127.0.0.1:8080/v1"
DEFAULT_DATA_DIR = Path("backhaul-data")


class Endpoint(msgspec.Struct, kw_only=True):
    """What a running `backhaul up` tells the other commands."""

    base_url: str | None = None
    api_key: str | None = None
    settings: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Place:
    """A server to talk to. api_key: None if nobody named one."""

    base_url: str
    api_key: str | None


def read_endpoint(data_dir: Path | None) -> Endpoint:
    """What the data folder tells; an empty one where it tells nothing."""
    path = (data_dir or _data_dir()) / ENDPOINT_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Endpoint)
    except (FileNotFoundError, NotADirectoryError):
        return Endpoint()
    except (OSError, msgspec.DecodeError) as error:
        raise Misuse(f"{path} can't be read: {error}.", "Start `backhaul up` again.") from None


def resolve(
    base_url: str | None = None, api_key: str | None = None, data_dir: Path | None = None
) -> Place:
    """The server that these options mean. Raises Misuse if the address is no http(s) URL.

    The data folder's key goes to the data folder's server only.
    """
    base_url = base_url or os.environ.get("BACKHAUL_BASE_URL")
    api_key = api_key or os.environ.get("BACKHAUL_API_KEY")
    if base_url and api_key:
        return Place(normal_url(base_url), api_key)
    found = read_endpoint(data_dir)
    own_url = normal_url(found.base_url or DEFAULT_BASE_URL)
    url = normal_url(base_url) if base_url else own_url
    return Place(url, api_key or (found.api_key if url == own_url else None))


def normal_url(text: str) -> str:
    """The address up to and with `/v1`, without a slash at its end."""
    url = text.strip().rstrip("/")
    scheme, _, rest = url.partition("://")
    if scheme not in ("http", "https") or not rest or rest.startswith("/"):
        raise Misuse(
            f"The server's address {text!r} is not an http:// or https:// URL.",
            f"An example: --base-url {DEFAULT_BASE_URL}",
        )
    return url if url.endswith("/v1") else f"{url}/v1"


def _data_dir() -> Path:
    return Path(os.environ.get("BACKHAUL_DATA_DIR") or DEFAULT_DATA_DIR)
