"""What becomes of one attempt: a good answer, an HTTP error or a fault; always the same for a seed.

script (`metadata.sim`)  ->  else a draw from (seed, request key, attempt)  ->  else a good answer
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from streams.simulator.call import BadRequestError, Call
from streams.simulator.conduct import Conduct, Fault

_STEP = re.compile(
    r"^(?P<what>[a-z_]+|[45]\d\d)(?::(?P<wait>\d{1,5}(\.\d+)?))?(?:\*(?P<times>\d{1,6}))?$"
)
_MAX_STEPS = 64
_FULL = 1 << 64


@dataclass(frozen=True, slots=True)
class Fate:
    """Neither status nor fault: a good answer. retry_after_s goes with 429 and 503."""

    status: int | None = None
    fault: Fault | None = None
    retry_after_s: float | None = None


GOOD = Fate()


def fate_of(call: Call, conduct: Conduct, seed: int) -> Fate:
    """What this attempt meets. Raises BadRequestError if its script can't be read."""
    if call.script is not None:
        return _scripted(call.script, call.attempt)
    if not conduct.errors and not conduct.faults:
        return GOOD
    if conduct.max_failures and call.attempt > conduct.max_failures:
        return GOOD
    draw = call.chance(seed, "fate") / _FULL
    for status, share in conduct.errors.items():
        if draw < share:
            return Fate(status=int(status))
        draw -= share
    for fault, share in conduct.faults.items():
        if draw < share:
            return Fate(fault=fault)
        draw -= share
    return GOOD


def _scripted(script: str, attempt: int) -> Fate:
    """The attempt's step of a script like `503*2,429:3,cut,ok`; the last step stays for ever."""
    fate, reached = GOOD, 0
    for step in script.split(",", _MAX_STEPS):
        found = _STEP.match(step.strip())
        if found is None:
            raise BadRequestError(f"metadata.sim: can't read {step[:40]!r}.", "metadata.sim")
        fate = _step(found["what"], found["wait"])
        reached += int(found["times"] or 1)
        if attempt <= reached:
            break
    return fate


def _step(what: str, wait: str | None) -> Fate:
    if what == "ok":
        return GOOD
    if what.isdigit():
        return Fate(status=int(what), retry_after_s=None if wait is None else float(wait))
    try:
        return Fate(fault=Fault(what))
    except ValueError:
        raise BadRequestError(f"metadata.sim: no fault {what[:40]!r}.", "metadata.sim") from None
