"""How the simulated server conducts itself: one set of options, for all models or for one.

The same names are options on the command line (`--latency`), fields of `POST /sim/config`
and of a model's own conduct. A model's conduct is the common one with its own fields on top.
"""

from __future__ import annotations

import math
import random
from enum import StrEnum
from typing import Annotated, Any

import msgspec

_Rate = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
_Positive = Annotated[float, msgspec.Meta(gt=0, le=3600)]
_Speed = Annotated[float, msgspec.Meta(gt=0, le=1000)]
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Status = Annotated[str, msgspec.Meta(pattern=r"^[45]\d\d$")]

#: No answer has more tokens, so one answer's text is at most half a megabyte.
MAX_COMPLETION_TOKENS = 100_000


class ConductError(ValueError):
    """An option of the simulator is wrong; the message names it."""


class Fault(StrEnum):
    """A way to answer that is not a plain HTTP error."""

    #: The connection is closed before a byte of the answer.
    CUT = "cut"
    #: The connection is closed in the middle of the answer.
    CUT_MID = "cut_mid"
    #: 200, with bytes that are not JSON.
    GARBAGE = "garbage"
    #: 200, with JSON that ends half-way, and a content length that agrees with it.
    TRUNCATED = "truncated"
    #: 200, with no body at all.
    EMPTY = "empty"
    #: 502, with the HTML page of some proxy.
    HTML = "html"
    #: Nothing at all until the caller gives up, or the hang is switched off.
    HANG = "hang"
    #: The right answer, a few bytes at a time, over drip_s seconds.
    DRIP = "drip"
    #: The right answer, with a text of huge_bytes.
    HUGE = "huge"
    #: The right answer, without usage.
    NO_USAGE = "no_usage"
    #: The right answer, with negative and astronomic usage.
    ABSURD_USAGE = "absurd_usage"


#: These reach the caller as an answer it can use.
GOOD_ANSWERS = frozenset({Fault.DRIP, Fault.HUGE, Fault.NO_USAGE, Fault.ABSURD_USAGE})


class EngineConduct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A continuous-batching engine, see engine.py; the defaults are calibrated.

    A step takes step_s + per_decode_s · sequences + per_prefill_token_s · prompt tokens.
    """

    step_s: _Positive = 0.0070
    per_decode_s: _Seconds = 0.000122
    per_prefill_token_s: _Seconds = 0.000016
    #: Tokens of an answer before its first visible one.
    hidden_tokens: Annotated[int, msgspec.Meta(ge=0, le=100)] = 3
    max_num_seqs: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 384
    max_num_batched_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 2048
    kv_cache_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 300_000
    #: Whether a request's `priority` counts; lower goes first.
    priority: bool = False
    #: Seconds of the engine in one second.
    speed: _Speed = 1.0


class Conduct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One set of options; the defaults answer at once and never fail."""

    #: Seconds to the first token: a number, or a distribution (see Latency.parse).
    latency: str = "0"
    #: Seconds for each token after the first.
    token_time_s: _Seconds = 0.0
    #: Calls at once; 0 means any number.
    slots: _Count = 0
    #: Calls that may wait for a slot; beyond that 429.
    queue: _Count = 10_000
    #: Share of requests by HTTP status, such as {"503": 0.1}.
    errors: dict[_Status, _Rate] = {}
    #: Share of requests by fault, such as {"cut": 0.05}.
    faults: dict[Fault, _Rate] = {}
    #: A request key fails at most this often before it succeeds; 0 means any number of times.
    max_failures: _Count = 0
    #: Requests a second, beyond which the answer is 429; 0 means any number.
    rate_limit: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    #: Requests that may come at once under the rate limit.
    burst: Annotated[int, msgspec.Meta(ge=1)] = 1
    #: What a 429 or 503 tells the caller to wait.
    retry_after_s: _Seconds = 1.0
    #: Every call waits until this is false again.
    hang: bool = False
    #: How long a slow drip takes.
    drip_s: _Seconds = 5.0
    #: How large a huge answer is.
    huge_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 10 << 20
    #: Tokens of an answer, `N` or `LOW-HIGH`: LOW + characters of the prompt % (HIGH - LOW + 1).
    completion_tokens: str = "8-32"
    #: The model of an engine decides when tokens come, instead of latency, token_time_s and slots.
    engine: EngineConduct | None = None


def conduct_from(*layers: dict[str, Any]) -> Conduct:
    """The conduct of these fields, later layers on top. Raises ConductError."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    try:
        conduct = msgspec.convert(merged, Conduct)
    except msgspec.ValidationError as error:
        raise ConductError(str(error)) from error
    if sum(conduct.errors.values()) + sum(conduct.faults.values()) > 1 + 1e-9:
        raise ConductError("The shares of errors and faults add up to more than 1.")
    latency = Latency.parse(conduct.latency)
    if conduct.engine is not None and not (
        latency.is_zero and conduct.token_time_s == 0 and conduct.slots == 0
    ):
        raise ConductError("engine: with an engine there is no latency, token_time_s or slots.")
    token_range(conduct.completion_tokens)
    return conduct


def token_range(text: str) -> tuple[int, int]:
    """The lowest and highest number of tokens in `N` or `LOW-HIGH`. Raises ConductError."""
    low, _, high = text.partition("-")
    try:
        numbers = int(low), int(high or low)
    except ValueError:
        raise ConductError(f"completion_tokens: {text!r} is not N or LOW-HIGH.") from None
    if not 1 <= numbers[0] <= numbers[1] <= MAX_COMPLETION_TOKENS:
        raise ConductError(f"completion_tokens: not 1 <= LOW <= HIGH <= {MAX_COMPLETION_TOKENS}.")
    return numbers


class Latency(msgspec.Struct, frozen=True):
    """A distribution of seconds, drawn from deterministically."""

    kind: str
    first: float
    second: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Latency:
        """Reads `0.2`, `uniform:0.1,0.3`, `exp:0.2` or `lognormal:0.2,0.5`. Raises ConductError."""
        kind, _, rest = text.rpartition(":")
        try:
            numbers = [float(number) for number in rest.split(",")]
        except ValueError:
            numbers = []
        wanted = {"": 1, "exp": 1, "uniform": 2, "lognormal": 2}.get(kind)
        if wanted != len(numbers) or not all(0 <= n <= 86_400 for n in numbers):
            raise ConductError(
                f"latency: {text!r} is not SECONDS, uniform:LOW,HIGH, exp:MEAN or "
                "lognormal:MEDIAN,SIGMA."
            )
        return cls(kind, *numbers)

    @property
    def is_zero(self) -> bool:
        """Whether every draw is 0."""
        return self.first == 0 and (self.kind != "uniform" or self.second == 0)

    def draw(self, chance: int) -> float:
        """Seconds, always the same for the same chance number."""
        match self.kind:
            case "uniform":
                return random.Random(chance).uniform(self.first, self.second)
            case "exp" if self.first:
                return random.Random(chance).expovariate(1 / self.first)
            case "lognormal" if self.first:
                return random.Random(chance).lognormvariate(math.log(self.first), self.second)
            case _:
                return self.first
