"""`backhaul topics`: create the topics of the topic table, and show where a cluster differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from api.cli.failure import Failure
from api.cli.kafka import KafkaData, KafkaServers, kafka_settings, run
from api.cli.options import AsJSON
from api.cli.terminal import out, out_json

if TYPE_CHECKING:
    from streams.kafka.admin import TopicState

_NAME_WIDTH = 34

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Kafka topics: apply the topic table, show drift.",
)


@app.command()
def apply(as_json: AsJSON = False, kafka: KafkaServers = None, data_dir: KafkaData = None) -> None:
    """Create the topics that are missing; say what was done. Never removes or shrinks anything."""
    from streams.kafka.admin import apply_topics

    changes = run(apply_topics(kafka_settings(kafka, data_dir)))
    if as_json:
        out_json({"changes": changes})
        return
    for change in changes or ["All topics are there; nothing was changed."]:
        out(change)


@app.command()
def show(as_json: AsJSON = False, kafka: KafkaServers = None, data_dir: KafkaData = None) -> None:
    """Show each topic and how it differs from the topic table; exit code 1 if any does."""
    from streams.kafka.admin import show_topics

    states = run(show_topics(kafka_settings(kafka, data_dir)))
    if not as_json:
        out(f"{'TOPIC':<{_NAME_WIDTH}} {'PARTITIONS':>10}  STATE")
    for state in states:
        if as_json:
            out_json(_shown(state))
        else:
            _row(state)
    if any(state.drift for state in states):
        raise Failure(
            "The cluster differs from the topic table.",
            "Create what is missing with `backhaul topics apply`.",
        )


def _shown(state: TopicState) -> dict[str, object]:
    return {
        "topic": state.wanted.full_name,
        "partitions": state.partitions,
        "replicas": state.replicas,
        "drift": list(state.drift),
        "why": state.wanted.topic.why,
    }


def _row(state: TopicState) -> None:
    partitions = "-" if state.partitions is None else str(state.partitions)
    first, *more = state.drift or ("ok",)
    out(f"{state.wanted.full_name:<{_NAME_WIDTH}} {partitions:>10}  {first}")
    for drift in more:
        out(f"{'':<{_NAME_WIDTH}} {'':>10}  {drift}")
