"""What commands that talk to Kafka share: its settings, and its failures made ours."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from api.cli.failure import Failure, Misuse, ServerUnreachable
from api.cli.place import read_endpoint

if TYPE_CHECKING:
    from streams.settings import Settings

T = TypeVar("T")

KafkaServers = Annotated[
    str | None,
    typer.Option(
        "--kafka",
        metavar="HOST:PORT",
        help="Bootstrap servers. Else BACKHAUL_KAFKA, else those of `backhaul up`.",
    ),
]
KafkaData = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="The data folder of `backhaul up`. Else BACKHAUL_DATA_DIR, else ./backhaul-data.",
    ),
]


def kafka_settings(kafka: str | None, data_dir: Path | None) -> Settings:
    """Settings by option, environment, and then what `backhaul up` left. Raises Misuse."""
    from pydantic import ValidationError

    from streams.settings import Settings

    values: dict[str, Any] = {}
    if kafka is not None:
        values["kafka"] = kafka
    elif "BACKHAUL_KAFKA" not in os.environ:
        values.update(_left_by_up(data_dir))
    try:
        return Settings(**values)
    except ValidationError as error:
        wrong = "; ".join(
            f"BACKHAUL_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()
        )
        raise Misuse(f"The settings are wrong: {wrong}.") from None


def _left_by_up(data_dir: Path | None) -> dict[str, Any]:
    """The settings of a running `backhaul up`; the environment goes before them."""
    settings = read_endpoint(data_dir).settings
    return {
        name: value
        for name, value in settings.items()
        if f"BACKHAUL_{name.upper()}" not in os.environ
    }


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs it, quietly. Raises ServerUnreachable where no broker answers, else Failure."""
    import structlog

    from streams.kafka.errors import BrokerUnreachable, KafkaBaseError

    # What the libraries would log is said in the command's own words.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        return asyncio.run(work)
    except BrokerUnreachable as error:
        raise ServerUnreachable(
            str(error) or "No Kafka broker answers.",
            "Start Backhaul with `backhaul up`, or name a broker with --kafka or BACKHAUL_KAFKA.",
        ) from error
    except KafkaBaseError as error:
        raise Failure(str(error), type(error).__doc__ or "") from error
