"""The command line: what it prints, with which status it ends, and that an operator's mistake is one line."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import msgspec
import pytest
from click.testing import CliRunner, Result

from chatserver import __version__, schema
from chatserver.cli import main
from chatserver.settings import Settings, variable
from chatserver.settings.loading import load
from chatserver.settings.remarks import remarks
from tests.clients import request
from tests.live import ROOT, ServerProcess

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 30.0
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("CHATSERVER_", "OPENAI_"))}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and an environment without settings of anybody's."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - CLEAN.keys():
        monkeypatch.delenv(name)
    return tmp_path


def run(*arguments: str, **environment: str) -> Result:
    """A command in this very process: quick, for what needs no server."""
    return CliRunner().invoke(main, arguments, env=environment)


@dataclass(frozen=True)
class Ended:
    status: int
    stdout: str
    stderr: str


async def run_process(*arguments: str, start: Sequence[str] = ("-m", "chatserver"), **environment: str) -> Ended:
    """The program in a process of its own, as an operator starts it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *start,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=CLEAN | {"PYTHONPATH": str(ROOT)} | environment,
    )
    try:
        with anyio.fail_after(WAIT_SECONDS):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(process.returncode, stdout.decode(), stderr.decode())


def shown(output: str) -> dict[str, object]:
    """What `config` printed, read back."""
    lines = [line.partition(" = ") for line in output.splitlines()]
    return {name: msgspec.json.decode(value) for name, _, value in lines}


# ---- config and schema ----------------------------------------------------------------------------------------------


def test_config_prints_every_setting_in_force() -> None:
    result = run("config", "--port", "9", OPENAI_BASE_URL="http://gateway/v1", CHATSERVER_ALLOWED_HOSTS="a, b")
    assert (result.exit_code, result.stderr) == (0, "")
    assert list(shown(result.stdout)) == list(Settings.__struct_fields__)
    expected = load(flags={"port": 9, "openai_base_url": "http://gateway/v1", "allowed_hosts": ("a", "b")})
    assert msgspec.convert(shown(result.stdout), Settings) == expected


