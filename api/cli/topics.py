"""`backhaul topics`: create the topics of the topic table, and show where a cluster differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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


@app.command()
def tenant(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")],
    as_json: AsJSON = False,
    kafka: KafkaServers = None,
    data_dir: KafkaData = None,
) -> None:
    """Create a tenant's own topics, through which its services submit batches and get results.

    Whoever may write to the first speaks for the tenant: see docs/kafka.md for the ACLs.
    """
    from api.accounts.keys import InvalidKeyName, check_tenant
    from schemas.topics import BATCH_IN, BATCH_OUT
    from streams.kafka.admin import apply_topics

    try:
        check_tenant(tenant)
    except InvalidKeyName as error:
        raise typer.BadParameter(str(error), param_hint="TENANT") from error
    settings = kafka_settings(kafka, data_dir)
    topics = [BATCH_IN.of(tenant), BATCH_OUT.of(tenant)]
    changes = run(apply_topics(settings, topics=topics))
    submit, results = (topic.full_name(settings.topic_prefix) for topic in topics)
    if as_json:
        out_json({"submit": submit, "results": results, "changes": changes})
        return
    for change in changes or ["Both topics are there; nothing was changed."]:
        out(change)
    out(f"Submit to {submit}; results come on {results}.")


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
