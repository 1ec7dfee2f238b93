"""What the simulated server was asked and what it answered: counts in memory, and a log on disk.

The log has one JSON line for each request, written before its answer's last byte leaves, so
that tests can hold counts and usage against it after any other process was killed.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from streams.simulator.answers import answer_id, total_completion_tokens
from streams.simulator.call import Call, cached_tokens, reasoning_tokens

#: The outcome of a call whose caller went away first.
GONE = "gone"
#: Models beyond this many are counted together.
_MAX_MODELS = 1000
_OTHER_MODELS = "(other)"
_encode = msgspec.json.Encoder().encode


class KeyCount(msgspec.Struct):
    """What one request key met. statuses counts outcomes: an HTTP status, a fault, or `gone`."""

    first_ms: int
    last_ms: int
    attempts: int = 0
    open: int = 0
    ok: int = 0
    statuses: dict[str, int] = {}


class Totals(msgspec.Struct):
    """What all requests met; tokens are those of good answers only."""

    attempts: int = 0
    ok: int = 0
    statuses: dict[str, int] = {}
    prompt_tokens: int = 0
    completion_tokens: int = 0
    by_model: dict[str, int] = {}


class LogLine(msgspec.Struct, omit_defaults=True):
    """One line of the log. attempt counts from 1; usage is there when the answer had a true one."""

    at_ms: int
    number: int
    path: str
    model: str
    key: str | None
    attempt: int
    outcome: str
    ok: bool
    id: str | None = None
    usage: dict[str, int] | None = None


class Ledger:
    """Counts per request key, of the most recently seen keys; totals of everything."""

    def __init__(
        self,
        max_keys: int,
        log: Path | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._max_keys = max_keys
        self._now_ms = now_ms
        self._log_file = (
            None if log is None else os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        )
        self._number = 0
        self.reset()

    def reset(self) -> None:
        """Forgets all counts, and with them the attempts; the log and request numbers go on."""
        self._since_ms = self._now_ms()
        self._keys: OrderedDict[str, KeyCount] = OrderedDict()
        self._totals = Totals()
        self._forgotten = 0
        self._open = 0
        self._most_open = 0

    def begin(self, call: Call) -> None:
        """Counts a request that came in, and gives it its number and attempt."""
        self._number += 1
        call.number = self._number
        totals = self._totals
        totals.attempts += 1
        known = call.model in totals.by_model or len(totals.by_model) < _MAX_MODELS
        _add(totals.by_model, call.model if known else _OTHER_MODELS)
        self._open += 1
        self._most_open = max(self._most_open, self._open)
        if call.key is not None:
            self._begin_key(call, call.key)

    def _begin_key(self, call: Call, key: str) -> None:
        now = self._now_ms()
        count = self._keys.get(key)
        if count is None:
            count = self._keys[key] = KeyCount(now, now)
            if len(self._keys) > self._max_keys:
                self._keys.popitem(last=False)
                self._forgotten += 1
        else:
            self._keys.move_to_end(key)
        count.attempts += 1
        count.open += 1
        count.last_ms = now
        call.attempt = count.attempts

    def end(self, call: Call, outcome: str, *, ok: bool, usage: bool = True) -> None:
        """Counts what a request met, and logs it."""
        totals = self._totals
        self._open = max(0, self._open - 1)
        _add(totals.statuses, outcome)
        if ok:
            totals.ok += 1
            if usage:
                totals.prompt_tokens += call.prompt_tokens
                totals.completion_tokens += total_completion_tokens(call)
        count = self._keys.get(call.key) if call.key is not None else None
        if count is not None:
            count.open = max(0, count.open - 1)
            count.ok += ok
            count.last_ms = self._now_ms()
            _add(count.statuses, outcome)
        if self._log_file is not None:
            self._log(self._log_file, call, outcome, ok, usage)

    def _log(self, file: int, call: Call, outcome: str, ok: bool, usage: bool) -> None:
        line = LogLine(
            at_ms=self._now_ms(),
            number=call.number,
            path=call.endpoint.value,
            model=call.model,
            key=call.key,
            attempt=call.attempt,
            outcome=outcome,
            ok=ok,
            id=answer_id(call) if ok else None,
            usage=_usage(call) if ok and usage else None,
        )
        os.write(file, _encode(line) + b"\n")

    def report(self, *, keys: bool, prefix: str = "", at_least: int = 1) -> dict[str, Any]:
        """The counts as GET /sim/requests gives them, of the keys that were asked for."""
        found: dict[str, KeyCount] = {}
        if keys:
            found = {
                key: count
                for key, count in self._keys.items()
                if count.attempts >= at_least and key.startswith(prefix)
            }
        return {
            "since_ms": self._since_ms,
            "now_ms": self._now_ms(),
            "open": self._open,
            "most_open": self._most_open,
            "totals": self._totals,
            "distinct_keys": len(self._keys),
            "forgotten_keys": self._forgotten,
            "keys": found,
        }

    def close(self) -> None:
        """Closes the log."""
        if self._log_file is not None:
            os.close(self._log_file)
            self._log_file = None


def _add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _usage(call: Call) -> dict[str, int]:
    completion = total_completion_tokens(call)
    return {
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": call.prompt_tokens + completion,
        "cached_tokens": cached_tokens(call.prompt_tokens),
        "reasoning_tokens": reasoning_tokens(completion),
    }
