"""The price book's file, read again when it changes.

A bad edit keeps the book that was good and says so; a process never starts on a bad one.
"""

from __future__ import annotations

from pathlib import Path

import structlog
import yaml

from schemas.metrics import PRICE_BOOK_BAD, Metrics
from streams.domain.billing.prices.book import PriceBook, PriceBookError, parse_prices
from streams.domain.clock import Clock, SystemClock
from streams.settings import Settings

log = structlog.get_logger(__name__)

#: The file is looked at so often, at most.
LOOK_S = 1.0
#: A larger file is no price book.
_MAX_BYTES = 4 * 1024 * 1024

#: What tells that a file has changed: inode, nanoseconds, size.
_Stamp = tuple[int, int, int]


class Prices:
    """The book in force. Without a file nothing is priced, and `current` is None."""

    def __init__(
        self, path: Path | None, clock: Clock | None = None, metrics: Metrics | None = None
    ) -> None:
        """Reads the file. Raises PriceBookError with its name and the remedy."""
        self._path = path
        self._clock = clock or SystemClock()
        self._bad = (metrics or Metrics()).gauge(PRICE_BOOK_BAD)
        self._looked_at_s = self._clock.monotonic_s()
        self._stamp = None if path is None else _stamp(path)
        self._book = None if path is None else read_prices(path)

    def current(self) -> PriceBook | None:
        """The newest good book."""
        now_s = self._clock.monotonic_s()
        if self._path is not None and now_s - self._looked_at_s >= LOOK_S:
            self._looked_at_s = now_s
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                self._reload(self._path)
        return self._book

    def allows(self, model: str, endpoint: str, created_at_ms: int) -> bool:
        """Whether a batch may use the model: it has a price, or nothing is priced."""
        book = self.current()
        return book is None or book.prices(model, endpoint, created_at_ms)

    def _reload(self, path: Path) -> None:
        try:
            self._book = read_prices(path)
        except PriceBookError as error:
            self._bad.set(1)
            log.error(
                "The price book was changed and is wrong now; the one before stays in force.",
                action="prices_bad",
                error=str(error),
            )
        else:
            self._bad.set(0)
            log.info("The price book was changed and is in force.", action="prices_changed")


def load_prices(
    settings: Settings, clock: Clock | None = None, metrics: Metrics | None = None
) -> Prices:
    """The price book that the settings name. Raises PriceBookError."""
    return Prices(settings.prices_file, clock, metrics)


def read_prices(path: Path) -> PriceBook:
    """The book in a file. Raises PriceBookError with the file's name and the remedy."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise PriceBookError(f"larger than {_MAX_BYTES} bytes")
        return parse_prices(yaml.safe_load(data))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, PriceBookError) as error:
        raise PriceBookError(f"{path}: {error}") from error


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
