"""The upstream table: which servers there are, what they serve, and within which limits.

Operators write it as YAML; `streams.settings.load_upstreams` reads the file and this module
judges it. A *pool* is a set of credits: an upstream's own, or that of one of its models where
the table gives the model a limit of its own. Pool names are `<upstream>` or `<upstream>/<model>`.
Beside each there is `<pool>#templates`, with credits of its own for lines whose prompt only the
sandbox can render, so that those which wait for it keep no other line waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import msgspec

from streams.domain.gate.floor import Protect
from streams.domain.gate.signals import Source

_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
_Positive = Annotated[float, msgspec.Meta(gt=0)]


#: The end of a pool's name that is not an upstream's or a model's.
_TEMPLATES = "#templates"


def templates_pool(pool: str) -> str:
    """The name of the pool beside this one, for lines that wait for the sandbox first."""
    return pool + _TEMPLATES


class UpstreamTableError(ValueError):
    """The upstream table is wrong; the message names the place and the remedy."""


class Yield(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How batch calls make way for real-time ones at an upstream, or at one of its models."""

    #: What P99 of the time to first token may be over that without batch: 0.05 is five per cent.
    target: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.05
    #: Batch calls of all workers that go on when a signal is missing or can't be true.
    floor: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 2
    #: Batch calls of all workers at the most; else max_in_flight of each that is alive.
    highest: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    #: Who wins when a window is in danger.
    protect: Protect = Protect.REALTIME
    #: Whether running calls may be cut, which the engine must bear: it must stop with them.
    abort: bool = False
    #: Signals without which the floor holds; else the lane's once it was heard, and the engine's
    #: where metrics_url is given.
    signals: frozenset[Source] | None = None
    #: The engine's Prometheus page (vLLM, SGLang).
    metrics_url: Annotated[str, msgspec.Meta(pattern=r"^https?://")] | None = None


class Lane(StrEnum):
    """Whose call it is; the name of its priority in the table."""

    REALTIME = "realtime"
    BATCH = "batch"


