"""Several nodes: server processes on one database and one Redis, with a network between them that a test can break.

    async with RedisServer() as redis, cluster(tmp_path, 3, redis) as nodes:
        reading = await SSE.start(nodes[0], {"message": "Hi"})
        nodes[0].kill()
        await WS.attach(nodes[1], reading.run_id, after)

``nodes[0].redis`` is the way from one node to Redis, ``nodes.balancer`` the load balancer before all of them.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import anyio
from msgspec.structs import replace

from tests.fake_upstream import FakeUpstream
from tests.gateway import Gateway
from tests.live import ServerProcess
from tests.redis_server import RedisServer, Sentinel

Redis: TypeAlias = RedisServer | Sentinel | None
"""What nodes share beside the database; None: nothing. To a Sentinel's servers they find their way themselves."""


class Node(ServerProcess):
    """One process. It reaches Redis through a gateway of its own."""

    def __init__(self, upstream_url: str, directory: Path, redis: Redis, **options: Any) -> None:
        super().__init__(upstream_url, directory, **options)
        self.redis = Gateway(redis) if isinstance(redis, RedisServer) else Gateway()
        self._server = redis

    async def start(self) -> Self:
        url = f"redis://{self.redis.host}:{self.redis.port}/0" if self.redis.targets else None
        if isinstance(self._server, Sentinel):
            url = self._server.url
        self.settings = replace(self.settings, redis_url=url)
        return await super().start()


@dataclass(frozen=True)
class Cluster:
    """Nodes, the model server that all of them ask, and the load balancer: each connection goes to the next node."""

    nodes: list[Node]
    upstream: FakeUpstream
    balancer: Gateway

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def others(self, node: Node) -> list[Node]:
        return [each for each in self.nodes if each is not node]

    async def heal(self) -> None:
        """Thaw, connect and start again whatever a test has stopped."""
        async with anyio.create_task_group() as tasks:
            for node in self.nodes:
                node.redis.heal()
                node.redis.delay_seconds = 0.0
                if node.is_running:
                    node.thaw()
                else:
                    tasks.start_soon(node.start)


@asynccontextmanager
async def cluster(directory: Path, count: int = 2, redis: Redis = None, **options: Any) -> AsyncIterator[Cluster]:
    """So many nodes until the end of the block, on a file of SQLite where ``database_url`` says nothing else.

    ``options`` are settings, and what ``ServerProcess`` takes. They start at the same time, on an empty database.
    """
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(FakeUpstream())
        nodes = [Node(upstream.url, directory, redis, **options) for _ in range(count)]
        for each in nodes:
            await stack.enter_async_context(each.redis)
            stack.push_async_exit(each)
        async with anyio.create_task_group() as tasks:
            for each in nodes:
                tasks.start_soon(each.start)
        balancer = await stack.enter_async_context(Gateway(*nodes))
        yield Cluster(nodes, upstream, balancer)
