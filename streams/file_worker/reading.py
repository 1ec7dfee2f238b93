"""How an assembly reads ranges of its objects: patiently, and as far as they can be read.

What can't be read is told apart: an object that is gone, damaged or fails again and again while
others can be read is given up (its lines are lost, loudly); a store that answers nobody is
trouble that passes, and the whole assembly waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from streams.file_worker.patience import Patience
from streams.ports.object_store import ObjectNotFoundError, ObjectStore, ObjectStoreError

log = structlog.get_logger(__name__)

#: One object may fail for this long while others can be read, before it is given up.
OBJECT_BUDGET_S = 120.0


class PatientRanges:
    """Ranges for one assembly."""

    def __init__(
        self, store: ObjectStore, patience: Patience, batch_id: str, witnesses: Iterable[str]
    ) -> None:
        """`witnesses` are keys to try when it is not clear if an object is broken or the store."""
        self._store = store
        self._patience = patience
        self._batch_id = batch_id
        #: Objects that were given up: their ranges are not waited for again.
        self._given_up: set[str] = set()
        self._witnesses = tuple(witnesses)

    async def read(self, key: str, offset: int, length: int) -> bytes | None:
        """The bytes, or None if the object was given up. Raises ObjectStoreError."""
        budget = 0.0 if key in self._given_up else OBJECT_BUDGET_S
        try:
            return await self._patience.keep_trying(
                lambda: self._store.get_range(key, offset, length),
                budget,
                batch_id=self._batch_id,
                task="assembly",
            )
        except ObjectNotFoundError as error:
            self.damaged(key, error)
            return None
        except ObjectStoreError as error:
            if not await self._store_answers(key):
                raise
            self.damaged(key, error)
            return None

    def damaged(self, key: str, error: Exception) -> None:
        """Gives the object up."""
        if key in self._given_up:
            return
        self._given_up.add(key)
        log.error(
            "An object of a batch can't be read; lines that only it holds are lost.",
            action="object_unreadable",
            batch_id=self._batch_id,
            key=key,
            error=str(error),
        )

    async def _store_answers(self, but: str) -> bool:
        """Whether the store answers when asked for another object."""
        for key in self._witnesses:
            if key != but:
                try:
                    await self._store.get_range(key, 0, 1)
                except ObjectNotFoundError:
                    return True
                except ObjectStoreError:
                    continue
                return True
        return False
