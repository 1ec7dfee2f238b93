"""Replays changelogs straight into the tables' stores, a batch at a time.

Faust's own replay passes each record through a queue with a time-out of its own, sums up what
remains after each, and waits for ever if the last offset can't be delivered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from faust.types import TP

if TYPE_CHECKING:
    from faust.tables.recovery import Recovery

    from streams.kafka.app import RoleApp
    from streams.kafka.tables import RowStore


def replay(app: RoleApp, tp: TP, records: Sequence[Any]) -> bool:
    """Applies a batch of one changelog partition; False if Faust doesn't expect it now."""
    recovery = _recovery(app)
    if tp not in recovery.active_tps:
        return False
    store = cast("RowStore", cast("Any", recovery.tp_to_table[tp]).data)
    for record in records:
        store.apply(tp.partition, record.key, record.value, record.headers)
    # A batch may come twice, after a rebalance.
    recovery.active_offsets[tp] = max(records[-1].offset, _last(recovery, tp))
    return True


def settle(app: RoleApp, positions: Mapping[TP, int]) -> None:
    """Tells Faust that the replay is complete, if it is.

    positions: next offsets to fetch, of the active partitions. One counts even where the records
    before it were compacted away. Without any of a changelog's the replay hasn't begun, and
    Faust still compares with the ends of the one before.
    """
    recovery = _recovery(app)
    replaying = {tp: at for tp, at in positions.items() if tp in recovery.active_tps}
    if not recovery.in_recovery or not replaying:
        return
    for tp, position in replaying.items():
        if position - 1 > _last(recovery, tp):
            recovery.active_offsets[tp] = position - 1
    if not recovery.need_recovery():
        # Only who waits now is woken: left set, it would end the next replay before it begins.
        recovery.signal_recovery_end.set()
        recovery.signal_recovery_end.clear()


def _last(recovery: Recovery, tp: TP) -> int:
    # Faust keeps None where it knows of none.
    last: int | None = recovery.active_offsets.get(tp)
    return -1 if last is None else last


def _recovery(app: RoleApp) -> Recovery:
    return cast("Any", app.tables).recovery  # type: ignore[no-any-return]
