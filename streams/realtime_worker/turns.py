"""Whose call is next: tenants take turns, and within a tenant the first to come is the first.

So a tenant that has hundreds waiting is in nobody's way: another's call waits for one call of each
tenant that waits. A tenant without a call here is not remembered.
"""

from __future__ import annotations

from collections import OrderedDict

from streams.realtime_worker.call import Call


class Turns:
    """The calls that wait. As many as gateways have open, so their settings bound them."""

    def __init__(self) -> None:
        #: Those of each tenant, the tenant whose turn it is first.
        self._tenants: OrderedDict[str, OrderedDict[Call, None]] = OrderedDict()
        self._calls = 0

    def __len__(self) -> int:
        return self._calls

    @property
    def oldest_ms(self) -> int | None:
        """When the gateway sent what waits longest, in Unix ms; None if nothing waits."""
        firsts = (next(iter(calls)).request.at_ms for calls in self._tenants.values())
        return min(firsts, default=None)

    def add(self, call: Call) -> None:
        """Lets it wait behind its tenant's others; a new tenant is behind the other tenants."""
        self._tenants.setdefault(call.request.tenant, OrderedDict())[call] = None
        self._calls += 1

    def take(self) -> Call:
        """Takes out the next. There must be one."""
        tenant, calls = next(iter(self._tenants.items()))
        call, _ = calls.popitem(last=False)
        self._tenants.move_to_end(tenant)
        self._taken(tenant, calls)
        return call

    def remove(self, call: Call) -> None:
        """Takes this one out, if it is here."""
        tenant = call.request.tenant
        calls = self._tenants.get(tenant)
        if calls is not None and call in calls:
            del calls[call]
            self._taken(tenant, calls)

    def _taken(self, tenant: str, calls: OrderedDict[Call, None]) -> None:
        self._calls -= 1
        if not calls:
            del self._tenants[tenant]
