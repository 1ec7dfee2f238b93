"""How often the delivery of a batch is tried, by what goes wrong.

no broker, or another process sends now   for ever, with pauses: nobody else gets on either
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
    """What went wrong since something was last delivered.

    gives_up: why the batch in turn is not to be tried again as it is; None while it is.
    """

    def __init__(self) -> None:
        self.gives_up: Undelivered | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._tried = 0
        #: Tenants whose topic was missing: of their next batches one try is enough.
        self._without_topic: set[str] = set()

    def failed(self, error: Failure, tenant: str, *, store_answers: bool) -> None:
        """A batch of the tenant's could not be delivered. store_answers: when asked for others."""
        match error:
            case BrokerUnreachable() | Fenced():
                return
            case TopicMissing():
                known = tenant in self._without_topic
                self._count(Undelivered.TOPIC_MISSING, 1 if known else _TRIES_FOR_A_TOPIC)
                if self.gives_up is not None:
                    self._without_topic.add(tenant)
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

    def delivered(self, tenant: str) -> None:
        """A batch of the tenant's got through."""
        self._without_topic.discard(tenant)
        self.given_up()

    def given_up(self) -> None:
        """A batch was passed over: the next one is tried anew."""
        self.gives_up = None
        self._pause_s = _FIRST_PAUSE_S
        self._tried = 0

    def _count(self, why: Undelivered, tries: int) -> None:
        self._tried += 1
        if self._tried >= tries:
            self.gives_up = why
