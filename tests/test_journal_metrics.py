"""What the journal of several nodes tells of itself: round trips to Redis, and how far a follower is behind."""

import pytest

from chatserver.events import Token
from chatserver.nodes.keys import run_key
from chatserver.telemetry.metrics import Metrics
from tests.clients import WS, documents_of
from tests.fake_upstream import FakeUpstream, say
from tests.journals import is_at, is_shown, node, until
from tests.live import live_server
from tests.logs import start
from tests.redis_process import RedisProcess
from tests.scrapes import Scrape, scrape

pytestmark = pytest.mark.anyio

LAG = "chatserver_follower_lag_events"


def scraped(metrics: Metrics) -> Scrape:
    return Scrape(metrics.scrape("")[0].decode())


async def test_each_round_trip_is_counted_and_not_each_event(redis_server: RedisProcess) -> None:
    metrics = Metrics(("m",))
    async with node(redis_server, "a", observer=metrics) as owner:
        log = await owner.own("run")
        for call in range(3):
            for _ in range(50):
                log.append(Token(content="x") if call or log.last_seq else start())
            await is_shown(log)
    found = scraped(metrics)
    assert found("chatserver_journal_round_trip_seconds_count") == 3
    assert 0 < found("chatserver_journal_round_trip_seconds_sum") < 60


async def test_a_follower_tells_how_far_it_is_behind(redis_server: RedisProcess) -> None:
    metrics = Metrics(("m",))
    async with node(redis_server, "a") as owner, node(redis_server, "b", observer=metrics) as reader:
        log = await owner.own("run")
        log.append(start())
        await is_shown(log)
        followed = await reader.follow("run")
        await until(lambda: scraped(metrics)(f"{LAG}_count") > 0)
        assert scraped(metrics)(f"{LAG}_sum") == 0
        reader.link.unsubscribe(run_key("run"))  # From now on, nothing comes by itself.
        await reader.link.command("PING")
        for _ in range(50):
            log.append(Token(content="x"))
        await is_at(followed, 51)
        assert scraped(metrics)(f"{LAG}_sum") >= 49


async def test_a_node_tells_of_its_journal(redis_server: RedisProcess) -> None:
    async with FakeUpstream() as upstream, live_server(upstream.url, redis_url=redis_server.url) as server:
        upstream.script(*say("Hello."))
        await documents_of(await WS.start(server, {"message": "x"}))
        assert (await scrape(server))("chatserver_journal_round_trip_seconds_count") > 0
