"""Which pools can run a model's lines, and so which lanes a batch has."""

from __future__ import annotations

from streams.domain.upstreams import UpstreamTable, templates_pool


class Routes:
    """The upstream table, as the dispatcher needs it."""

    def __init__(self, table: UpstreamTable) -> None:
        self._table = table

    def of(
        self, models: tuple[str, ...], *, prompts: bool = False
    ) -> tuple[tuple[tuple[str, ...], ...], tuple[int, ...]]:
        """The pools of each lane, and the lane of each model number.

        Models that run on the same pools share a lane. prompts: lines may name prompts; then
        the lanes of lines that wait for the sandbox follow, again by model number.
        """
        lanes: dict[tuple[str, ...], int] = {}
        pools = [tuple(pool.name for pool in self._table.pools_for(model)) for model in models]
        if prompts:
            pools += [tuple(map(templates_pool, names)) for names in pools]
        lane_of = [lanes.setdefault(names, len(lanes)) for names in pools]
        return tuple(lanes), tuple(lane_of)
