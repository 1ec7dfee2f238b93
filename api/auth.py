"""Who is asking: from a Bearer key to a tenant and the key's id."""

from __future__ import annotations

from aiohttp import web

from api.accounts.keys import hash_of
from api.errors import Unauthenticated
from api.read_model.follower import Follower
from api.read_model.queries import Caller, Queries

TENANT = web.RequestKey("tenant", str)
#: Id of the API key that the request came with.
KEY_ID = web.RequestKey("key_id", str)

#: Where Stripe speaks to us; its signature is its key.
STRIPE_WEBHOOK = "/stripe/webhook"
#: Paths that need no API key, as their routes find out themselves who speaks.
KEYLESS = frozenset({STRIPE_WEBHOOK})

_CODE = "invalid_api_key"
_MAX_KEY = 512
#: Keys remembered between changes of any key.
_CACHE_SIZE = 10_000


class Keyring:
    """Finds whose key it is, and remembers it until any key changes.

    Keys are looked up by their hash, so no comparison takes a time that depends on a secret.
    """

    def __init__(self, queries: Queries, *, sync_timeout_s: float = 10.0) -> None:
        self._queries = queries
        self._sync_timeout_s = sync_timeout_s
        self._callers: dict[str, Caller] = {}
        self._changes = 0
        #: Set once the follower is there: it tells the keyring of changes, and is made first.
        self.follower: Follower | None = None

    def forget(self) -> None:
        """Some key was made or revoked."""
        self._callers.clear()
        self._changes += 1

    async def caller(self, authorization: str | None) -> Caller:
        """Whom this Authorization header speaks for. Raises Unauthenticated."""
        hashed = hash_of(_bearer(authorization))
        return self._callers.get(hashed) or await self._look_up(hashed)

    async def _look_up(self, hashed: str) -> Caller:
        changes = self._changes
        found = await self._queries.caller_of_key(hashed)
        if found is None and self.follower is not None:
            # The key may have been made a moment ago.
            await self.follower.sync(self._sync_timeout_s)
            changes = self._changes
            found = await self._queries.caller_of_key(hashed)
        if found is None:
            raise Unauthenticated("Incorrect API key provided.", code=_CODE)
        # A key revoked while it was looked up must not be remembered.
        if changes == self._changes:
            if len(self._callers) >= _CACHE_SIZE:
                self._callers.clear()
            self._callers[hashed] = found
        return found


def _bearer(authorization: str | None) -> str:
    scheme, _, secret = (authorization or "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise Unauthenticated(
            "You didn't provide an API key. You need to provide your API key in an "
            "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
            code=_CODE,
        )
    if len(secret) > _MAX_KEY:
        raise Unauthenticated("Incorrect API key provided.", code=_CODE)
    return secret
