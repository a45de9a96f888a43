"""A node's link to Redis: replies reach their callers and nobody else, whatever is cut, cancelled or frozen."""

import asyncio
import sys
from collections.abc import AsyncIterator
from hashlib import sha1
from operator import itemgetter
from pathlib import Path
from random import Random
from time import sleep

import anyio
import pytest
from redis.asyncio.connection import Connection
from redis.exceptions import ResponseError

from chatserver import nodes
from chatserver.errors import SettingsError, Unavailable
from chatserver.nodes import link_to
from chatserver.nodes.address import Address
from chatserver.nodes.link import SCRIPTS, Link, Script, open_link
from chatserver.nodes.wire import Wire
from tests.conftest import Scale
from tests.proving import turns
from tests.redis_process import RedisProcess, redis_process
from tests.tcp_server import HOST, tcp_server

pytestmark = pytest.mark.anyio

PATIENCE_SECONDS = 2.0
NODES = Path(nodes.__file__).parent


class Echo(Script):
    """Says what it was given, or fails in the way it is told."""

    def __init__(self) -> None:
        self.source = b"if KEYS[1] == 'fail' then return redis.error_reply(ARGV[1]) end return {KEYS[1], ARGV[1]}"
        self.digest = "0" * 40  # Redis has never seen it: each call goes the way of NOSCRIPT.


@pytest.fixture
async def link(redis_server: RedisProcess) -> AsyncIterator[Link]:
    async with open_link(Address(redis_server.url), PATIENCE_SECONDS) as opened:
        yield opened


async def is_up(link: Link) -> None:
    """Wait until Redis is reached again."""
    up = asyncio.Event()
    link.on_up.append(up.set)
    with anyio.fail_after(20):
        while not link.is_up:
            await up.wait()


async def test_commands_scripts_and_texts_come_back_as_bytes(link: Link) -> None:
    assert await link.command("SET", "a", 1) == b"OK"
    assert await link.command("GET", "a") == b"1"
    assert await link.command("GET", "b") is None
    assert await link.call(Echo(), ["k"], ["é"]) == [b"k", "é".encode()]


async def test_a_script_that_redis_has_lost_is_sent_again(link: Link, redis_server: RedisProcess) -> None:
    script = Echo()
    script.digest = sha1(script.source, usedforsecurity=False).hexdigest()
    for _ in range(2):
        assert await link.call(script, ["k"], ["v"]) == [b"k", b"v"]
        redis_server.cli("SCRIPT", "FLUSH")


async def test_a_wrong_script_is_told_to_its_caller_alone(link: Link) -> None:
    async def failing() -> None:
        with pytest.raises(ResponseError, match="it is wrong"):
            await link.call(Echo(), ["fail"], ["ERR it is wrong"])

    replies = list[tuple[int, object]]()
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(failing)

            async def ask(number: int = number) -> None:
                replies.append((number, await link.call(Echo(), ["k"], [number])))

            tasks.start_soon(ask)
    assert sorted(replies, key=itemgetter(0)) == [(number, [b"k", b"%d" % number]) for number in range(20)]


@pytest.mark.parametrize("words", ["OOM no room", "READONLY a replica", "LOADING the data", "MISCONF no disk"])
async def test_the_fault_of_redis_is_unavailable(link: Link, words: str) -> None:
    with pytest.raises(Unavailable):
        await link.call(Echo(), ["fail"], [words])
    await is_up(link)  # A master that is one no longer is hung up on: another may be it now.
    assert await link.call(Echo(), ["k"], ["v"]) == [b"k", b"v"]


