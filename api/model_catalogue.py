"""Which models there are: those the upstream table names, and for '*' what an upstream lists."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field

import aiohttp
import msgspec
import structlog

from streams.domain.clock import Clock
from streams.domain.upstreams import Upstream, UpstreamTable

log = structlog.get_logger(__name__)

#: How long an upstream's list is believed, and how long it may be awaited.
CACHE_S = 60.0
TIMEOUT_S = 5.0
#: After a failure the upstream is left alone for this long.
_RETRY_S = 10.0
_MAX_LIST_BYTES = 4 * 1024 * 1024
_MAX_MODELS = 10_000


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model as callers see it. created: Unix seconds. owned_by: the upstream's name."""

    id: str
    created: int
    owned_by: str


class _ListedModel(msgspec.Struct, frozen=True):
    id: str
    created: int = 0


class _ModelList(msgspec.Struct, frozen=True):
    data: list[_ListedModel]


@dataclass
class _Cached:
    models: tuple[Model, ...] = ()
    good_until_s: float = float("-inf")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class ModelCatalogue:
    """Answers from the table at once, and from upstreams that serve '*' through a cache."""

    def __init__(self, upstreams: UpstreamTable, clock: Clock) -> None:
        self._upstreams = upstreams
        self._clock = clock
        self._since_s = clock.now_ms() // 1000
        self._session: aiohttp.ClientSession | None = None
        self._cached = {u.name: _Cached() for u in upstreams.upstreams.values() if "*" in u.models}

    async def close(self) -> None:
        """Closes connections to upstreams."""
        if self._session is not None:
            await self._session.close()

    async def models(self) -> list[Model]:
        """All models by name; of several upstreams with one model, the table's first owns it."""
        found: dict[str, Model] = {}
        listed = await asyncio.gather(*map(self._of, self._upstreams.upstreams.values()))
        for models in listed:
            for model in models:
                found.setdefault(model.id, model)
        return sorted(found.values(), key=lambda m: m.id)

    async def _of(self, upstream: Upstream) -> list[Model]:
        named = [
            Model(id=name, created=self._since_s, owned_by=upstream.name)
            for name in upstream.models
            if name != "*"
        ]
        return named + list(await self._listed(upstream)) if "*" in upstream.models else named

    async def _listed(self, upstream: Upstream) -> tuple[Model, ...]:
        cached = self._cached[upstream.name]
        async with cached.lock:
            if self._clock.monotonic_s() < cached.good_until_s:
                return cached.models
            try:
                cached.models = await self._ask(upstream)
                cached.good_until_s = self._clock.monotonic_s() + CACHE_S
            except (aiohttp.ClientError, TimeoutError, ValueError, msgspec.DecodeError) as error:
                # What it listed before is the best answer there is.
                cached.good_until_s = self._clock.monotonic_s() + _RETRY_S
                log.warning(
                    "An upstream does not list its models.",
                    action="upstream_models_failed",
                    upstream=upstream.name,
                    error=type(error).__name__,
                )
        return cached.models

    async def _ask(self, upstream: Upstream) -> tuple[Model, ...]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), trust_env=False
            )
        key = os.environ.get(upstream.api_key_env) if upstream.api_key_env else None
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = upstream.base_url.rstrip("/") + "/models"
        async with self._session.get(url, headers=headers) as response:
            response.raise_for_status()
            raw = await response.content.read(_MAX_LIST_BYTES)
            while chunk := await response.content.read(_MAX_LIST_BYTES):
                raw += chunk
                if len(raw) > _MAX_LIST_BYTES:
                    raise ValueError("the list is too large")
        listed = msgspec.json.decode(raw, type=_ModelList).data
        return tuple(
            Model(id=m.id, created=m.created, owned_by=upstream.name) for m in listed[:_MAX_MODELS]
        )
