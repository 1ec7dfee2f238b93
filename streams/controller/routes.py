"""Which pools can run a model's lines, and so which lanes a batch has."""

from __future__ import annotations

from streams.domain.upstreams import UpstreamTable


class Routes:
    """The upstream table, as the dispatcher needs it."""

    def __init__(self, table: UpstreamTable) -> None:
        self._table = table

    def of(self, models: tuple[str, ...]) -> tuple[tuple[tuple[str, ...], ...], tuple[int, ...]]:
        """The pools of each lane, and the lane of each model number.

        Models that run on the same pools share a lane.
        """
        lanes: dict[tuple[str, ...], int] = {}
        lane_of = []
        for model in models:
            pools = tuple(pool.name for pool in self._table.pools_for(model))
            lane_of.append(lanes.setdefault(pools, len(lanes)))
        return tuple(lanes), tuple(lane_of)
