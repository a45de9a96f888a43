"""Whom the model's requests go to, with which key, and that they go to nobody else."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from chatserver.errors import UpstreamError
from chatserver.providers.refusals import read_refusal
from chatserver.syntax import address_of

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
DEMO_URL = "http://demo.invalid/v1"
"""The address of the demo model. Nobody else can have it: the domain `.invalid` is reserved (RFC 2606)."""

UPSTREAM_CONNECT_SECONDS = 5.0

REDIRECTS_LIMIT = 3
"""As many may be needed for a slash, a version and a region; more of them go in a circle."""

UNSET = "OpenAI-Organization", "OpenAI-Project", "X-Stainless-Async"
"""Headers that the SDK would send by itself."""


class ModelServer:
    """A model server: its address, what each request says of the sender, and the connections.

    Address and headers are those of the openai SDK. The requests are sent here: the SDK takes five times as much CPU
    for one (`python -m benchmarks.libraries`).
    """

    def __init__(
        self,
        *,
        api_key: str | None,
        base_url: str | None,
        idle_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``base_url`` None: OpenAI. All requests, redirected ones too, go to its origin.

        ``headers`` go with each of them and win over the SDK's own, the key's too.

        Raises:
            ValueError, httpx2.InvalidURL: an address, of the model server or of a proxy, is none.
        """
        import httpx2
        import openai

        from chatserver.providers.demo_transport import DemoTransport
        from chatserver.upstream.transport import HttpClient

        origin = httpx2.URL(base_url or OPENAI_URL).origin
        self._client = HttpClient(
            has_tls=origin.scheme == "https",
            follow_redirects=True,
            max_redirects=REDIRECTS_LIMIT,
            event_hooks={"request": [_at_home(origin)], "response": [read_refusal]},
            trust_env=base_url != DEMO_URL and not _is_local(base_url),  # No proxy leads to this very machine.
            transport=DemoTransport() if base_url == DEMO_URL else None,
        )
        sdk = openai.AsyncOpenAI(
            api_key=api_key or "none",  # The SDK insists; a local server does not look at it.
            base_url=base_url or OPENAI_URL,  # Named here, or the SDK would read the environment by itself.
            # An empty variable is an unset one; the SDK would send it. Nobody needs to know our event loop.
            default_headers={**dict.fromkeys(UNSET, cast(Any, openai.omit)), **(headers or {})},
            http_client=self._client,
        )
        self._base = sdk.base_url
        self._headers = httpx2.Headers({"Host": self._base.netloc.decode("ascii"), "Accept-Encoding": "identity"})
        for name, value in (*sdk.auth_headers.items(), *sdk.default_headers.items()):
            if isinstance(value, str):
                self._headers[name] = value
            else:
                self._headers.pop(name, None)
        timeout = httpx2.Timeout(idle_seconds, connect=min(UPSTREAM_CONNECT_SECONDS, idle_seconds))
        self._extensions = {"timeout": timeout.as_dict()}
        self._addresses: dict[str, httpx2.URL] = {}

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def ask(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> "httpx2.Response":
        """Send a request, with further headers, and wait for the head of its response; without a body it is a GET.

        Raises:
            Fault: the server refuses.
            UpstreamError: the server redirects to another one, or in a circle.
            httpx2.HTTPError: there is no response.
        """
        import httpx2

        method, url = "GET" if body is None else "POST", self.address(path)
        # Not built by the client, which would merge its own headers and parameters with those of the request. And not
        # with the body as `content`: the request would then encode all headers anew.
        request = httpx2.Request(
            method,
            url,
            stream=httpx2.ByteStream(body or b""),
            headers=self._headers,
            cookies=self._client.cookies,
            extensions=self._extensions,
        )
        if headers:
            request.headers.update(headers)
        if body is not None:
            request.headers["Content-Length"] = str(len(body))
        try:
            return await self._client.send(request, stream=True)
        except httpx2.TooManyRedirects:
            message = f"the model server redirects over {REDIRECTS_LIMIT} times: check OPENAI_BASE_URL"
            logger.warning("%s", message)
            raise UpstreamError("llm_error", message) from None

    def address(self, path: str) -> "httpx2.URL":
        """Where a path of the API is, below the base. A query of the base stays behind the path.

        The SDK joins them in the same way, but would put the path behind the query.
        """
        if (known := self._addresses.get(path)) is not None:
            return known
        folder, mark, query = self._base.raw_path.partition(b"?")
        self._addresses[path] = found = self._base.copy_with(raw_path=folder + path.encode() + mark + query)
        return found


def _at_home(origin: "httpx2.Origin") -> Callable[["httpx2.Request"], Awaitable[None]]:
    """A hook of the HTTP client, called before each request: also before the one that a redirect asks for."""

    async def stay(request: "httpx2.Request") -> None:
        if request.url.origin != origin:
            where = request.url.origin
            target = f"{where.scheme}://{where.host}:{where.port}"
            logger.warning("the model server redirects to %.300s, which is not followed", target)
            raise UpstreamError(
                "llm_error", "the model server redirects to another one: OPENAI_BASE_URL must name that one itself"
            )

    return stay


def _is_local(url: str | None) -> bool:
    host = urlsplit(url or "").hostname or ""
    if (ip := address_of(host)) is not None:
        return ip.is_loopback
    return host == "localhost" or host.endswith(".localhost")


def shown(url: str) -> str:
    """The address of a model server, without credentials and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}{parts.path.rstrip('/')}"