class Priorities(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `priority` that requests carry, for an engine that schedules by it; lower goes first."""

    realtime: Annotated[int, msgspec.Meta(ge=-1_000_000, le=1_000_000)] = 0
    batch: Annotated[int, msgspec.Meta(ge=-1_000_000, le=1_000_000)] = 10
    #: Whether a real-time request's own goes before it; a line's never does.
    realtime_callers_choose: bool = False


class ModelLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is special about one model at one upstream."""

    #: The name the upstream knows it by, if another.
    upstream_name: str | None = None
    #: A limit of its own, which makes it a pool of its own.
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    #: What differs from the upstream's, where the model has a pool of its own.
    yields: Yield | None = msgspec.field(default=None, name="yield")


class Upstream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One OpenAI-style server.

    base_url: up to and with '/v1'. api_key_env: name of the environment variable with its key.
    models: by name; the name '*' stands for any model. Times are seconds, sizes bytes.
    """

    name: _Name
    base_url: Annotated[str, msgspec.Meta(pattern=r"^https?://")]
    models: dict[str, ModelLimits]
    api_key_env: str | None = None
    max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 64
    #: Real-time calls at once of one realtime-worker, beside those of batches.
    realtime_max_in_flight: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 256
    connect_timeout_s: _Positive = 5.0
    request_timeout_s: _Positive = 600.0
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 8
    #: A failed attempt is repeated after about this long, then four times as long each time.
    first_retry_s: _Positive = 1.0
    max_retry_s: _Positive = 120.0
    max_response_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 16 * 1024 * 1024
    #: Whether streams are asked for their usage, which real-time requests are billed by; for a
    #: server that refuses `stream_options`.
    stream_usage: bool = True
    #: None for an engine that has no priorities: then what a caller wrote is passed on.
    priorities: Priorities | None = None
    #: None ('off' in the file) for a server without real-time traffic.
    yields: Yield | None = msgspec.field(default_factory=Yield, name="yield")


class Pool(msgspec.Struct, frozen=True):
    """A set of credits: at most max_in_flight calls at once per worker.

    yields: how they make way for real-time calls; None if they don't.
    """

    name: str
    upstream: str
    max_in_flight: int
    yields: Yield | None = None


class UpstreamTable:
    """The whole table, with the questions that roles ask of it."""

    def __init__(self, upstreams: tuple[Upstream, ...]) -> None:
        self.upstreams: Mapping[str, Upstream] = {u.name: u for u in upstreams}
        self.pools: Mapping[str, Pool] = {p.name: p for u in upstreams for p in _pools(u)}

    def serves(self, model: str) -> bool:
        """Whether any upstream serves the model."""
        return bool(self.pools_for(model))

    def pools_for(self, model: str) -> tuple[Pool, ...]:
        """The pools that can run a line of this model; empty if no upstream serves it."""
        found = []
        for upstream in self.upstreams.values():
            limits = upstream.models.get(model) or upstream.models.get("*")
            if limits is None:
                continue
            own = upstream.models.get(model)
            name = f"{upstream.name}/{model}" if own and own.max_in_flight else upstream.name
            found.append(self.pools[name])
        return tuple(found)

    def named_models(self) -> tuple[str, ...]:
        """The models that the table names, without '*', sorted."""
        return tuple(sorted({m for u in self.upstreams.values() for m in u.models if m != "*"}))


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NOTHING: Mapping[str, msgspec.Raw] = {}


class Rewrite:
    """What stands in a request's body for this upstream, whatever its caller wrote there."""

    def __init__(self, upstream: Upstream, lane: Lane) -> None:
        own, priorities = _NOTHING, upstream.priorities
        if priorities is not None:
            own = {"priority": msgspec.Raw(b"%d" % getattr(priorities, lane.value))}
        chosen = priorities is not None and priorities.realtime_callers_choose
        theirs = chosen and lane is Lane.REALTIME
        self._unless_given, self._always = (own, _NOTHING) if theirs else (_NOTHING, own)
        self._by_model = {
            model: {**self._always, "model": msgspec.Raw(msgspec.json.encode(limits.upstream_name))}
            for model, limits in upstream.models.items()
            if limits.upstream_name is not None and limits.upstream_name != model
        }

    def fields(self, model: str) -> Mapping[str, msgspec.Raw]:
        """The fields that are replaced, or added, in a request for this model; mostly none."""
        return self._by_model.get(model, self._always)

    def body(self, body: bytes, model: str) -> bytes:
        """The request's body as the upstream gets it. Raises msgspec.DecodeError."""
        fields = self.fields(model)
        if not fields and not self._unless_given:
            return body
        return msgspec.json.encode({**self._unless_given, **_fields.decode(body), **fields})


def _pools(upstream: Upstream) -> list[Pool]:
    own = upstream.name
    pools = [Pool(own, own, upstream.max_in_flight, upstream.yields)]
    for model, limits in upstream.models.items():
        if limits.max_in_flight and model != "*":
            pools.append(Pool(f"{own}/{model}", own, limits.max_in_flight, limits.yields))
    return pools


def parse_upstreams(document: object) -> UpstreamTable:
    """The table in a parsed YAML document `{upstreams: [...]}`. Raises UpstreamTableError.

    `models` may be a list of names or a mapping of names to limits. A model's `yield` takes what
    it doesn't say from the upstream's.
    """
    if not isinstance(document, dict) or not isinstance(document.get("upstreams"), list):
        raise UpstreamTableError("The upstream table needs a list under 'upstreams'.")
    upstreams = []
    for number, entry in enumerate(document["upstreams"]):
        try:
            filled = _with_yields(_models_as_mapping(entry))
            upstreams.append(msgspec.convert(filled, Upstream))
        except (msgspec.ValidationError, UpstreamTableError) as error:
            raise UpstreamTableError(f"upstreams[{number}]: {error}") from error
    names = [u.name for u in upstreams]
    if len(set(names)) != len(names):
        raise UpstreamTableError("Two upstreams have the same name; names must be unique.")
    return UpstreamTable(tuple(upstreams))


def _models_as_mapping(entry: object) -> object:
    if isinstance(entry, dict) and isinstance(entry.get("models"), list):
        return {**entry, "models": {str(model): {} for model in entry["models"]}}
    return entry


def _with_yields(entry: object) -> object:
    """The same with each model's `yield` filled up, and None for 'off' (in YAML: false)."""
    if not isinstance(entry, dict):
        return entry
    whole = _none_if_off(entry.get("yield", {}))
    filled = {**entry, "yield": whole}
    if isinstance(models := entry.get("models"), dict):
        filled["models"] = {
            name: _model_with_yield(limits, whole) for name, limits in models.items()
        }
    return filled


def _model_with_yield(limits: object, whole: object) -> object:
    if not isinstance(limits, dict):
        return limits
    if "yield" not in limits:
        return {**limits, "yield": whole}
    if not limits.get("max_in_flight"):
        raise UpstreamTableError("A model's 'yield' needs a 'max_in_flight' of the model's own.")
    own = _none_if_off(limits["yield"])
    if isinstance(own, dict) and isinstance(whole, dict):
        own = {**whole, **own}
    return {**limits, "yield": own}


def _none_if_off(value: object) -> object:
    return None if value in (False, "off", None) else value
