"""`backhaul webhooks`: endpoints that are told when a batch has ended, and what they were told."""

from __future__ import annotations

import time
from typing import Annotated
from urllib.parse import quote

import typer

from api.cli.failure import Misuse
from api.cli.http import Json
from api.cli.options import APIKey, AsJSON, BaseURL, DataDir, client_for
from api.cli.terminal import note, out, out_json

_PATH = "/webhook_endpoints"

EndpointID = Annotated[str, typer.Argument(metavar="ENDPOINT", help="The endpoint's id.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Webhooks: who is told when a batch has ended, and what came of it.",
)


@app.command()
def create(
    url: Annotated[str, typer.Argument(help="Where events are posted; https://.")],
    event: Annotated[
        list[str] | None,
        typer.Option("--event", metavar="TYPE", help="As batch.completed; all if not given."),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="What it is for.")] = "",
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Make an endpoint. Its signing secret is shown once."""
    body: Json = {"url": url, "name": name}
    if event:
        body["event_types"] = event
    # Sent once: a repeat would make a second endpoint.
    with client_for(base_url, api_key, data_dir) as client:
        made = client.http.json_once("POST", _PATH, body)
    if as_json:
        out_json(made)
        return
    note(f"Endpoint {made.get('id')}; its signing secret, shown this once:")
    out(str(made.get("signing_secret")))


@app.command("list")
def list_all(
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """List your endpoints, newest first. With --json one a line."""
    with client_for(base_url, api_key, data_dir) as client:
        found = client.http.json("GET", f"{_PATH}?limit=100").get("data") or []
    for endpoint in found:
        if as_json:
            out_json(endpoint)
            continue
        state = "enabled" if endpoint.get("enabled") else "disabled"
        types = ",".join(map(str, endpoint.get("event_types") or []))
        out(f"{endpoint.get('id')} {state:<8} {endpoint.get('url')} {types}")
    if not found and not as_json:
        note("No endpoints.")


@app.command()
def update(
    endpoint: EndpointID,
    url: Annotated[str | None, typer.Option("--url", help="Where events are posted.")] = None,
    event: Annotated[
        list[str] | None,
        typer.Option("--event", metavar="TYPE", help="All types that it is told of from now on."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What it is for.")] = None,
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Whether it is told of anything.")
    ] = None,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Change an endpoint: what is given, and nothing else."""
    asked = {"url": url, "event_types": event or None, "name": name, "enabled": enabled}
    body = {key: value for key, value in asked.items() if value is not None}
    if not body:
        raise Misuse("There is nothing to change.", "Give --url, --event, --name or --disable.")
    with client_for(base_url, api_key, data_dir) as client:
        shown = client.http.json("POST", _of(endpoint), body)
        _say(shown, f"{endpoint} is changed.", as_json=as_json)


@app.command()
def rotate(
    endpoint: EndpointID,
    now: Annotated[
        bool, typer.Option("--now", help="End the old secret at once, as when it has leaked.")
    ] = False,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Make a new signing secret and show it, once. The old one is good for 24 hours more."""
    # Sent once: a repeat would make another secret.
    with client_for(base_url, api_key, data_dir) as client:
        body: Json = {"keep_old_secret_active_for_24_hours": not now}
        made = client.http.json_once("POST", f"{_of(endpoint)}/rotate_secret", body)
    if as_json:
        out_json(made)
        return
    note(f"The new signing secret of {endpoint}, shown this once:")
    out(str(made.get("signing_secret")))


@app.command()
def delete(
    endpoint: EndpointID,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Delete an endpoint, its log, and what it has not been told yet."""
    with client_for(base_url, api_key, data_dir) as client:
        _say(client.http.json("DELETE", _of(endpoint)), f"{endpoint} is deleted.", as_json=as_json)


@app.command()
def deliveries(
    endpoint: EndpointID,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Show what an endpoint was told last, the newest first. With --json one a line."""
    with client_for(base_url, api_key, data_dir) as client:
        found = client.http.json("GET", f"{_of(endpoint)}/deliveries").get("data") or []
    for delivery in found:
        if as_json:
            out_json(delivery)
        else:
            out(_row(delivery))
    if not found and not as_json:
        note("Nothing was delivered yet.")


@app.command()
def replay(
    endpoint: EndpointID,
    event: Annotated[str, typer.Argument(metavar="EVENT", help="The event's id, evt_….")],
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Deliver an event of the log again, with the same id."""
    with client_for(base_url, api_key, data_dir) as client:
        path = f"{_of(endpoint)}/deliveries/{quote(event, safe='')}/replay"
        _say(client.http.json("POST", path), f"{event} is delivered again.", as_json=as_json)


@app.command("test")
def send_sample(
    endpoint: EndpointID,
    event: Annotated[
        str, typer.Option("--event", metavar="TYPE", help="The sample's type.")
    ] = "batch.completed",
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Send an endpoint a sample event; `backhaul webhooks deliveries` shows how it went."""
    with client_for(base_url, api_key, data_dir) as client:
        sent = client.http.json("POST", f"{_of(endpoint)}/test", {"event_type": event})
        _say(sent, f"{sent.get('event_id')} is on its way.", as_json=as_json)


@app.command()
def enable(
    endpoint: EndpointID,
    as_json: AsJSON = False,
    base_url: BaseURL = None,
    api_key: APIKey = None,
    data_dir: DataDir = None,
) -> None:
    """Let an endpoint be told again that was disabled because nothing got through."""
    with client_for(base_url, api_key, data_dir) as client:
        shown = client.http.json("POST", f"{_of(endpoint)}/enable")
        _say(shown, f"{endpoint} is enabled.", as_json=as_json)


def _of(endpoint: str) -> str:
    return f"{_PATH}/{quote(endpoint, safe='')}"


def _say(answer: Json, text: str, *, as_json: bool) -> None:
    if as_json:
        out_json(answer)
    else:
        out(text)


def _row(delivery: Json) -> str:
    about = (delivery.get("data") or {}).get("id")
    how = delivery.get("status_code") or delivery.get("error") or ""
    row = (
        f"{delivery.get('id')} {delivery.get('event_type')} {about} {delivery.get('state')} "
        f"after {delivery.get('attempts')} attempts {how}"
    )
    at = delivery.get("next_attempt_at")
    return row.rstrip() + (f", next in {max(0, at - int(time.time()))} s" if at else "")
