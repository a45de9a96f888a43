"""What all tests share: the event loop, the rule about skips, the length of proofs, a PostgreSQL of their own."""

import asyncio
import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import pytest

from chatserver.sessions import Sessions, open_sessions
from chatserver.sessions.database import Database, open_database
from chatserver.sessions.schema import metadata
from tests.approved_tools import LEDGER
from tests.fake_upstream import FakeUpstream
from tests.live import place_empty_database
from tests.program import free_port
from tests.redis_process import RedisProcess, redis_process

ReportT = TypeVar("ReportT", pytest.TestReport, pytest.CollectReport)
Scale: TypeAlias = Callable[[int, int], int]

QUIETLY = "SET client_min_messages = warning;"

# Hundreds of tests start a server. Where the environment forbids to keep what was compiled, each compiles all anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

SLOW = {"chromium", "redis"}
"""The fixtures of browsers, and of the Redis servers of nodes."""

IS_FULL = os.environ.get("CHATSERVER_PROOFS") == "full"
"""Whether this is `just proofs`: every proof at full length, and those that a cheaper test nearly replaces."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def scale() -> Scale:
    """``scale(50, 500)``: 50 rounds in the ordinary suite, 500 under ``just proofs``."""
    return lambda short, full: full if IS_FULL else short


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture
def no_certificates(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The certificates of the system are not read, which would take longer than most tests of model servers."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path_factory.getbasetemp()))


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the tools of a server under test have done, if they are those of ``approved_tools``."""
    path = tmp_path / "ledger"
    path.touch()
    monkeypatch.setenv(LEDGER, str(path))
    return path


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """The files with proofs first, then those with browsers and nodes: they take longest.

    None of them is to begin when all others are through. A test whose name holds an address is refused: in each process
    of a suite it would be another test, and the whole suite would not begin.
    """
    if nameless := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"give them ids: {nameless}")
    proofs = {item.path for item in items if item.get_closest_marker("proof")}
    slow = {item.path for item in items if not SLOW.isdisjoint(item.fixturenames)}
    items.sort(key=lambda item: (item.path not in proofs, item.path not in slow))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what stays to the end: of the whole suite that takes half a second a time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _without_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _without_skip((yield))


def _without_skip(report: ReportT) -> ReportT:
    """With ``CI`` set nothing may be skipped: a proof that did not run is no proof. An expected failure did run."""
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        report.outcome = "failed"
        report.longrepr = f"nothing may be skipped here: {reason}"
    return report


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL server that can be stopped and started; ``url`` is without a database."""

    url: str
    stop: Callable[[], None]
    start: Callable[[], None]


@pytest.fixture(scope="session")
def postgres_server(postgres: Postgres) -> str:
    return postgres.url


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server that lives as long as the tests of this process."""
    initdb, pg_ctl = postgres_program("initdb"), postgres_program("pg_ctl")
    user = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root

    with tempfile.TemporaryDirectory(prefix="chatserver-postgres-", ignore_cleanup_errors=True) as folder:
        if user:
            shutil.chown(folder, user)
        data = Path(folder, "data")

        def run(*command: str | Path) -> None:
            subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=50)

        run(initdb, "--pgdata", data, "--username", "chatserver", "--auth", "trust", "--no-sync")
        port = free_port()
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off"
        log = Path(folder, "log")
        start = partial(run, pg_ctl, "start", "--pgdata", data, "--wait", "--log", log, "--options", options)
        stop = partial(run, pg_ctl, "stop", "--pgdata", data, "--mode", "immediate")
        start()
        try:
            yield Postgres(f"postgresql://chatserver@127.0.0.1:{port}", stop, start)
        finally:
            stop()


@pytest.fixture(scope="session")
def postgres_database(postgres_server: str) -> str:
    """One database for all tests of this process: to make one takes longer than most of them."""
    psql(f"{postgres_server}/postgres", "CREATE DATABASE chat")
    return f"{postgres_server}/chat"


@pytest.fixture(scope="session")
def migrated() -> set[str]:
    """The databases that have the newest schema: to empty its tables takes less than to make it anew."""
    return set()


@pytest.fixture
def postgres_url(postgres_database: str, migrated: set[str], request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    if "migrated_url" not in request.fixturenames:  # Which leaves the tables.
        psql(postgres_database, f"{QUIETLY} DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        migrated.discard(postgres_database)
    return postgres_database


@pytest.fixture(scope="session")
def postgres_schema(postgres_server: str) -> str:
    """The statements that make what the migrations make: to migrate takes longer than many a test."""
    psql(f"{postgres_server}/postgres", "CREATE DATABASE migrated")
    migrated = f"{postgres_server}/migrated"

    async def migrate() -> None:
        async with open_database(migrated):
            pass

    asyncio.run(migrate())
    dump = [postgres_program("pg_dump"), "--inserts", "--no-owner", migrated]
    return subprocess.run(dump, check=True, timeout=50, capture_output=True, text=True).stdout


def postgres_program(name: str) -> str:
    """The path of a program of the newest server; what Debian has in PATH is a script, which takes twice the time."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
    found = shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ["PATH"]]))
    if found is None:
        pytest.skip("PostgreSQL is not installed")
    return found


def psql(database: str, statements: str) -> None:
    subprocess.run(
        [postgres_program("psql"), "--quiet", "--set", "ON_ERROR_STOP=1", "--output", os.devnull, database],
        input=statements,
        text=True,
        check=True,
        timeout=50,
    )


@pytest.fixture(scope="session")
def redis_process_of_session() -> Iterator[RedisProcess]:
    with redis_process() as server:
        yield server


@pytest.fixture
def redis_server(redis_process_of_session: RedisProcess) -> RedisProcess:
    """An empty Redis, of this process's tests alone."""
    redis_process_of_session.cli("FLUSHALL")
    return redis_process_of_session


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'chat.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database, of either kind."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def migrated_url(url: str, tmp_path: Path, migrated: set[str], request: pytest.FixtureRequest) -> str:
    """The URL of a database without content, of either kind."""
    if url.startswith("sqlite:"):
        place_empty_database(tmp_path / "chat.db")
    elif url in migrated:
        psql(url, QUIETLY + "".join(f"DELETE FROM {table};" for table in reversed(metadata.sorted_tables)))
    else:
        schema = request.getfixturevalue("postgres_schema")
        psql(url, f"{QUIETLY} DROP SCHEMA public CASCADE; CREATE SCHEMA public; {schema}")
        migrated.add(url)
    return url


@pytest.fixture
async def sessions(migrated_url: str) -> AsyncIterator[Sessions]:
    async with open_sessions(migrated_url) as opened:
        yield opened


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """A second way into the database of ``sessions``."""
    async with open_database(url) as opened:
        yield opened
