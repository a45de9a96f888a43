"""Several nodes on one database and one Redis, with a network between them that a test can break.

    async with RedisServer() as redis, cluster(tmp_path, 3, redis) as nodes:
        reading = await SSE.start(nodes[0], {"message": "Hi"})
        nodes[0].kill()
        await WS.attach(nodes[1], reading.run_id, after)

``nodes[0].redis`` is the way from one node to Redis, ``nodes.balancer`` the load balancer before all of them. The nodes
of ``cluster`` are processes, those of ``live_cluster`` run in the test's own loop, where a test can patch them.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeAlias, TypeVar, cast

import anyio
from msgspec.structs import replace

from tests.clients import Address
from tests.fake_upstream import FakeUpstream
from tests.gateway import Gateway
from tests.live import LiveServer, ServerProcess, live_server
from tests.program import free_port
from tests.proving import Stage
from tests.redis_server import RedisServer, Sentinel

Redis: TypeAlias = RedisServer | Sentinel | None
"""What nodes share beside the database; None: nothing. To a Sentinel's servers they find their way themselves."""


class Member(Address, Protocol):
    """A node of either kind."""

    @property
    def redis(self) -> Gateway: ...
    async def come_back(self) -> None: ...


class Node(ServerProcess):
    """A process. It reaches Redis through a gateway of its own.

    Between two lives nobody else has its port: the balancer still tries it, and another server there would answer.
    """

    def __init__(self, upstream_url: str, directory: Path, redis: Redis, **options: Any) -> None:
        super().__init__(upstream_url, directory, port=free_port(), is_forked=True, **options)
        self.redis, self._server = _way_to(redis), redis

    async def start(self) -> Self:
        self.settings = replace(self.settings, redis_url=_url_of(self._server, self.redis))
        return await super().start()

    async def come_back(self) -> None:
        """Thaw, connect or start again, whatever a test has done."""
        self.redis.heal()
        if self.is_running:
            self.thaw()
        else:
            await self.start()


@dataclass(frozen=True)
class LiveNode:
    """A node that runs in this very loop. It reaches Redis through a gateway of its own."""

    server: LiveServer
    redis: Gateway

    @property
    def host(self) -> str:
        return self.server.host

    @property
    def port(self) -> int:
        return self.server.port

    async def come_back(self) -> None:
        """Connect again."""
        self.redis.heal()


MemberT = TypeVar("MemberT", bound=Member)


@dataclass(frozen=True)
class Cluster(Generic[MemberT]):
    """Nodes, the model server that all of them ask, and the load balancer: each connection goes to the next node."""

    nodes: list[MemberT]
    upstream: FakeUpstream
    balancer: Gateway

    def __getitem__(self, number: int) -> MemberT:
        return self.nodes[number]

    def __iter__(self) -> Iterator[MemberT]:
        return iter(self.nodes)

    def others(self, node: MemberT) -> list[MemberT]:
        return [each for each in self.nodes if each is not node]

    async def heal(self) -> None:
        """Mend whatever a test has done to nodes and networks."""
        async with anyio.create_task_group() as tasks:
            for node in self.nodes:
                tasks.start_soon(node.come_back)

    def stage(self) -> Stage:
        """Where the proofs of one server are played by all nodes: each connection goes to the next one."""
        stage = Stage(cast(LiveServer, self.balancer), self.upstream)  # To its clients it is a server.
        self.upstream.always(stage.answer)
        return stage


@asynccontextmanager
async def cluster(directory: Path, count: int = 2, redis: Redis = None, **options: Any) -> AsyncIterator[Cluster[Node]]:
    """So many processes until the end of the block, on a file of SQLite where ``database_url`` says nothing else.

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
        yield Cluster(nodes, upstream, await stack.enter_async_context(Gateway(*nodes)))


@asynccontextmanager
async def live_cluster(
    directory: Path, count: int, redis: RedisServer, **settings: Any
) -> AsyncIterator[Cluster[LiveNode]]:
    """So many servers in this loop until the end of the block, on a file of SQLite."""
    async with AsyncExitStack() as stack:
        upstream, nodes = await stack.enter_async_context(FakeUpstream()), list[LiveNode]()
        for _ in range(count):
            way = await stack.enter_async_context(_way_to(redis))
            url = _url_of(redis, way)
            server = live_server(upstream.url, directory=directory, redis_url=url, **settings)
            nodes.append(LiveNode(await stack.enter_async_context(server), way))
        yield Cluster(nodes, upstream, await stack.enter_async_context(Gateway(*nodes)))


def _way_to(redis: Redis) -> Gateway:
    return Gateway(redis) if isinstance(redis, RedisServer) else Gateway()


def _url_of(redis: Redis, way: Gateway) -> str | None:
    match redis:
        case RedisServer():
            return f"redis://{way.host}:{way.port}/0"
        case Sentinel():
            return redis.url
        case _:
            return None
