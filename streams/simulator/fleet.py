"""The engines of one simulated server: a common one, and those of models with their own conduct."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from streams.simulator.behaviour import Behaviour, LatencyBehaviour
from streams.simulator.conduct import Conduct, ConductError, conduct_from, token_range
from streams.simulator.live_engine import EngineBehaviour

_MAX_MODELS = 1000
#: Shown by GET /v1/models where any name is served.
_EXAMPLE_MODELS = ("sim-chat", "sim-embedding")


@dataclass(frozen=True, slots=True)
class Engine:
    """A conduct with the running behaviour that carries it out."""

    conduct: Conduct
    behaviour: Behaviour
    token_range: tuple[int, int]


class Fleet:
    """Which engine serves which model, changeable while running.

    models: the names served; none means any name. config: `seed`, the options of Conduct, and
    `models`, options by model name, as POST /sim/config takes them.
    """

    def __init__(self, models: tuple[str, ...], config: Mapping[str, Any]) -> None:
        self._names = models
        self.seed = 0
        self._common: dict[str, Any] = {}
        self._own: dict[str, dict[str, Any]] = {}
        self._engine = _engine(Conduct(), 0)
        self._engines: dict[str, Engine] = {}
        self.configure(config)

    @property
    def models(self) -> tuple[str, ...]:
        """The names for GET /v1/models."""
        return self._names or tuple(sorted({*_EXAMPLE_MODELS, *self._engines}))

    def engine(self, model: str) -> Engine | None:
        """The engine that serves the model; None if the server doesn't have the model."""
        engine = self._engines.get(model)
        if engine is None and (not self._names or model in self._names):
            return self._engine
        return engine

    def configure(self, change: Mapping[str, Any]) -> None:
        """Merges new options in. Raises ConductError, and then nothing has changed.

        A model given as null loses its own options. Calls that run stay with the engine they
        have, except that a hang ends when it is switched off.
        """
        common, own, seed = dict(self._common), dict(self._own), self.seed
        given = dict(change)
        models = given.pop("models", {})
        new_seed = given.pop("seed", seed)
        if not isinstance(models, dict) or not isinstance(new_seed, int):
            raise ConductError("models must be an object and seed a whole number.")
        common.update(given)
        for name, options in models.items():
            if options is None:
                own.pop(name, None)
            elif isinstance(options, dict):
                own[name] = {**own.get(name, {}), **options}
            else:
                raise ConductError("Every entry of models must be an object or null.")
        if len(own) > _MAX_MODELS:
            raise ConductError(f"At most {_MAX_MODELS} models may have options of their own.")
        engine = self._keep_or_make(self._engine, conduct_from(common), new_seed)
        engines = {
            name: self._keep_or_make(self._engines.get(name), conduct_from(common, o), new_seed)
            for name, o in own.items()
        }
        kept = {id(e) for e in (engine, *engines.values())}
        old = (self._engine, *self._engines.values())
        self._common, self._own, self.seed = common, own, new_seed
        self._engine, self._engines = engine, engines
        for each in old:
            if id(each) not in kept:
                each.behaviour.retire()

    def _keep_or_make(self, old: Engine | None, conduct: Conduct, seed: int) -> Engine:
        if old is not None and old.conduct == conduct and seed == self.seed:
            return old
        return _engine(conduct, seed)

    def shown(self) -> dict[str, Any]:
        """The options in force, in the form that `configure` takes."""
        common: dict[str, Any] = msgspec.to_builtins(self._engine.conduct)
        return {"seed": self.seed, **common, "models": self._own}

    def gauges(self) -> dict[str, Mapping[str, float]]:
        """What each engine shows, by model as in engines()."""
        return {name: engine.behaviour.gauges() for name, engine in self.engines().items()}

    def engines(self) -> dict[str, Engine]:
        """Every engine by model; the common one is `*`, or the only model's."""
        common = self._names[0] if len(self._names) == 1 else "*"
        return {common: self._engine, **self._engines}

    def retire(self) -> None:
        """Ends all hangs, so that the server can stop."""
        for engine in (self._engine, *self._engines.values()):
            engine.behaviour.retire()


def _engine(conduct: Conduct, seed: int) -> Engine:
    behaviour: Behaviour
    if conduct.engine is None:
        behaviour = LatencyBehaviour(conduct, seed)
    else:
        behaviour = EngineBehaviour(conduct, conduct.engine)
    return Engine(conduct, behaviour, token_range(conduct.completion_tokens))
