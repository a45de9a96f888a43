"""The load's process: the model and all clients in one loop, on a core of their own, told what to do line by line."""

import asyncio
import gc
import sys
from typing import Any

import msgspec
import uvloop
from msgspec import Struct

from benchmarks import costs, fleet, times, upstream
from benchmarks.bench import Bench, Seen
from chatserver.bench.connections import Target, Transport
from chatserver.bench.schedule import Schedule


class Order(Struct, frozen=True):
    """One measurement to be made."""

    measure: str
    transport: Transport
    port: int
    pid: int
    seed: int
    params: dict[str, Any]


async def main() -> None:
    schedule = Schedule()
    measures = costs.MEASURES | times.MEASURES | fleet.MEASURES
    async with upstream.serving(schedule) as model:
        print(model.url, flush=True)  # noqa: T201 - the other end of the pipe reads it
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        while line := await lines.readline():
            order = msgspec.json.decode(line, type=Order)
            bench = Bench(Target("127.0.0.1", order.port), order.transport, order.pid, model, schedule, order.seed)
            try:
                seen = await measures[order.measure](bench, **order.params)
            except Exception as error:  # noqa: BLE001 - the contender is marked, the lab goes on
                seen = Seen(refusal=f"{type(error).__name__}: {error}")
            gc.collect()
            print(msgspec.json.encode(seen).decode(), flush=True)  # noqa: T201


if __name__ == "__main__":
    gc.disable()  # A collection in the middle of a measurement would be measured; after each one there is time.
    uvloop.run(main())
