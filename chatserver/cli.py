"""The command line."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from dotenv import dotenv_values

from chatserver import __version__, schema
from chatserver.errors import SettingsError
from chatserver.settings import Settings
from chatserver.settings.loading import load
from chatserver.settings.remarks import remarks

F = TypeVar("F", bound=Callable[..., Any])

ENV_FILE = Path(".env")


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
        click.option("--workers", type=int, help="Processes; more than 1 needs a shared event log.  [default: 1]"),
        click.option("--port", type=int, help="0 takes a free one.  [default: 8000]"),
        click.option("--host", help="[default: 127.0.0.1]"),
    ):
        command = option(command)
    return command


@main.command()
@_flags
def serve(**flags: Any) -> None:
    """Run the server."""
    from chatserver.serving import serve as serving
    from chatserver.serving.processes import inherited

    inheritance = inherited()
    if inheritance.worker is None:
        for line in remarks(str(ENV_FILE.resolve()), _env_file(), os.environ):
            click.echo(line, err=True)
    settings = _settings(flags)
    try:
        settings, inheritance = serving.listen(settings, inheritance)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    try:
        status = serving.serve(settings, inheritance, lambda: click.echo(_banner(settings)))
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    if status:
        sys.exit(status)


@main.command()
@_flags
def config(**flags: Any) -> None:
    """Print the settings in force, secrets masked."""
    for name, value in _settings(flags).shown().items():
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


@main.command()
@click.argument("url")
@click.option(
    "--message", default="Count to 50", show_default=True, help="What is asked; the demo model understands it."
)
@click.option("--model", help="Another model than the server's own.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Of each kind in each round.")
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Sent with every request.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench.html"), show_default=True, help="Report.")
@click.option("--json", "as_json", is_flag=True, help="Print the tables for programs.")
def bench(url: str, out: Path, message: str, model: str | None, **options: Any) -> None:
    """Compare SSE and WebSocket of the chatserver at URL: first event, each event, coming back."""
    try:
        from chatserver.bench import command
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is missing: pip install 'chatserver[bench]'") from None
    request = {"message": message} | ({"model": model} if model else {})
    if problem := command.run(url, out, request=request, **options):
        raise click.ClickException(problem)


def _settings(flags: dict[str, Any]) -> Settings:
    try:
        return load(_env_file(), os.environ, flags=flags)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def _env_file() -> dict[str, str | None]:
    try:
        return dotenv_values(ENV_FILE)
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{ENV_FILE} cannot be read: {error}") from None


def _banner(settings: Settings) -> str:
    url = settings.own_url
    upstream = "answering with the built-in demo model (set OPENAI_API_KEY or OPENAI_BASE_URL for a real one)"
    if not settings.is_demo:  # Whether the upstream has that model is not known yet.
        upstream = f"asking for {settings.model} at {settings.shown()['openai_base_url'] or 'OpenAI'}"
    who = "" if settings.auth == "none" else '-H "Authorization: Bearer $TOKEN" '
    return (
        f"chatserver {__version__} on {url}, {upstream}\n"
        f"  curl -N {url}/chat/stream {who}-H 'Content-Type: application/json' "
        """-d '{"message": "What time is it in Tokyo, and what is 17 * 23?"}'"""
    )
