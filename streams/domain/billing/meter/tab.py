"""The tab of a batch: what its lines used, what of it is being billed, and when to bill the rest.

    tokens in the chunks' ledgers  -  tokens of its sends  =  the open window

Both are sums over rows, so nothing has to be written together: a window closes by writing its
sends, each a row of its own, and a crash in between leaves the rest of the window open.

A window closes when it is old or nothing has come for a while. Windows grow with each that a
batch has had, from `window_s` to ten times that, so that a batch that takes a day is sent in some
thirty steps and one that takes minutes is billed minutes later.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from schemas.records import MeterSend, SendState
from streams.domain.billing.meter.ledger import Metered, Sums
from streams.domain.billing.meter.send import FLAGGED
from streams.domain.billing.prices.meter_names import identifier_of
from streams.domain.billing.tokens import split

#: A window is at most this many times as long as a batch's first.
_MAX_GROWTH = 10
#: Silence for this share of a window's length closes it.
_QUIET_SHARE = 5

#: From usage to the meter, and from it to who reads what it sent.
_ON_THE_ROAD_MS = 60_000

#: Model, whether the figures were absurd, type of token.
Part = tuple[str, bool, str]


def patience_ms(window_s: float) -> int:
    """How long after the last of a batch's usage all its windows are closed, unless the meter is
    behind."""
    return int(window_s * 1000) * _MAX_GROWTH // _QUIET_SHARE + _ON_THE_ROAD_MS


@dataclass(slots=True)
class Tab:
    """One batch's. Times are Unix milliseconds."""

    metered: Metered
    used: dict[Part, int] = field(default_factory=lambda: defaultdict(int))
    billed: dict[Part, int] = field(default_factory=lambda: defaultdict(int))
    flushes: dict[Part, int] = field(default_factory=lambda: defaultdict(int))
    #: When the newest of the lines was accepted.
    last_at_ms: int = 0
    #: When the open window began and last grew, by our own clock; None while nothing is open.
    opened_at_ms: int | None = None
    grew_at_ms: int = 0

    def gain(self, sums: Sums, at_ms: int, now_ms: int) -> None:
        """These tokens were counted."""
        for (model, flagged), found in sums.items():
            for token_type, tokens in split(found.usage).items():
                if tokens:
                    self.used[model, flagged, token_type.value] += tokens
        self.last_at_ms = max(self.last_at_ms, at_ms)
        self._look(now_ms)

    def bill(self, send: MeterSend, now_ms: int) -> None:
        """This send exists, whatever its state."""
        part = (send.model, send.flagged, send.token_type)
        self.billed[part] += send.tokens
        self.last_at_ms = max(self.last_at_ms, send.at_ms)
        self.flushes[part] = max(self.flushes[part], send.flush + 1)
        self._look(now_ms)

    def open_parts(self) -> dict[Part, int]:
        """Tokens that no send covers."""
        found = {part: used - self.billed[part] for part, used in self.used.items()}
        return {part: tokens for part, tokens in found.items() if tokens > 0}

    def due_at_ms(self, window_s: float) -> int | None:
        """When the open window closes, if nothing more comes."""
        if self.opened_at_ms is None:
            return None
        closed = max(self.flushes.values(), default=0)
        length_ms = int(window_s * 1000) * min((1 << min(closed, 10)), _MAX_GROWTH)
        return min(self.opened_at_ms + length_ms, self.grew_at_ms + length_ms // _QUIET_SHARE)

    def close(self, now_ms: int) -> list[MeterSend]:
        """The sends of the open window; each is to be written, and then told to `bill`."""
        return [
            self._send(part, tokens, now_ms) for part, tokens in sorted(self.open_parts().items())
        ]

    def _send(self, part: Part, tokens: int, now_ms: int) -> MeterSend:
        model, flagged, token_type = part
        metered, flush = self.metered, self.flushes[part]
        return MeterSend(
            identifier=identifier_of(
                metered.tenant, metered.batch_id, model, token_type, flagged, flush
            ),
            watermark=0,
            tenant=metered.tenant,
            batch_id=metered.batch_id,
            endpoint=metered.endpoint,
            completion_window=metered.window,
            batch_created_at_ms=metered.created_at_ms,
            model=model,
            token_type=token_type,
            flagged=flagged,
            flush=flush,
            tokens=tokens,
            # A clock that is ahead of ours must not put the usage into the future.
            at_ms=min(self.last_at_ms, now_ms),
            state=SendState.PARKED if flagged else SendState.PENDING,
            reason=FLAGGED if flagged else "",
            changed_at_ms=now_ms,
        )

    def _look(self, now_ms: int) -> None:
        if not self.open_parts():
            self.opened_at_ms = None
        else:
            self.grew_at_ms = now_ms
            if self.opened_at_ms is None:
                self.opened_at_ms = now_ms
