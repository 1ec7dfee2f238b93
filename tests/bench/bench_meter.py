"""What the meter's own work costs: CPU for each line, and calls for a batch.

    python -m tests.bench.bench_meter [LINES]

Usage is decoded, counted, written to the tables and sent to the fake sink, in records of as many
lines as the controller sends when calls are short (25) and when they are long (1), of one batch or
of many that run side by side. Kafka's part for a record is in the figures of the pipeline.
"""

from __future__ import annotations

import asyncio
import sys
import time

from schemas.codec import encode
from streams.meter.counting import GROUP_RECORDS
from tests.support.meter_world import World, usage

#: What the meter may cost at most, in milliseconds of CPU for a line.
LIMIT_MS = 0.02


async def _measure(lines: int, a_record: int, batches: int) -> tuple[float, int]:
    """Milliseconds of CPU for a line, and calls of the sink."""
    world = World()
    world.customers["acme"] = "cus_acme"
    each, now_ms = lines // batches, world.clock.now_ms()
    world.log = [
        usage("acme", f"batch_{batch}", range(first, min(first + a_record, each)), now_ms)
        for first in range(0, each, a_record)
        for batch in range(batches)
    ]
    # What a controller would have done, and no part of the meter's work.
    world.wire = {place: encode(record) for place, record in enumerate(world.log)}
    began = time.process_time()
    while world.count_some(GROUP_RECORDS):
        world.clock.advance(1)
        await world.turn()
        await world.commit()
    await world.settle()
    took_ms = (time.process_time() - began) * 1000
    assert world.sink.totals() == world.expected()
    return took_ms / lines, len(world.sink.calls)


def main(lines: int = 50_000) -> None:
    """Prints the figures."""
    for a_record, batches in ((25, 1), (1, 1), (1, 20), (1, 100)):
        cpu_ms, calls = asyncio.run(_measure(lines, a_record, batches))
        verdict = f", above the {LIMIT_MS} ms that it may cost" if cpu_ms > LIMIT_MS else ""
        print(
            f"meter, {a_record} lines a record, batches side by side: {batches}: "
            f"{cpu_ms:.4f} ms CPU a line{verdict}; {calls} calls for {lines} lines"
        )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
