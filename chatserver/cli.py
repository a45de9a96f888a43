"""The command line."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
import msgspec

from chatserver import __version__, schema
from chatserver.errors import SettingsError
from chatserver.settings import Settings
from chatserver.settings.loading import ENV_FILE, env_file, load_settings
from chatserver.settings.remarks import remarks

if TYPE_CHECKING:
    from chatserver.plugin import Application
    from chatserver.terminal.client import Transport

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
P = ParamSpec("P")


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """The server between an AI agent and its users: one event log, over SSE and over WebSocket."""
    if context.invoked_subcommand is None:
        context.invoke(serve)


def _flags(command: F) -> F:
    for option in (
        click.option(
            "--insecure",
            is_flag=True,
            default=None,
            help="Serve beyond loopback without authentication; take JWT keys over plain HTTP.",
        ),
        click.option("--root-path", help="Path under which a reverse proxy shows the server."),
        click.option("--workers", type=int, help="Processes; more than 1 needs CHATSERVER_REDIS_URL.  [default: 1]"),
        click.option("--port", type=int, help="0 takes a free one.  [default: 8000]"),
        click.option("--host", help="[default: 127.0.0.1]"),
    ):
        command = option(command)
    return command


@main.command()
@_flags
def serve(**flags: Any) -> None:
    """Run the server."""
    from chatserver.serving.processes import inherited
    from chatserver.serving.serve import run

    inheritance = inherited()
    if inheritance.worker is None:
        for line in remarks(str(ENV_FILE.resolve()), _told(env_file), os.environ):
            click.echo(line, err=True)
    settings = _told(load_settings, **flags)
    if status := _told(run, settings, inheritance, partial(_app, settings)):
        sys.exit(status)


def _app(settings: Settings) -> "Application":
    from chatserver.app import create_app  # Imported here: a supervisor needs no application.

    return create_app(settings)


@main.command()
@_flags
def config(**flags: Any) -> None:
    """Print the settings in force, secrets masked."""
    for name, value in _told(load_settings, **flags).shown().items():
        click.echo(f"{name} = {msgspec.json.encode(value).decode()}")


@main.command("schema")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=Path())
def write_schema(folder: Path) -> None:
    """Write events.json, asyncapi.json, events.d.ts and resources.d.ts, the contract for programs, into a folder."""
    from chatserver.routes.openapi import RESOURCES

    if not folder.is_dir():
        raise click.ClickException(f"there is no folder {folder}")
    (folder / "events.d.ts").write_text(schema.typescript())
    (folder / "resources.d.ts").write_text(schema.typescript_of(RESOURCES))
    for name, document in {"events.json": schema.events(), "asyncapi.json": schema.asyncapi()}.items():
        (folder / name).write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def _of_a_server(command: F) -> F:
    """What each command takes that talks to a running server."""
    for option in (
        click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Sent with every request."),
        click.option("--model", help="Another model than the server's own."),
        click.argument("url", default="http://127.0.0.1:8000"),
    ):
        command = option(command)
    return command


def _request(model: str | None, **fields: str) -> dict[str, Any]:
    return fields | ({"model": model} if model else {})


@main.command()
@_of_a_server
@click.option("--message", help="Ask this and end. Without it, each line of the input is a message.")
@click.option("--transport", type=click.Choice(["sse", "ws"]), default="ws", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the events for programs, one a line.")
def chat(
    url: str, model: str | None, headers: tuple[str, ...], message: str | None, transport: "Transport", as_json: bool
) -> None:
    """Talk to the chatserver at URL. Ctrl-C ends an answer, Ctrl-D the dialogue."""
    from chatserver.terminal.chat import Chat
    from chatserver.terminal.client import Client

    dialogue = Chat(_told(Client, url, transport, headers), _request(model), as_json=as_json)
    if not (dialogue.talk() if message is None else dialogue.say(message)):
        sys.exit(1)


@main.command()
@_of_a_server
@click.option("--message", default="Count to 20", show_default=True, help="Is asked over each transport.")
def doctor(url: str, model: str | None, headers: tuple[str, ...], message: str) -> None:
    """Find out whether streams of the chatserver at URL get through all that lies between."""
    from chatserver.terminal.doctor import clients_of, show

    if not show(_told(clients_of, url, headers), _request(model, message=message)):
        sys.exit(1)


@main.command()
@_of_a_server
@click.option("--message", default="Count to 50", show_default=True, help="Is asked; the demo model understands it.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Of each kind in each round.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench.html"), show_default=True, help="Report.")
@click.option("--json", "as_json", is_flag=True, help="Print the tables for programs.")
def bench(url: str, model: str | None, message: str, out: Path, **options: Any) -> None:
    """Compare SSE and WebSocket of the chatserver at URL: first event, each event, coming back."""
    try:
        from chatserver.bench import command
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is missing: pip install 'chatserver[bench]'") from None
    if problem := command.run(url, out, request=_request(model, message=message), **options):
        raise click.ClickException(problem)


def _told(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call; a wrong setting or argument is told in one line."""
    try:
        return call(*args, **kwargs)
    except (SettingsError, ValueError) as error:
        raise click.ClickException(str(error)) from None
