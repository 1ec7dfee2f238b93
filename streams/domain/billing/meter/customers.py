"""The keys under which `account` keeps whom a tenant is billed to."""

from __future__ import annotations

_PREFIX = "customer/"


def key_of(tenant: str) -> str:
    """The key of the tenant's BillingCustomer."""
    return _PREFIX + tenant


def tenant_of(key: str) -> str | None:
    """The tenant that a key of `account` is the customer of; None if it is something else's."""
    return key.removeprefix(_PREFIX) if key.startswith(_PREFIX) else None
