"""How far a tenant's ended batches of one partition were delivered: what a commit notes.

An ended batch may be told more than once in a row: a controller that is killed after it told it
tells it again. So the note names the batches delivered last, beside those that are half done: the
one in turn, and such whose place in the log is gone by now (compaction keeps only a later telling).
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, replace

import msgspec

#: Batches that are remembered. A controller repeats at most what it told in one step.
_REMEMBERED = 256
#: Half-done ones beside that in turn. A process that ends leaves one at most.
_ASIDE = 16
_DIGEST_BYTES = 6
_DIGEST_CHARACTERS = 8


class _Note(msgspec.Struct, omit_defaults=True):
    batch: str = ""
    next: int = 0
    sent: int = 0
    done: str = ""
    aside: list[tuple[str, int, int]] = []


_notes = msgspec.json.Decoder(_Note)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """done: marks of the last batches that were delivered whole, the latest at the end.

    batch: the mark of the one in turn; next: its first line that wasn't looked at, from 0; sent:
    its lines that were sent. aside: the same three of others that are half done.
    """

    done: tuple[str, ...] = ()
    batch: str = ""
    next: int = 0
    sent: int = 0
    aside: tuple[tuple[str, int, int], ...] = ()

    @classmethod
    def of(cls, note: str) -> Delivered:
        """What a commit notes; nothing at all if it is no such note."""
        try:
            found = _notes.decode(note)
        except msgspec.DecodeError:
            return cls()
        size = _DIGEST_CHARACTERS
        done = tuple(found.done[i : i + size] for i in range(0, len(found.done), size))
        aside = tuple((batch, max(0, at), max(0, sent)) for batch, at, sent in found.aside)
        return cls(
            done=done,
            batch=found.batch,
            next=max(0, found.next),
            sent=max(0, found.sent),
            aside=aside[-_ASIDE:],
        )

    def note(self) -> str:
        """For the commit; at most 2.8 KB."""
        found = _Note(
            batch=self.batch,
            next=self.next,
            sent=self.sent,
            done="".join(self.done),
            aside=list(self.aside),
        )
        return msgspec.json.encode(found).decode()

    def has(self, batch_id: str) -> bool:
        """Whether this batch was delivered, as far as is remembered."""
        return _digest(batch_id) in self.done

    def begun(self, batch_id: str) -> Delivered:
        """Where to go on with this batch: at its first line, or after what was sent of it."""
        mark = _digest(batch_id)
        if self.batch == mark:
            return self
        half = {batch: (at, sent) for batch, at, sent in self.aside}
        if self.next:
            half[self.batch] = (self.next, self.sent)
        at, sent = half.pop(mark, (0, 0))
        aside = tuple((batch, *far) for batch, far in half.items())[-_ASIDE:]
        return replace(self, batch=mark, next=at, sent=sent, aside=aside)

    def after(self, number: int, sent: int) -> Delivered:
        """The begun batch was looked at up to this line, and so many lines of it were sent."""
        return replace(self, next=number + 1, sent=sent)

    def ended(self) -> Delivered:
        """The begun batch was delivered whole."""
        return Delivered(done=(*self.done, self.batch)[-_REMEMBERED:], aside=self.aside)


def _digest(batch_id: str) -> str:
    digest = hashlib.sha256(batch_id.encode()).digest()[:_DIGEST_BYTES]
    return base64.urlsafe_b64encode(digest).decode()
