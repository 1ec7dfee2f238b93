"""Usage and cost summed over batches: the rows of a report.

A batch counts whole where it was created, and with what it has used so far, so that a row is the
sum of what the batches in it show, to the token and to the micro-unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from schemas.records import BatchSnapshot, Usage
from streams.domain.billing.batches import batch_cost, used_by_model
from streams.domain.billing.prices import PriceBook
from streams.domain.billing.tokens import add


@dataclass(slots=True)
class Row:
    """One row. model: None if the rows are not by model, or the batch's models are not known.

    completed, failed: lines, counted only where rows are not by model. priced: whether the amounts
    hold all that was used. running: whether something may still be added.
    """

    model: str | None = None
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

    def __init__(self, book: PriceBook | None, *, by_model: bool) -> None:
        self._book = book
        #: Whether there is a row for each model.
        self.by_model = by_model
        self._rows: dict[str | None, Row] = {}

    def __iter__(self) -> Iterator[Row]:
        """By model, what is of unknown models last."""
        return iter(sorted(self._rows.values(), key=lambda row: (row.model is None, row.model)))

    def add(self, batch: BatchSnapshot, *, running: bool) -> None:
        """Counts a batch."""
        cost = None if self._book is None else batch_cost(self._book, batch)
        used = used_by_model(batch) if self.by_model else None
        parts = {None: batch.usage} if used is None else used
        for model, usage in parts.items():
            row = self._rows.setdefault(model, Row(model))
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
