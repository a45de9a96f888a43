"""Model servers through the openai SDK: it sends, authenticates and classifies; the bytes are read here."""

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import urlsplit

import anyio

from chatserver.providers import Finish, ModelRequest, OnDelta
from chatserver.providers.api import Api
from chatserver.providers.chat_completions.api import ChatCompletions
from chatserver.providers.client import OPENAI_URL, address, make_client
from chatserver.providers.faults import Fault, Kind, nonsense, silent, unreachable
from chatserver.providers.models import offered_beside
from chatserver.providers.parameters import Parameters
from chatserver.providers.refusals import refusal
from chatserver.providers.tries import Tries
from chatserver.providers.turn import Turn, close, finish_of
from chatserver.syntax import one_line
from chatserver.telemetry import TurnObserver

if TYPE_CHECKING:
    import httpx2
    import openai

logger = logging.getLogger(__name__)

SECRET_CHARS = 8
"""What is shorter is no key, and not worth to be hidden from the log."""

OPTIONS: Any = {
    "headers": {"Content-Type": "application/json", "Accept-Encoding": "identity"},
    "idempotency_key": "",  # No key is sent either way; left out, one is made up for each request all the same.
}
FRESH_OPTIONS: Any = OPTIONS | {"headers": OPTIONS["headers"] | {"Connection": "close"}}
"""The options of a request that gets a connection of its own."""


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
        self._api_key = api_key
        self._base_url = base_url
        self._headers = headers
        self._idle_seconds = idle_seconds
        self._host = urlsplit(base_url or OPENAI_URL).hostname
        self._api = api(is_foreign=self._host != urlsplit(OPENAI_URL).hostname)
        self._parameters = Parameters(self._api, frozenset(omitted))
        texts = [api_key or "", *(headers or {}).values()]
        self._secrets = [word for text in texts for word in text.split() if len(word) >= SECRET_CHARS]
        self._sdk: openai.AsyncOpenAI | None = None
        self._address = ""
        self._making = Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sdk is not None:
            await self._sdk.close()

    async def warm_up(self) -> None:
        """Import the SDK, about a second, in a thread, so that the first run does not wait for it."""
        try:
            await self._client()
        except Exception:
            logger.exception("no model server can be asked")

    async def _client(self) -> "openai.AsyncOpenAI":
        if self._sdk is None:
            return await anyio.to_thread.run_sync(self._made_client)
        return self._sdk

    def _made_client(self) -> "openai.AsyncOpenAI":
        with self._making:  # Two first runs may come together, where nobody has called `warm_up`.
            if self._sdk is None:
                sdk = make_client(
                    api_key=self._api_key,
                    base_url=self._base_url,
                    headers=self._headers,
                    idle_seconds=self._idle_seconds,
                )
                self._address = address(sdk, self._api.path)
                self._sdk = sdk
            return self._sdk

    async def stream(self, request: ModelRequest, on_delta: OnDelta) -> Finish:
        """One turn, tried again as long as nothing of the answer has come."""
        with request.observer.turn(request.model, self._host) as observer:
            finish = await self._turn(request, on_delta, observer)
            observer.finished(finish.reason, finish.usage)
            return finish

    async def _turn(self, request: ModelRequest, on_delta: OnDelta, observer: TurnObserver) -> Finish:
        maker = f"{self._api.name} {self._host} {request.model}"
        tries = Tries(request, self._parameters, self._secrets, maker)
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
            if names := await offered_beside(await self._client(), request.model):
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
        import openai

        client = await self._client()
        options = FRESH_OPTIONS if tries.is_fresh else OPTIONS
        if headers:
            options = options | {"headers": options["headers"] | headers}
        try:
            with anyio.fail_after(self._idle_seconds):
                response: httpx2.Response = await client.post(
                    self._address,
                    content=tries.body(),
                    cast_to=httpx2.Response,
                    options=options,
                    stream=True,
                    stream_cls=cast(Any, None),
                )
        except TimeoutError:
            raise silent(self._idle_seconds) from None
        except openai.APITimeoutError as error:
            if isinstance(error.__cause__, httpx2.ConnectTimeout):
                raise unreachable(error) from None
            raise silent(self._idle_seconds) from None
        except openai.APIConnectionError as error:
            raise unreachable(error) from None
        except openai.APIStatusError as error:
            raise refusal(error) from None
        if response.headers.get("content-type", "").strip().lower().startswith("text/html"):
            await close(response)
            message = "the model server answered with a web page: check OPENAI_BASE_URL, which often ends in /v1"
            raise nonsense("a web page", message)
        return response
