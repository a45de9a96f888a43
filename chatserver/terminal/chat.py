"""The command `chatserver chat`: a dialogue with a chatserver. The answer goes to stdout, all else to stderr."""

import re
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from functools import partial
from time import sleep
from typing import Any, TypeAlias

import anyio
import click
import msgspec

from chatserver.dialogue import QUESTION
from chatserver.errors import AlreadyAnswered, NotFound
from chatserver.events import (
    Done,
    Error,
    Event,
    Reasoning,
    Snapshot,
    Start,
    Token,
    ToolCall,
    ToolProgress,
    ToolResult,
    to_json,
)
from chatserver.parts import text_of
from chatserver.syntax import one_line
from chatserver.terminal.client import Client, Refused, Unreachable

LAST_SECONDS = 3.0
"""How long the end of a run is waited for that the user has cancelled."""

SHOWN_CHARS = 300
"""So much of a call's arguments and of its result is shown."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey, were it in a model's text."""

FINAL = {NotFound.status, AlreadyAnswered.status}
"""The call waits for no answer any more."""

RETRY_PAUSE_SECONDS = 1.0
"""Before the user is asked again after an answer that was not recorded."""

Reading: TypeAlias = Callable[[Client], AsyncGenerator[Event]]


class Chat:
    """One session. ``request``: what each request has beside the message. ``as_json``: print events for programs."""

    def __init__(self, client: Client, request: dict[str, Any], *, as_json: bool) -> None:
        self._client, self._request, self._as_json = client, request, as_json
        self._run_id, self._seq = "", 0
        self._written: type[Event] | None = None
        """What stands in the line that is not ended yet; None: there is no such line."""

    def talk(self) -> bool:
        """Send each line of stdin as a message; whether all answers are whole. At a terminal, always true."""
        is_whole = True
        while True:
            try:
                if _is_attended():
                    click.echo("> ", nl=False, err=True)
                line = input()
            except (EOFError, KeyboardInterrupt):
                return is_whole or _is_attended()
            if line.strip():
                is_whole &= self.say(line)

    def say(self, message: str) -> bool:
        """Send a message and show its answer; whether the answer is whole."""
        self._run_id, self._seq = "", 0
        read: Reading = partial(Client.ask, request=self._request | {"message": message})
        try:
            while isinstance(last := anyio.run(self._read, read), ToolCall):
                self._resolve(last)
                read = partial(Client.attach, run_id=self._run_id, after=self._seq)
            return isinstance(last, Done) and last.finish_reason == "stop"
        except (Refused, Unreachable) as error:
            self._tell(str(error), "red")
        except (KeyboardInterrupt, click.Abort):
            self._tell("cancelled", "red")
            with suppress(Refused, Unreachable):
                anyio.run(self._cancel)
        return False

    async def _read(self, read: Reading) -> Event | None:
        """Show events up to the end of the run, or to a call that waits for the user: the last one."""
        async with self._client as client:
            event = None
            async with aclosing(read(client)) as events:
                async for event in events:
                    self._run_id, self._seq = event.run_id, event.seq
                    self._show(event)
                    if isinstance(event, ToolCall) and (event.needs_approval or event.executor == "client"):
                        break
            return event

    async def _cancel(self) -> None:
        """Cancel the run and wait for its end: the session takes the next message then."""
        if not self._run_id:
            return  # Its id is not known: if the run has begun, the server cancels it after the grace period.
        async with self._client as client:
            with anyio.move_on_after(LAST_SECONDS):
                await client.cancel(self._run_id)
                async with aclosing(client.attach(self._run_id, self._seq)) as rest:
                    async for _ in rest:
                        pass

    def _show(self, event: Event) -> None:
        if isinstance(event, Start):
            self._request |= {"session_id": event.session_id}
        if self._as_json:
            print(to_json(event).decode(), flush=True)  # noqa: T201 - a program reads it
            return
        match event:
            case Token() | Reasoning():
                self._write(event)
            case ToolCall():
                args = _text(event.args)  # Whole where the user is going to approve them.
                self._tell(f"{event.tool} {args if event.needs_approval else _short(args)}")
            case ToolProgress():
                self._tell(" ".join(_short(each) for each in (event.message, event.progress, event.total) if each))
            case ToolResult():
                self._tell(f"{event.tool} = {_short(event.result)}", "red" if event.is_error else None)
            case Snapshot():  # After a crash: all that is kept of the answer, also what was shown.
                self._end_line()
                self._write(Token(content=text_of(event.parts)))
            case Done():
                click.echo()
                self._written = None
                if event.finish_reason != "stop":
                    self._tell(f"not whole: {event.finish_reason}", "red")
            case Error():
                self._tell(f"{event.code}: {event.message}", "red")

    def _write(self, text: Token | Reasoning) -> None:
        if self._written is not type(text):
            self._end_line()
            self._written = type(text)
        if isinstance(text, Token):
            click.echo(_CONTROLS.sub("", text.content), nl=False)
        else:
            click.secho(_CONTROLS.sub("", text.content), nl=False, err=True, dim=True)

    def _end_line(self) -> None:
        if self._written is not None:
            click.echo(err=True)
            self._written = None

    def _tell(self, line: str, color: str | None = None) -> None:
        """A line that is no part of the answer."""
        self._end_line()
        click.secho(one_line(line), err=True, fg=color, dim=color is None or None)

    def _resolve(self, call: ToolCall) -> None:
        """Have the user answer a call, until an answer fits. Where nobody can be asked, the answer is no."""
        while True:
            answer = _reply(call) if call.executor == "client" else {"approve": _agrees(f"Call {call.tool}?")}
            try:
                return anyio.run(self._answer, call.call_id, answer)
            except (Refused, Unreachable) as error:
                self._tell(str(error), "red")
                if isinstance(error, Refused) and error.status in FINAL:
                    return
                if not _is_attended():
                    raise
                sleep(RETRY_PAUSE_SECONDS)

    async def _answer(self, call_id: str, answer: dict[str, Any]) -> None:
        async with self._client as client:
            await client.answer(self._run_id, call_id, answer)


def _reply(call: ToolCall) -> dict[str, Any]:
    """The user's reply to a tool's question: a value for each field of its form."""
    if call.tool != QUESTION:
        return {"result": "this client runs no tools", "is_error": True}
    if not _agrees(f"{call.args['message']} Answer?"):
        return {"result": {"action": "decline"}}
    fields: dict[str, dict[str, Any]] = call.args["schema"].get("properties", {})
    given = {
        name: click.prompt(one_line(_label(name, field)), default="", show_default=False, err=True)
        for name, field in fields.items()
    }
    content = {name: _value(text, fields[name]) for name, text in given.items() if text}
    return {"result": {"action": "accept", "content": content}}


def _label(name: str, field: dict[str, Any]) -> str:
    choices = field.get("enum")
    return f"{field.get('title') or name}{f' {_short(choices)}' if choices else ''}"


def _value(text: str, field: dict[str, Any]) -> Any:
    if field.get("type") == "string":
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _is_attended() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _agrees(question: str) -> bool:
    return _is_attended() and click.confirm(one_line(question), err=True)


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _short(value: object) -> str:
    text = _text(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
