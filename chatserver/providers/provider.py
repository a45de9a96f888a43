"""The turns of a model server: asked, tried again, and read to their ends."""

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import anyio
from msgspec.structs import replace

from chatserver.dialogue import told_to
from chatserver.providers import Finish, ModelRequest, OnDelta
from chatserver.providers.api import Api
from chatserver.providers.chat_completions.api import ChatCompletions
from chatserver.providers.client import OPENAI_URL, ModelServer, shown
from chatserver.providers.faults import Fault, Kind, nonsense, silent, unreachable
from chatserver.providers.models import offered_beside
from chatserver.providers.parameters import Parameters
from chatserver.providers.tries import Tries
from chatserver.providers.turn import Turn, close, encoding_of, finish_of
from chatserver.syntax import one_line
from chatserver.telemetry import TurnObserver
from chatserver.upstream.encodings import is_known

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

SECRET_CHARS = 8
"""What is shorter is no key, and not worth to be hidden from the log."""

FRESH = {"Connection": "close"}
"""The header of a request that gets a connection of its own."""


class OpenAIProvider:
    """A ``Provider`` for any OpenAI-compatible server. Enter it before use; leaving closes all connections."""

    def __init__(
        self,
        *,
        api_key: str | None,
        base_url: str | None,
        idle_seconds: float,
        headers: Mapping[str, str] | None = None,
        omitted: Collection[str] = (),
        api: type[Api] = ChatCompletions,
    ) -> None:
        """``headers`` go with each request; ``omitted`` parameters with none, see ``Parameters``."""
        self._make = partial(
            ModelServer, api_key=api_key, base_url=base_url, headers=headers, idle_seconds=idle_seconds
        )
        self._idle_seconds = idle_seconds
        self._host = urlsplit(base_url or OPENAI_URL).hostname
        self._address = shown(base_url or OPENAI_URL)
        self._api = api(is_foreign=self._host != urlsplit(OPENAI_URL).hostname)
        self._parameters = Parameters(self._api, frozenset(omitted))
        texts = [api_key or "", *(headers or {}).values()]
        self._secrets = [word for text in texts for word in text.split() if len(word) >= SECRET_CHARS]
        self._known: ModelServer | None = None
        self._making = Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._known is not None:
            await self._known.close()

    async def warm_up(self) -> None:
        """Import the SDK, about a second, in a thread, so that the first run does not wait for it."""
        try:
            await self._server()
        except Exception:
            logger.exception("no model server can be asked")

    async def _server(self) -> ModelServer:
        if self._known is not None:
            return self._known
        return await anyio.to_thread.run_sync(self._made_server)

    def _made_server(self) -> ModelServer:
        with self._making:  # Two first runs may come together, where nobody has called `warm_up`.
            if self._known is None:
                self._known = self._make()
            return self._known

    async def stream(self, request: ModelRequest, on_delta: OnDelta) -> Finish:
        """One turn, tried again as long as nothing of the answer has come."""
        with request.observer.turn(request.model, self._host) as observer:
            finish = await self._turn(request, on_delta, observer)
            observer.finished(finish.reason, finish.usage)
            return finish

    async def _turn(self, request: ModelRequest, on_delta: OnDelta, observer: TurnObserver) -> Finish:
        maker = f"{self._api.name} {self._address} {request.model}"
        request = replace(request, messages=told_to(maker, request.messages))
        tries = Tries(request, self._parameters, self._secrets)
        while True:
            turn = Turn(self._api.decoder(on_delta, maker), self._idle_seconds)
            observer.asked()
            try:
                finish = await finish_of(await self._open(tries, observer.headers), turn)
            except Fault as fault:
                delay, failure = tries.failed(fault, turn.has_begun), fault
                observer.failed(fault.error.code, is_retried=delay is not None)
            else:
                tries.succeeded()
                return finish
            finally:
                observer.streamed(turn.pace)
            if failure.kind is Kind.FILTERED:
                return Finish("content_filter", None)
            if delay is None:
                if failure.kind is Kind.NO_MODEL:
                    await self._name_models(failure, request)
                raise failure.error
            await anyio.sleep(delay)

    async def _name_models(self, failure: Fault, request: ModelRequest) -> None:
        """Add to a failure which models the server offers in place of the one that it has not got, if it tells."""
        with suppress(Exception):  # The failure itself says what is wrong.
            if names := await offered_beside(await self._server(), request.model):
                failure.error.message += f"; the server offers {names}"
                logger.warning(
                    "run %s: the model server has no %s; CHATSERVER_MODEL may be one of %s",
                    request.run_id,
                    one_line(request.model),
                    names,
                )

    async def _open(self, tries: Tries, headers: Mapping[str, str]) -> "httpx2.Response":
        """Send the request, with further headers, and wait for the head of a stream."""
        import httpx2

        server = await self._server()
        if tries.is_fresh:
            headers = {**headers, **FRESH}
        response = None
        try:
            with anyio.move_on_after(self._idle_seconds):
                response = await server.ask(self._api.path, tries.body(), headers)
        except httpx2.ConnectTimeout as error:
            raise unreachable(error) from None
        except httpx2.TimeoutException:
            raise silent(self._idle_seconds) from None
        except httpx2.HTTPError as error:
            raise unreachable(error) from None
        if response is None:
            raise silent(self._idle_seconds)
        if response.headers.get("content-type", "").strip().lower().startswith("text/html"):
            await close(response)
            message = "the model server answered with a web page: check OPENAI_BASE_URL, which often ends in /v1"
            raise nonsense("a web page", message)
        if (encoding := encoding_of(response)) and not is_known(encoding):
            await close(response)
            message = (
                f"the model server compresses its answers as {one_line(encoding)[:40]}, which it was not asked to do"
            )
            raise nonsense("an encoding that is not read here", message)
        return response
