"""The way to the demo model: it is asked as any model server, but within this process."""

import httpx2
import msgspec

from chatserver.providers.demo import CompletionRequest, Refusal, completion


class DemoTransport(httpx2.AsyncBaseTransport):
    """Answers each request with the demo model's Chat Completions."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        said = completion(msgspec.json.decode(await request.aread(), type=CompletionRequest))
        if isinstance(said, Refusal):
            return httpx2.Response(said.status, headers=said.headers, json=said.body)
        return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, content=said)
