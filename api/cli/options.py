"""Options that several commands have, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.cli.client import Client
from api.cli.place import resolve

_PANEL = "Server"

BaseURL = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        help="The server's address. Else BACKHAUL_BASE_URL, else that of `backhaul up`.",
        metavar="URL",
        rich_help_panel=_PANEL,
    ),
]
APIKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        help="Else BACKHAUL_API_KEY, else the key that `backhaul up` made.",
        metavar="KEY",
        rich_help_panel=_PANEL,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="The data folder of `backhaul up`. Else BACKHAUL_DATA_DIR, else ./backhaul-data.",
        metavar="DIR",
        rich_help_panel=_PANEL,
    ),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Interval = Annotated[
    float, typer.Option("--interval", help="Seconds between two looks.", min=0.05, max=3600)
]
BatchID = Annotated[str, typer.Argument(metavar="BATCH", help="The batch's id.")]


def client_for(base_url: str | None, api_key: str | None, data_dir: Path | None) -> Client:
    """A client of the server that the options mean."""
    place = resolve(base_url, api_key, data_dir)
    return Client(place.base_url, place.api_key)
