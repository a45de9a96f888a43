"""Which MCP servers there are: the entries of a setting, and files in the form that Claude Desktop and others read."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TypeAlias
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct, field

from chatserver.errors import SettingsError
from chatserver.settings import variable
from chatserver.syntax import headers_of, is_http_url

_SERVER_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class Command(Struct, frozen=True):
    """A program that speaks MCP over its standard input and output. ``env`` is added to what every child gets."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = {}
    cwd: str | None = None


class Endpoint(Struct, frozen=True):
    """A server that speaks MCP over streamable HTTP."""

    url: str
    headers: Mapping[str, str] = {}


Access: TypeAlias = Command | Endpoint


class McpConfiguration(Struct, frozen=True):
    """One server. Its name is the prefix of its tools; without a name, they have none."""

    name: str
    access: Access

    @property
    def label(self) -> str:
        """What a log calls the server: nothing of it is secret."""
        match self.access:
            case Command(argv):
                return self.name or PurePath(argv[0]).name
            case Endpoint(url):
                return self.name or urlsplit(url).hostname or ""

    @property
    def secrets(self) -> list[str]:
        """What no log may repeat."""
        match self.access:
            case Command(argv, env):
                return [*argv[1:], *env.values()]
            case Endpoint(url, headers):
                return [url, *headers.values()]


class _Entry(Struct):
    """A server in a file. Other programs have fields of their own there."""

    command: str | None = None
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None
    url: str | None = None
    headers: dict[str, str] = {}
    type: str | None = None
    disabled: bool = False


class _File(Struct):
    servers: dict[str, _Entry] = field(name="mcpServers")


def mcp_configurations(entries: Sequence[str], environment: Mapping[str, str]) -> list[McpConfiguration]:
    """The servers of the entries: ``[NAME=]URL``, ``[NAME=]COMMAND ARGUMENT…``, or the path of a ``.json`` file.

    In a file, ``${VARIABLE}`` stands for a variable of the environment, ``${VARIABLE:-TEXT}`` for one
    that may be absent.

    Raises:
        SettingsError: an entry or a file is wrong. The message quotes nothing that may be a secret.
    """
    found: list[McpConfiguration] = []
    for number, entry in enumerate(entries, start=1):
        try:
            found += _servers(entry, environment)
        except ValueError as error:
            raise SettingsError(f"{variable('mcp')}: entry {number}: {error}") from None
    names = [each.name for each in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingsError(f"{variable('mcp')}: two servers have the name `{twice}`")
    if names.count("") > 1:
        raise SettingsError(f"{variable('mcp')}: of several servers only one may be without a name: NAME=…")
    return found


def _servers(entry: str, environment: Mapping[str, str]) -> Iterator[McpConfiguration]:
    if entry.endswith(".json") and " " not in entry:
        yield from _of_file(Path(entry), environment)
        return
    name, equals, rest = entry.partition("=")
    if not (equals and _SERVER_NAME.fullmatch(name)):
        name, rest = "", entry
    if "://" in rest.partition(" ")[0]:
        yield McpConfiguration(name, _endpoint(rest, {}))
    else:
        argv = tuple(shlex.split(rest))
        if not argv:
            raise ValueError("there is neither a URL nor a command")
        yield McpConfiguration(name, Command(argv))


def _of_file(path: Path, environment: Mapping[str, str]) -> Iterator[McpConfiguration]:
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    for name, entry in file.servers.items():
        if not entry.disabled:
            try:
                yield McpConfiguration(_checked_name(name), _access(entry, environment))
            except ValueError as error:
                raise ValueError(f"{path}: server {name!r}: {error}") from None


def _checked_name(name: str) -> str:
    if not _SERVER_NAME.fullmatch(name):
        raise ValueError("a name is 1 to 32 of letters, digits, `_` and `-`")
    return name


def _access(entry: _Entry, environment: Mapping[str, str]) -> Access:
    def expanded(text: str) -> str:
        return _VARIABLE.sub(lambda found: _value(found, environment), text)

    if (entry.command is None) == (entry.url is None):
        raise ValueError("needs either `command` or `url`")
    if entry.url is not None:
        if entry.type == "sse":
            raise ValueError("`sse` is not understood, only streamable HTTP")
        return _endpoint(expanded(entry.url), {name: expanded(value) for name, value in entry.headers.items()})
    argv = (expanded(entry.command or ""), *map(expanded, entry.args))
    env = {name: expanded(value) for name, value in entry.env.items()}
    return Command(argv, env, entry.cwd and expanded(entry.cwd))


def _value(found: re.Match[str], environment: Mapping[str, str]) -> str:
    name, default = found.groups()
    value = environment.get(name, default)
    if value is None:
        raise ValueError(f"there is no variable {name} in the environment")
    return str(value)


def _endpoint(url: str, headers: Mapping[str, str]) -> Endpoint:
    if not is_http_url(url):
        raise ValueError("is no http:// or https:// URL")
    for name, value in headers.items():
        line = f"{name}: {value}"
        try:
            is_sendable = len(headers_of(line)) == 1 and "\n" not in line
        except ValueError:
            is_sendable = False
        if not is_sendable:
            raise ValueError(f"the header {name!r} cannot be sent")
    return Endpoint(url, headers)