def test_config_masks_secrets() -> None:
    result = run(
        "config",
        OPENAI_API_KEY="sk-hunter2",
        OPENAI_BASE_URL="https://me:hunter2@gateway/v1",
        OPENAI_CUSTOM_HEADERS="api-key: hunter2\nX-Title: hunter2",
        CHATSERVER_DATABASE_URL="postgresql://me:hunter2@db/chat",
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert "hunter2" not in result.output
    assert shown(result.stdout)["openai_custom_headers"] == "api-key: ***\nX-Title: ***"
    assert shown(result.stdout)["database_url"] == "postgresql://me:***@db/chat"


def test_flags_win_over_environment_over_env_file(elsewhere: Path) -> None:
    lines = ["CHATSERVER_PORT=1001", "export CHATSERVER_HOST='localhost'  # here", "CHATSERVER_MODEL=from-file"]
    (elsewhere / ".env").write_text("\n".join([*lines, "OPENAI_API_KEY=k"]))
    found = shown(run("config", "--port", "1003", CHATSERVER_PORT="1002", CHATSERVER_HOST="::1").stdout)
    assert [found[name] for name in ("port", "host", "model")] == [1003, "::1", "from-file"]
    found = shown(run("config").stdout)
    assert [found[name] for name in ("port", "host", "model")] == [1001, "localhost", "from-file"]
    assert found["openai_api_key"] == "***"


def test_schema_writes_the_documents_that_are_served(elsewhere: Path) -> None:
    assert run("schema", str(elsewhere)).exit_code == 0
    for name, document in {"events.json": schema.events(), "asyncapi.json": schema.asyncapi()}.items():
        assert msgspec.json.decode((elsewhere / name).read_bytes()) == document
    assert (elsewhere / "events.d.ts").read_text() == schema.typescript()
    inside = elsewhere / "inside"
    inside.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inside)
        assert run("schema").exit_code == 0
    for name in ("events.json", "asyncapi.json", "events.d.ts", "resources.d.ts"):
        assert (inside / name).read_bytes() == (elsewhere / name).read_bytes()


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["serve", "--help"], ["config", "-h"], ["schema", "--help"]])
def test_help_is_there(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0 and result.stdout.startswith("Usage:")


# ---- mistakes -------------------------------------------------------------------------------------------------------

MISTAKES: list[tuple[list[str], dict[str, str], str]] = [
    (["config"], {"CHATSERVER_HEARTBEAT_SECONDS": "soon"}, "CHATSERVER_HEARTBEAT_SECONDS"),
    (["serve"], {"CHATSERVER_MAX_RUNS": "0"}, "CHATSERVER_MAX_RUNS"),
    (["serve", "--port", "70000"], {}, "CHATSERVER_PORT"),
    (["serve", "--host", "0.0.0.0"], {}, "--insecure"),
    (["serve", "--workers", "2"], {}, "CHATSERVER_WORKERS"),
    (["serve"], {"CHATSERVER_AUTH": "jwt"}, "CHATSERVER_AUTH"),
    (["serve"], {"CHATSERVER_AUTH": "jwt", "CHATSERVER_JWT_SECRET": "abc"}, "CHATSERVER_JWT_SECRET"),
    (["serve"], {"CHATSERVER_ALLOWED_ORIGINS": "null"}, "CHATSERVER_ALLOWED_ORIGINS"),
    (["serve"], {"CHATSERVER_ALLOWED_HOSTS": "*"}, "CHATSERVER_ALLOWED_HOSTS"),
    (["serve"], {"OPENAI_API_KEY": "sk-a\nb"}, "OPENAI_API_KEY"),
    (["serve"], {"OPENAI_CUSTOM_HEADERS": "A: é"}, "OPENAI_CUSTOM_HEADERS"),
    (["serve", "--port", "0"], {"CHATSERVER_REDIS_URL": "http://localhost"}, "CHATSERVER_REDIS_URL"),
    (["serve", "--host", "host.invalid", "--insecure"], {}, "host.invalid"),
    (["schema", "/nowhere"], {}, "/nowhere"),
    ([], {"CHATSERVER_PORT": "x"}, "CHATSERVER_PORT"),
]


@pytest.mark.parametrize(("arguments", "environment", "named"), MISTAKES)
def test_a_mistake_is_one_line_that_names_it(arguments: list[str], environment: dict[str, str], named: str) -> None:
    result = run(*arguments, **environment)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code not in (0, 3)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 or result.stderr.startswith("Usage:")
    assert named in result.stderr


@pytest.mark.parametrize(
    "arguments", [["sreve"], ["serve", "--prot", "1"], ["serve", "--port", "x"], ["serve", "extra"]]
)
def test_a_wrong_command_line_ends_with_2_and_says_what_is_right(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage:") and "Error: " in result.stderr


def test_an_env_file_that_is_no_text_is_a_mistake_too(elsewhere: Path) -> None:
    (elsewhere / ".env").write_bytes(b"CHATSERVER_MODEL=\xff\xfe\n")
    result = run("config")
    assert isinstance(result.exception, SystemExit)
    assert ".env" in result.stderr and result.stderr.count("\n") == 1


async def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = await run_process("serve", "--port", str(port))
    assert (ended.status, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1 and f"127.0.0.1:{port}" in ended.stderr


@pytest.mark.parametrize(
    ("setting", "value", "status"),
    [
        ("tools", "nowhere:TOOLS", 1),
        ("database_url", "nonsense", 3),
        ("database_url", "sqlite:////nowhere/at/all.db", 3),
    ],
)
async def test_what_cannot_be_opened_is_said_without_a_trace(setting: str, value: str, status: int) -> None:
    ended = await run_process("serve", "--port", "0", **{variable(setting): value})
    assert (ended.status, ended.stdout) == (status, "")
    first, *rest = ended.stderr.splitlines()
    assert variable(setting) in first and len(rest) <= 1
    assert "Traceback" not in ended.stderr


# ---- the same program -----------------------------------------------------------------------------------------------


async def test_python_m_is_the_same_command(elsewhere: Path) -> None:
    (elsewhere / ".env").write_text("CHATSERVER_MODEL=from-file\n")
    version, config, mistake = await asyncio.gather(
        run_process("--version"),
        run_process("config", "--port", "9"),
        run_process("config", CHATSERVER_PORT="x"),
    )
    assert (version.status, version.stderr) == (0, "") and version.stdout.endswith(f" {__version__}\n")
    assert run("--version").stdout.endswith(f" {__version__}\n")
    assert config == Ended(0, run("config", "--port", "9").stdout, "")
    assert (mistake.status, mistake.stdout) == (1, "")
    assert mistake.stderr == run("config", CHATSERVER_PORT="x").stderr


@pytest.fixture
def starts(elsewhere: Path) -> list[list[str]]:
    """The ways to start the program. A console script has its own directory on the path, not the working one."""
    (elsewhere / "bin").mkdir()
    script = elsewhere / "bin" / "chatserver"
    script.write_text("from chatserver.cli import main\nmain()\n")
    return [["-m", "chatserver"], [str(script)]]


async def test_tools_of_ones_own_lie_in_the_working_directory_however_it_is_started(
    elsewhere: Path, starts: list[list[str]]
) -> None:
    (elsewhere / "mine.py").write_text("TOOLS = 5\n")
    module, script = starts
    mine = {"CHATSERVER_TOOLS": "mine:TOOLS", "CHATSERVER_PORT": "0"}
    *found, by_option, by_variable = await asyncio.gather(
        run_process("serve", start=module, **mine),
        run_process("serve", start=script, **mine),
        run_process("serve", start=["-P", *module], **mine),
        run_process("serve", start=script, PYTHONSAFEPATH="1", **mine),
    )
    assert all(ended.status == 1 and "not iterable" in ended.stderr for ended in found)
    assert by_option == by_variable and by_option.status == 1 and "No module named 'mine'" in by_option.stderr


FOREIGN = [
    "openai",
    "httpx2",
    "litestar",
    "uvloop",
    "alembic",
    "jwt",
    "orjson",
    "sqlite3",
    "decimal",
    "zoneinfo",
    "email",
]
"""Modules that the program imports, or would where they are, from early on and late."""


async def test_what_lies_in_the_working_directory_takes_no_modules_place(
    elsewhere: Path, starts: list[list[str]]
) -> None:
    for name in FOREIGN:
        (elsewhere / f"{name}.py").write_text(f"open('{name}.ran', 'w').close()\nraise SystemExit('{name}')\n")
    upstream = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "CHATSERVER_MODEL": "m"}
    (elsewhere / "mine.py").write_text("import decimal, sys\nfrom chatserver.tools.builtin import TOOLS\n")
    for start in starts:
        async with serving(elsewhere, start=start, CHATSERVER_TOOLS="mine:TOOLS", **upstream) as server:
            assert (await request(server, "GET", "/livez")).status == 200
            assert (await request(server, "POST", "/chat/runs", {"message": "Hi"})).status == 202
            os.kill(server.pid, signal.SIGINT)
            assert await server.wait() == 0
            assert [line for line in server.stderr if "cannot be reached" not in line] == []
        assert [name for name in FOREIGN if (elsewhere / f"{name}.ran").exists()] == []


@asynccontextmanager
async def serving(
    directory: Path, *arguments: str, start: Sequence[str] = ("-m", "chatserver"), **environment: str
) -> AsyncIterator[ServerProcess]:
    with anyio.fail_after(2 * WAIT_SECONDS):
        server = ServerProcess(None, directory, *arguments, start=start, environment=environment, has_database=False)
        async with server:
            yield server


async def test_serve_says_where_it_is_and_who_answers_and_ends_with_0(elsewhere: Path) -> None:
    async with serving(elsewhere) as server:
        assert any(f"http://127.0.0.1:{server.port}" in line and "demo model" in line for line in server.stdout)
        assert (await request(server, "GET", "/livez")).status == 200
        os.kill(server.pid, signal.SIGINT)
        assert await server.wait() == 0
        assert any("curl -N " in line for line in server.stdout)
        assert server.stderr == []


async def test_the_banner_names_the_upstream_and_no_secret(elsewhere: Path) -> None:
    (elsewhere / ".env").write_text("OPENAI_API_KEY=sk-hunter2\nOPENAI_BASE_URL=http://me:hunter2@127.0.0.1:1/v1\n")
    async with serving(elsewhere, CHATSERVER_MODEL="mine") as server:
        assert "mine at http://me:***@127.0.0.1:1/v1" in server.output
        assert "hunter2" not in server.output and "demo" not in server.output


# ---- where settings come from ---------------------------------------------------------------------------------------

REMARKS: list[tuple[dict[str, str], dict[str, str], list[str]]] = [
    ({}, {}, []),
    ({}, {"OPENAI_API_KEY": "hunter2", "OPENAI_BASE_URL": "http://a/v1"}, []),
    ({"CHATSERVER_MODEL": "m"}, {}, ["ENV was read and gives CHATSERVER_MODEL"]),
    ({"CHATSERVER_MODEL": "m", "PATH": "x"}, {"CHATSERVER_MODEL": "n"}, ["ENV was read and gives no setting"]),
    ({"CHATSERVER_TOOLS": "evil:TOOLS", "OTHER": "x"}, {}, ["ENV was read and gives CHATSERVER_TOOLS"]),
    (
        {"OPENAI_API_KEY": "hunter2", "OPENAI_BASE_URL": "http://a/v1"},
        {},
        ["ENV was read and gives OPENAI_API_KEY, OPENAI_BASE_URL"],
    ),
    (
        {"OPENAI_BASE_URL": "http://me:hunter2@evil/v1?key=hunter2"},
        {"OPENAI_API_KEY": "hunter2", "OPENAI_CUSTOM_HEADERS": "api-key: hunter2"},
        [
            "ENV was read and gives OPENAI_BASE_URL",
            "OPENAI_API_KEY of the environment goes to http://me:***@evil/v1?key=***, which is OPENAI_BASE_URL of ENV",
            "OPENAI_CUSTOM_HEADERS of the environment goes to http://me:***@evil/v1?key=***, "
            "which is OPENAI_BASE_URL of ENV",
        ],
    ),
    (
        {"OPENAI_API_KEY": "hunter2"},
        {"OPENAI_BASE_URL": "http://a/v1"},
        [
            "ENV was read and gives OPENAI_API_KEY",
            "OPENAI_API_KEY of ENV goes to http://a/v1, which is OPENAI_BASE_URL of the environment",
        ],
    ),
    ({}, {"CHATSERVER_MODLE": "hunter2"}, ["CHATSERVER_MODLE is no setting; the nearest is CHATSERVER_MODEL"]),
    ({}, {"CHATSERVER_": ""}, ["CHATSERVER_ is no setting; the nearest is "]),
    ({}, {"CHATSERVER_\nX\x1b[2J": "1"}, ["CHATSERVER_\\nX\\x1b[2J is no setting; the nearest is "]),
    (
        {"CHATSERVER_GRACE_SECOND": "1"},
        {"CHATSERVER_JWT_SECRETS": "hunter2"},
        [
            "ENV was read and gives no setting",
            "CHATSERVER_GRACE_SECOND is no setting; the nearest is CHATSERVER_GRACE_SECONDS",
            "CHATSERVER_JWT_SECRETS is no setting; the nearest is CHATSERVER_JWT_SECRET",
        ],
    ),
]


@pytest.mark.parametrize(("file", "environment", "lines"), REMARKS)
def test_it_is_said_which_source_gives_what(
    file: dict[str, str], environment: dict[str, str], lines: list[str]
) -> None:
    found = remarks("ENV", file, environment)
    assert [line[: len(expected)] for line, expected in zip(found, lines, strict=True)] == lines
    assert all("hunter2" not in line and line.isprintable() for line in found)


async def test_serve_says_on_stderr_where_a_key_goes_and_what_is_misspelt(elsewhere: Path) -> None:
    (elsewhere / ".env").write_text("OPENAI_BASE_URL=http://127.0.0.1:1/v1\n")
    async with serving(elsewhere, OPENAI_API_KEY="sk-hunter2", CHATSERVER_MODLE="m", CHATSERVER_MODEL="m") as server:
        os.kill(server.pid, signal.SIGINT)
        assert await server.wait() == 0
        read, goes, misspelt = server.stderr
    assert read == f"{elsewhere / '.env'} was read and gives OPENAI_BASE_URL"
    assert goes.startswith("OPENAI_API_KEY of the environment goes to http://127.0.0.1:1/v1") and "hunter2" not in goes
    assert misspelt == "CHATSERVER_MODLE is no setting; the nearest is CHATSERVER_MODEL"
