"""Which forecasts are worth telling: what changed for whoever looks, and what grew old."""

from __future__ import annotations

from collections.abc import Iterable

from schemas.records import BatchForecast
from streams.domain.forecast.forecast import Outlook

#: The same forecast is told again after this: readers keep only what is told within twice that.
REPEAT_MS = 10 * 60_000
#: Of one batch nothing is told twice within this, but for holds and the first end that is known.
QUIET_MS = 5000
#: An end that moves by less than this part of the time left, or than so much, is no news.
_PART, _LEAST_MS = 0.1, 10_000


class News:
    """What was told of each batch."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, Outlook]] = {}

    def pick(self, outlooks: Iterable[Outlook], now_ms: int) -> list[BatchForecast]:
        """What to tell now. Batches that are not among the outlooks are forgotten."""
        told, self._told = self._told, {}
        news = []
        for outlook in outlooks:
            last = told.get(outlook.batch_id)
            if last is None or _is_news(outlook, last[1], last[0], now_ms):
                last = now_ms, outlook
                news.append(
                    BatchForecast(
                        batch_id=outlook.batch_id,
                        eta_ms=outlook.eta_ms,
                        queue_position=outlook.position,
                        queued=outlook.queued,
                        hold=outlook.hold,
                    )
                )
            self._told[outlook.batch_id] = last
        return news


def _is_news(now: Outlook, told: Outlook, told_at_ms: int, now_ms: int) -> bool:
    age_ms = now_ms - told_at_ms
    if not 0 <= age_ms < REPEAT_MS:
        return True
    if told.eta_ms is None and now.eta_ms is not None:
        return True
    # That a batch stops or goes on is told at once.
    if (now.hold is None) != (told.hold is None):
        return True
    if age_ms < QUIET_MS:
        return False
    if (now.position, now.queued, now.hold) != (told.position, told.queued, told.hold):
        return True
    if now.eta_ms is None or told.eta_ms is None:
        return told.eta_ms is not None
    # Who reads it shows no end that is past, so the next one must be there by then.
    if told.eta_ms <= now_ms + QUIET_MS or now.at_risk != told.at_risk:
        return True
    return abs(now.eta_ms - told.eta_ms) > max(_LEAST_MS, _PART * (now.eta_ms - now_ms))
