"""Reads of the object store that a line waits for: patient while it fails, final where bytes are
gone.
"""

from __future__ import annotations

import asyncio
import hashlib

import structlog

from schemas.records import ClaimCheck
from streams.domain.clock import Clock
from streams.ports.object_store import ObjectNotFoundError, ObjectStore, ObjectStoreError

log = structlog.get_logger(__name__)

#: Pauses while the object store fails: a line waits for it, and so does its credit.
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 5.0


async def read_claim(
    store: ObjectStore, claim: ClaimCheck | None, clock: Clock, deadline_ms: int
) -> bytes | None:
    """The claimed bytes, empty if they are lost; None if the deadline came before them."""
    if claim is None:
        return b""
    pause_s = FIRST_PAUSE_S
    while clock.now_ms() < deadline_ms:
        try:
            raw = await store.get_range(claim.key, claim.offset, claim.length)
        except ObjectNotFoundError:
            return b""
        except ObjectStoreError as error:
            log_failure(error)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, MAX_PAUSE_S)
        else:
            return raw if _is_whole(raw, claim) else b""
    return None


def log_failure(error: ObjectStoreError) -> None:
    """Says that the store failed and is tried again."""
    log.warning(
        "The object store failed; trying again.",
        action="store_failed",
        error=type(error).__name__,
    )


def _is_whole(raw: bytes, claim: ClaimCheck) -> bool:
    if len(raw) != claim.length:
        return False
    return claim.sha256 is None or hashlib.sha256(raw).hexdigest() == claim.sha256
