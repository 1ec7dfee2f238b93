"""Chooses the best broker that this machine can run: Docker, then the JVM, then in memory.

A folder that holds the data of one kind of broker goes on with that kind: another would start
empty, and silently losing batches is worse than not starting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from api.up.broker import (
    ABILITIES,
    Broker,
    BrokerError,
    BrokerKind,
    BrokerState,
    BrokerUnavailableError,
)
from api.up.docker import DockerBroker
from api.up.jvm import JvmBroker
from api.up.tansu import TansuBroker

Say = Callable[[str], None]

#: Best first.
LADDER = (BrokerKind.DOCKER, BrokerKind.JVM, BrokerKind.TANSU)


@dataclass(frozen=True, slots=True)
class Climb:
    """The broker that started, and why those above it did not."""

    broker: Broker
    refused: tuple[str, ...]


def make_broker(kind: BrokerKind, folder: Path, say: Say) -> Broker:
    """A broker of that kind on the folder, not started."""
    match kind:
        case BrokerKind.DOCKER:
            return DockerBroker(folder, say)
        case BrokerKind.JVM:
            return JvmBroker(folder, say)
        case BrokerKind.TANSU:
            return TansuBroker(folder)
        case BrokerKind.EXTERNAL:
            raise BrokerError("An existing cluster is named with --kafka, not chosen.")


def rungs(folder: Path) -> Sequence[BrokerKind]:
    """The kinds to try for a folder, best first."""
    kind = BrokerState.load(folder / "kafka" / "broker.json").kind
    if kind and ABILITIES[BrokerKind(kind)].durable:
        return (BrokerKind(kind),)
    return LADDER


async def start_best(folder: Path, say: Say, kinds: Sequence[BrokerKind] | None = None) -> Climb:
    """Starts the first broker that this machine can run. Raises BrokerError if none can."""
    refused: list[str] = []
    for kind in kinds or rungs(folder):
        broker = make_broker(kind, folder, say)
        try:
            await broker.start()
        except BrokerUnavailableError as error:
            refused.append(f"{kind}: {error}")
            continue
        return Climb(broker, tuple(refused))
    raise BrokerError(_nothing_left(folder, refused))


def _nothing_left(folder: Path, refused: Sequence[str]) -> str:
    reasons = "; ".join(refused)
    kept = BrokerState.load(folder / "kafka" / "broker.json").kind
    if kept:
        return (
            f"The data in {folder} belong to the broker '{kept}', which can't be started: "
            f"{reasons}. Restore what is missing, or use another --data folder."
        )
    return (
        f"No broker can be started here ({reasons}). Install Docker, or Java 17 and Maven, or "
        "backhaul[demo]; or name a cluster with --kafka HOST:PORT."
    )
