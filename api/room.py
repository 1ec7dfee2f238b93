"""Room for requests: whoever has many open leaves some for others.

A tenant that has one open gets no more while it has three times the room that would be left:

    n tenants that want all    each has      is left for the next
    1                          3/4 of all    1/4, and always one place
    2                          3/7           1/7
    n                          3/(3n+1)      1/(3n+1)

So nobody's share needs to be known beforehand, nor who else will come.
"""

from __future__ import annotations

from collections import Counter

#: What a tenant may have, in multiples of the room that is left.
_TIMES = 3


class Room:
    """How many places there are, and how many of them each tenant has."""

    def __init__(self, places: int) -> None:
        self._left = places
        self._held: Counter[str] = Counter()

    @property
    def full(self) -> bool:
        """Whether there is none left for anybody."""
        return self._left <= 0

    def enough(self, tenant: str) -> bool:
        """Whether the tenant must not take another now."""
        return self.full or self._held[tenant] > _TIMES * (self._left - 1)

    def take(self, tenant: str) -> None:
        """One of them is the tenant's, until free()."""
        self._held[tenant] += 1
        self._left -= 1

    def free(self, tenant: str) -> None:
        """It has one less."""
        self._left += 1
        self._held[tenant] -= 1
        if not self._held[tenant]:
            # Only tenants with a request are remembered.
            del self._held[tenant]
