"""The SDK's client: whom it asks, with which key, and that it asks nobody else."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from chatserver.errors import UpstreamError
from chatserver.providers.refusals import read_refusal
from chatserver.syntax import address_of

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
DEMO_URL = "http://demo.invalid/v1"
"""The address of the demo model. Nobody else can have it: the domain `.invalid` is reserved (RFC 2606)."""

UPSTREAM_CONNECT_SECONDS = 5.0


def make_client(
    *, api_key: str | None, base_url: str | None, idle_seconds: float, headers: Mapping[str, str] | None = None
) -> "openai.AsyncOpenAI":
    """A client whose requests, redirected ones too, all go to the origin of ``base_url`` (None: OpenAI).

    ``headers`` go with each of them and win over the SDK's own, the key's too.

    Raises:
        ValueError, httpx2.InvalidURL: an address, of the model server or of a proxy, is none.
    """
    import httpx2
    import openai

    from chatserver.providers.demo_transport import DemoTransport
    from chatserver.upstream.transport import HttpClient

    # An empty variable is an unset one; the SDK would send it.
    unset: dict[str, Any] = {"OpenAI-Organization": openai.omit, "OpenAI-Project": openai.omit}
    origin = httpx2.URL(base_url or OPENAI_URL).origin

    async def stay(request: httpx2.Request) -> None:
        """Hook of the HTTP client, called before each request: also before the one that a redirect asks for."""
        if request.url.origin != origin:
            where = request.url.origin
            target = f"{where.scheme}://{where.host}:{where.port}"
            logger.warning("the model server redirects to %.300s, which is not followed", target)
            raise UpstreamError(
                "llm_error", "the model server redirects to another one: OPENAI_BASE_URL must name that one itself"
            )

    return openai.AsyncOpenAI(
        api_key=api_key or "none",  # The SDK insists; a local server does not look at it.
        base_url=base_url or OPENAI_URL,  # Named here, or the SDK would read the environment by itself.
        default_headers={**unset, **(headers or {})},
        max_retries=0,
        timeout=httpx2.Timeout(idle_seconds, connect=min(UPSTREAM_CONNECT_SECONDS, idle_seconds)),
        http_client=HttpClient(
            has_tls=origin.scheme == "https",
            follow_redirects=True,
            event_hooks={"request": [stay], "response": [read_refusal]},
            trust_env=base_url != DEMO_URL and not _is_local(base_url),  # No proxy leads to this very machine.
            transport=DemoTransport() if base_url == DEMO_URL else None,
        ),
    )


def address(client: "openai.AsyncOpenAI", path: str) -> str:
    """Where a path of the API is, below the client's base, as the SDK joins them.

    It is absolute, since the SDK joins a path to its base anew for each request. A query of the base stays behind the
    path; the SDK would put the path behind the query.
    """
    folder, mark, query = client.base_url.raw_path.partition(b"?")
    return str(client.base_url.copy_with(raw_path=folder + path.encode() + mark + query))


def _is_local(url: str | None) -> bool:
    host = urlsplit(url or "").hostname or ""
    if (ip := address_of(host)) is not None:
        return ip.is_loopback
    return host == "localhost" or host.endswith(".localhost")