async def test_what_is_asked_in_one_turn_is_written_once(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, flush = list[Wire](), Wire._flush

    def flush_and_count(wire: Wire) -> None:
        flushed.append(wire)
        flush(wire)

    monkeypatch.setattr(Wire, "_flush", flush_and_count)
    assert await asyncio.gather(*(link.command("ECHO", number) for number in range(100))) == [
        b"%d" % number for number in range(100)
    ]
    assert len(flushed) == 1


async def test_a_cancelled_caller_gets_and_leaves_no_reply(link: Link, scale: Scale) -> None:
    """Each caller that is not cancelled gets its own reply; those that are, at random moments, disturb none."""
    random, calls = Random(13), scale(3000, 20_000)
    answered = 0

    async def ask(number: int) -> None:
        nonlocal answered
        reply = await (link.call(Echo(), ["k"], [number]) if number % 2 else link.command("ECHO", number))
        assert reply in ([b"k", b"%d" % number], b"%d" % number)
        answered += 1

    asked: list[asyncio.Task[None]] = []
    for number in range(calls):
        asked.append(asyncio.create_task(ask(number)))
        if random.random() < 0.3:
            await asyncio.sleep(random.choice([0, 0, 0, 0.001]))
        for _ in range(2):
            random.choice(asked[-50:]).cancel()
    results = await asyncio.gather(*asked, return_exceptions=True)
    cancelled = sum(isinstance(each, asyncio.CancelledError) for each in results)
    assert answered + cancelled == calls and [each for each in results if isinstance(each, AssertionError)] == []
    assert answered > calls / 10 and cancelled > calls / 10


async def test_messages_of_channels_come_and_stop(link: Link) -> None:
    first, second = list[bytes](), list[bytes]()
    link.subscribe("a", first.append)
    link.subscribe("b", second.append)
    for channel in "abc":
        await link.command("PUBLISH", channel, f"to {channel}")
    link.unsubscribe("a")
    link.unsubscribe("never")
    assert await link.command("PUBLISH", "a", "nobody") == 0
    assert (first, second) == ([b"to a"], [b"to b"])


async def test_a_message_that_cannot_be_used_does_not_disturb_others(
    link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    got = list[bytes]()
    link.subscribe("a", lambda message: got.append(b"%d" % (1 // int(message))))
    link.subscribe("b", got.append)
    await link.command("PUBLISH", "a", 0)
    await link.command("PUBLISH", "b", 2)
    assert got == [b"2"]
    assert "could not be used" in caplog.text


async def test_a_lost_redis_is_refused_at_once_and_found_again(link: Link, redis_server: RedisProcess) -> None:
    told, got = list[str](), list[bytes]()
    link.on_up.append(lambda: told.append("up"))
    link.on_down.append(lambda: told.append("down"))
    link.subscribe("a", got.append)
    waiting = asyncio.create_task(link.command("BLPOP", "nothing", 0))
    await link.command("PING")
    redis_server.stop()
    with anyio.fail_after(20), pytest.raises(Unavailable):
        await waiting
    try:
        assert not link.is_up
        with pytest.raises(Unavailable):
            await link.command("PING")
    finally:
        redis_server.start()
    await is_up(link)
    await link.command("PUBLISH", "a", "again")
    assert (told, got) == (["down", "up"], [b"again"])


async def test_a_redis_that_hangs_up_while_it_is_greeted_is_tried_again(
    link: Link, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop raises no OSError where a socket is closed already."""
    connect, tries = Connection.connect, list[str]()

    async def hung_up(self: Connection) -> None:
        await connect(self)  # type: ignore[no-untyped-call]
        tries.append("hung up")
        if len(tries) < 3:
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    monkeypatch.setattr(Connection, "connect", hung_up)
    redis_server.stop()
    redis_server.start()
    with anyio.fail_after(20):
        while len(tries) < 3:  # noqa: ASYNC110 - nobody tells of it
            await anyio.sleep(0.01)
    await is_up(link)


async def test_what_is_asked_of_a_connection_that_has_ended_unnoticed_is_refused(redis_server: RedisProcess) -> None:
    """As where it has ended between its greeting and the first command."""
    async with open_link(Address(redis_server.url), 60) as link:
        wire = link._wire
        assert wire is not None
        wire._transport.set_protocol(asyncio.Protocol())
        wire._transport.abort()
        with anyio.fail_after(20), pytest.raises(Unavailable):
            await link.command("PING")
        await is_up(link)
        assert await link.command("ECHO", "mine") == b"mine"


async def test_a_frozen_redis_is_given_up_and_its_late_replies_reach_nobody(
    link: Link, redis_server: RedisProcess
) -> None:
    await link.command("SET", "a", "old")
    redis_server.freeze()
    try:
        with anyio.fail_after(20), pytest.raises(Unavailable):
            await link.command("GET", "a")
    finally:
        redis_server.thaw()
    await is_up(link)
    assert await link.command("ECHO", "mine") == b"mine"


async def test_the_time_in_which_this_process_stands_still_is_not_that_of_redis(
    link: Link, redis_server: RedisProcess
) -> None:
    redis_server.freeze()
    waiting = asyncio.create_task(link.command("ECHO", "mine"))
    await turns(5)
    sleep(2 * PATIENCE_SECONDS)  # noqa: ASYNC251 - nothing goes on in this process
    await turns(50)  # In which the link looks whether something has come.
    redis_server.thaw()
    assert await waiting == b"mine"


@pytest.mark.parametrize("words", ["LOADING wait", "MASTERDOWN wait", "MISCONF wait", "BUSY wait"])
async def test_redis_that_refuses_for_a_while_is_waited_for_at_the_start(words: str) -> None:
    """A Redis that refuses PING is not there yet: whatever was asked now would be refused one by one."""
    replies, pings = {b"HELLO": b"%0\r\n", b"CLIENT": b"+OK\r\n"}, 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal pings
        while data := await reader.read(10_000):
            is_ping = (command := data.split()[2]) == b"PING"
            pings += is_ping
            refusal = b"-%b\r\n" % words.encode()
            writer.write(replies.get(command, b"+PONG\r\n" if is_ping and pings > 2 else refusal))

    async with tcp_server(refuse) as port, open_link(Address(f"redis://{HOST}:{port}"), PATIENCE_SECONDS) as link:
        assert not link.is_up
        with pytest.raises(Unavailable):
            await link.command("GET", "a")
        await is_up(link)
        assert pings == 3


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n", b"-ERR unknown command\r\n", b"-NOPROTO no\r\n"])
async def test_what_is_no_redis_or_an_old_one_is_told_at_the_start(reply: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(10_000):
            writer.write(reply)

    async with tcp_server(answer) as port:
        with pytest.raises(SettingsError, match="CHATSERVER_REDIS_URL: Redis cannot be used: "):
            async with open_link(Address(f"redis://{HOST}:{port}")):
                raise AssertionError("it was opened")


async def test_a_wrong_password_is_told_at_the_start() -> None:
    with redis_process("--requirepass", "secret") as server:
        for who, is_right in (("", False), (":wrong@", False), (":secret@", True)):
            link = link_to(f"redis://{who}127.0.0.1:{server.port}/3")
            if is_right:
                async with link() as opened:
                    assert opened is not None and b"db=3" in await opened.command("CLIENT", "INFO")
            else:
                with pytest.raises(SettingsError, match="CHATSERVER_REDIS_URL: Redis cannot be used: "):
                    async with link():
                        raise AssertionError("it was opened")


async def test_redis_that_comes_after_the_start_is_found(caplog: pytest.LogCaptureFixture) -> None:
    with redis_process() as server:
        server.stop()
        async with open_link(Address(server.url), PATIENCE_SECONDS) as link:
            heard = list[bytes]()
            link.subscribe("news", heard.append)
            assert not link.is_up
            with pytest.raises(Unavailable):
                await link.command("GET", "a")
            await anyio.to_thread.run_sync(server.start)
            await is_up(link)
            await link.command("PUBLISH", "news", "a")
            assert (await link.command("GET", "a"), heard) == (None, [b"a"])
    assert [each.message.split(":")[0] for each in caplog.records] == [
        "Redis is not reached, what needs it is refused",
        "Redis is reached again",
    ]


async def test_a_unix_socket_will_do(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with redis_process("--unixsocket", str(path)):
        async with open_link(Address(f"unix://{path}?db=2")) as link:
            assert b"db=2" in await link.command("CLIENT", "INFO")


async def test_a_sentinel_names_the_master_and_its_successor(tmp_path: Path) -> None:
    with redis_process("--repl-diskless-sync-delay", "0") as first, redis_process() as second:
        second.cli("REPLICAOF", "127.0.0.1", str(first.port))
        (tmp_path / "sentinel.conf").write_text(
            f"sentinel monitor chat 127.0.0.1 {first.port} 1\nsentinel down-after-milliseconds chat 200\n"
            "sentinel failover-timeout chat 2000\n"
        )
        with redis_process(str(tmp_path / "sentinel.conf"), "--sentinel") as sentinel:
            address = Address(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/chat/0")
            async with open_link(address, PATIENCE_SECONDS) as link:
                await link.command("SET", "a", "kept")
                while "master_link_status:up" not in second.cli("INFO", "replication"):  # noqa: ASYNC110
                    await anyio.sleep(0.05)
                with anyio.fail_after(20):
                    while second.cli("GET", "a") != "kept":  # noqa: ASYNC110
                        await anyio.sleep(0.05)
                while str(second.port) not in sentinel.cli("SENTINEL", "REPLICAS", "chat"):  # noqa: ASYNC110
                    await anyio.sleep(0.05)  # It asks the master for its replicas every 10 s.
                first.stop()
                try:
                    with anyio.fail_after(40):
                        while True:
                            try:
                                if await link.command("SET", "b", "new") == b"OK":
                                    break
                            except Unavailable:
                                await anyio.sleep(0.05)
                    assert await link.command("GET", "a") == b"kept"
                    assert f"tcp_port:{second.port}".encode() in await link.command("INFO", "server")
                finally:
                    first.start()


@pytest.mark.parametrize(
    "url",
    ["localhost", "http://h", "redis+x://h", "redis://h:99999", "redis+sentinel://h:1", "unix+sentinel:///a/b",
     "redis://h?nonsense=1", "redis+sentinel://h:x/chat", ""],
)  # fmt: skip
def test_a_wrong_url_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(ValueError, match=r"\Ais no redis://, rediss://, unix:// or redis\+sentinel:// URL\Z"):
        Address(url)
    if url:
        with pytest.raises(SettingsError, match="CHATSERVER_REDIS_URL: is no redis://"):
            link_to(url)


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    monkeypatch.delitem(sys.modules, "chatserver.nodes.address")
    with pytest.raises(SettingsError, match=r"\ACHATSERVER_REDIS_URL: .* is missing: pip install"):
        link_to("redis://localhost")


async def test_scripts_run_in_the_order_in_which_they_were_posted_the_first_time_too(
    redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis learns them from the connection: a script that it did not know would be sent again, behind later ones."""
    script = Echo()
    script.source += b"-- as no other"
    script.digest = sha1(script.source, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(SCRIPTS, "echo", script.source)
    async with open_link(Address(redis_server.url), PATIENCE_SECONDS) as link:
        replies: list[object] = []
        link.post(script, ["k"], ["first"], replies.append)
        assert await link.command("ECHO", "second") == b"second"
        assert replies == [[b"k", b"first"]]


LINKED = """
import sys
import anyio
from chatserver.nodes import link_to

async def main():
    async with link_to(sys.argv[1])() as link:
        await link.command("PING")

anyio.run(main)
"""


async def test_redis_is_given_the_scripts_of_modules_that_are_imported_later(redis_server: RedisProcess) -> None:
    """A server connects first, and imports then what makes it a node."""
    redis_server.cli("SCRIPT", "FLUSH")
    await anyio.run_process([sys.executable, "-c", LINKED, redis_server.url], stderr=None)
    digests = [sha1(each.read_bytes(), usedforsecurity=False).hexdigest() for each in NODES.glob("scripts/*.lua")]
    assert digests
    assert redis_server.cli("SCRIPT", "EXISTS", *digests).split() == ["1"] * len(digests)
