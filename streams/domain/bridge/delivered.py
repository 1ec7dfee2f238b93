"""How far the ended batches of one partition were delivered: what a commit notes.

An ended batch may be told more than once in a row: a controller that is killed after it told it
tells it again. So the note names the batches delivered last, beside the one that is half done.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, replace

import msgspec

#: Batches that are remembered. A controller repeats at most what it told in one step.
_REMEMBERED = 256
_DIGEST_BYTES = 6
_DIGEST_CHARACTERS = 8


class _Note(msgspec.Struct, omit_defaults=True):
    batch: str = ""
    next: int = 0
    sent: int = 0
    done: str = ""


_notes = msgspec.json.Decoder(_Note)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """done: marks of the last batches that were delivered whole, the latest at the end.

    batch: the mark of the one that is half done; next: its first line that wasn't looked at, from
    0; sent: its lines that were sent.
    """

    done: tuple[str, ...] = ()
    batch: str = ""
    next: int = 0
    sent: int = 0

    @classmethod
    def of(cls, note: str) -> Delivered:
        """What a commit notes; nothing at all if it is no such note."""
        try:
            found = _notes.decode(note)
        except msgspec.DecodeError:
            return cls()
        size = _DIGEST_CHARACTERS
        done = tuple(found.done[i : i + size] for i in range(0, len(found.done), size))
        return cls(done=done, batch=found.batch, next=max(0, found.next), sent=max(0, found.sent))

    def note(self) -> str:
        """For the commit; at most 2.2 KB."""
        found = _Note(batch=self.batch, next=self.next, sent=self.sent, done="".join(self.done))
        return msgspec.json.encode(found).decode()

    def has(self, batch_id: str) -> bool:
        """Whether this batch was delivered, as far as is remembered."""
        return _digest(batch_id) in self.done

    def begun(self, batch_id: str) -> Delivered:
        """Where to go on with this batch: at its first line, or after what was sent of it."""
        mark = _digest(batch_id)
        return self if self.batch == mark else replace(self, batch=mark, next=0, sent=0)

    def after(self, number: int, sent: int) -> Delivered:
        """The begun batch was looked at up to this line, and so many lines of it were sent."""
        return replace(self, next=number + 1, sent=sent)

    def ended(self) -> Delivered:
        """The begun batch was delivered whole."""
        return Delivered(done=(*self.done, self.batch)[-_REMEMBERED:])


def _digest(batch_id: str) -> str:
    digest = hashlib.sha256(batch_id.encode()).digest()[:_DIGEST_BYTES]
    return base64.urlsafe_b64encode(digest).decode()
