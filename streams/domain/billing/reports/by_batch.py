"""Usage and cost summed over batches: the rows of a report.

A batch counts whole where it was created, and with what it has used so far, so that a row is the
sum of what the batches in it show, to the token and to the micro-unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from schemas.records import BatchSnapshot, Usage
from streams.domain.billing.prices.batch_cost import batch_cost, used_by_model
from streams.domain.billing.prices.book import PriceBook
from streams.domain.billing.tokens import add


@dataclass(slots=True)
class Row:
    """One row. model: None if the rows are not by model, or the batch's models are not known.

    key_id: the API key; None if the rows are not by key, or no key made the batch.
    completed, failed: lines, counted only where rows are not by model. priced: whether the amounts
    hold all that was used. running: whether something may still be added.
    """

    model: str | None = None
    key_id: str | None = None
    batches: int = 0
    completed: int = 0
    failed: int = 0
    usage: Usage = field(default_factory=Usage)
    list_micros: int = 0
    billed_micros: int = 0
    priced: bool = True
    running: bool = False


class Rows:
    """The rows of one bucket of batches: a day's, a batch's, or those of all that was asked for."""

    def __init__(self, book: PriceBook | None, *, by_model: bool, by_key: bool = False) -> None:
        self._book = book
        #: Whether there is a row for each model.
        self.by_model = by_model
        self._by_key = by_key
        self._rows: dict[tuple[str | None, str | None], Row] = {}

    def __iter__(self) -> Iterator[Row]:
        """By key and model, what is of none last."""
        order = sorted(self._rows, key=lambda names: [(name is None, name) for name in names])
        return iter([self._rows[names] for names in order])

    def add(self, batch: BatchSnapshot, *, running: bool) -> None:
        """Counts a batch."""
        cost = None if self._book is None else batch_cost(self._book, batch)
        used = used_by_model(batch) if self.by_model else None
        parts = {None: batch.usage} if used is None else used
        key_id = batch.key_id if self._by_key else None
        for model, usage in parts.items():
            row = self._rows.setdefault((key_id, model), Row(model, key_id))
            row.batches += 1
            row.usage = add(row.usage, usage)
            row.running |= running
            row.priced &= cost is not None
            for line in cost.lines if cost is not None else ():
                if model is None or line.model == model:
                    row.list_micros += line.list_micros
                    row.billed_micros += line.billed_micros
            if not self.by_model:
                row.completed += batch.completed
                row.failed += batch.failed
