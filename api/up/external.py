"""A cluster that somebody else runs: reached, never started or stopped."""

from __future__ import annotations

from api.up.broker import ABILITIES, Abilities, BrokerError, BrokerKind, wait_until_answers
from streams.kafka.connection import connection
from streams.settings import Settings

_ANSWERS_WITHIN_S = 15.0


class ExternalBroker:
    """The cluster of `--kafka` or BACKHAUL_KAFKA, with the environment's TLS and SASL settings."""

    kind = BrokerKind.EXTERNAL

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reached = False

    @property
    def abilities(self) -> Abilities:
        """What we assume of it: Apache Kafka or the like."""
        return ABILITIES[self.kind]

    @property
    def bootstrap(self) -> str:
        """Its bootstrap servers."""
        return self._settings.kafka

    @property
    def pids(self) -> list[int]:
        """None of ours."""
        return []

    @property
    def running(self) -> bool:
        """Whether it answered at the start; clients reconnect by themselves."""
        return self._reached

    async def start(self) -> None:
        """Waits until it answers. Raises BrokerError."""
        try:
            await wait_until_answers(connection(self._settings), _ANSWERS_WITHIN_S, lambda: True)
        except BrokerError as error:
            raise BrokerError(f"{error} Check --kafka or BACKHAUL_KAFKA.") from error
        self._reached = True

    async def stop(self, within_s: float) -> None:
        """Leaves it alone."""

    def kill(self) -> None:
        """Leaves it alone."""
