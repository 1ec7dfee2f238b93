"""Slices whose outcomes are overdue at a certain time.

A slice gets its lease when the worker has committed past it: then every line of it has an outcome
in line.done, and only some loss can keep it from being folded.
"""

from __future__ import annotations

from streams.domain.dispatch.slice import Slice


class Leases:
    """The running leases, all of the same length and so in the order in which they end."""

    def __init__(self, lease_ms: int) -> None:
        self._lease_ms = lease_ms
        self._ends: dict[Slice, int] = {}

    def start(self, slice_: Slice, now_ms: int) -> None:
        """The slice's lines must be in before long, if any are still out."""
        if slice_.left:
            self._ends[slice_] = now_ms + self._lease_ms

    def end(self, slice_: Slice) -> None:
        """None of its lines is out any more."""
        self._ends.pop(slice_, None)

    def next_end_ms(self) -> int | None:
        """When the first lease is over."""
        return next(iter(self._ends.values()), None)

    def over(self, now_ms: int) -> list[Slice]:
        """Slices whose lease is over; they have none from now on."""
        found = []
        for slice_, ends_ms in self._ends.items():
            if ends_ms > now_ms:
                break
            found.append(slice_)
        for slice_ in found:
            del self._ends[slice_]
        return found
