"""How often something is tried that goes to a tenant's topic, by what goes wrong.

no broker, or another process sends now   for ever, with pauses
the tenant's topic is missing             a few times, as it may just have been made
the broker refuses its records            some times more
the broker doesn't take them in time      for about half an hour
a file can't be read                      some times, and for ever while the store is down
"""

from __future__ import annotations

from schemas.errors import Undelivered
from streams.kafka.errors import (
    BrokerUnreachable,
    Fenced,
    KafkaBaseError,
    RecordTooLarge,
    SendFailed,
    TopicMissing,
)
from streams.ports.object_store import ObjectStoreError

_TRIES_FOR_A_TOPIC = 3
_TRIES = 5
_TRIES_OF_A_SLOW_BROKER = 20
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0

Failure = KafkaBaseError | ObjectStoreError


class Patience:
    """What went wrong with one tenant since something of it was last delivered.

    gives_up: why what is in turn is not to be tried again as it is; None while it is. failing:
    whether nothing was delivered since the last failure.
    """

    def __init__(self) -> None:
        self.gives_up: Undelivered | None = None
        self.failing = False
        self._pause_s = _FIRST_PAUSE_S
        self._tried = 0
        #: Whether the topic was missing: for what comes next one try is enough.
        self._no_topic = False

    def failed(self, error: Failure, *, store_answers: bool = False) -> None:
        """It could not be delivered. store_answers: when asked for others."""
        self.failing = True
        match error:
            case BrokerUnreachable() | Fenced():
                return
            case TopicMissing():
                self._count(Undelivered.TOPIC_MISSING, 1 if self._no_topic else _TRIES_FOR_A_TOPIC)
                self._no_topic = self.gives_up is not None
            case ObjectStoreError():
                if store_answers:
                    self._count(Undelivered.FILE_UNREADABLE, _TRIES)
            case SendFailed() if not isinstance(error, RecordTooLarge):
                self._count(Undelivered.TOPIC_REFUSED, _TRIES_OF_A_SLOW_BROKER)
            case _:
                self._count(Undelivered.TOPIC_REFUSED, _TRIES)

    def pause(self) -> float:
        """How many seconds to wait now, each time longer."""
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return pause_s

    def delivered(self) -> None:
        """It got through."""
        self.failing = self._no_topic = False
        self.given_up()

    def given_up(self) -> None:
        """It was passed over: the next one is tried anew."""
        self.gives_up = None
        self._pause_s = _FIRST_PAUSE_S
        self._tried = 0

    def _count(self, why: Undelivered, tries: int) -> None:
        self._tried += 1
        if self._tried >= tries:
            self.gives_up = why
