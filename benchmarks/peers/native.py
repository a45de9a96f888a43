"""FastAPI's native Server-Sent Events."""

import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import Body, FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent

from benchmarks.peers.answers import answer
from benchmarks.peers.words import Document

app = FastAPI()


@app.get("/livez")
async def livez() -> Document:
    return {"status": "ok"}


@app.post("/chat/stream", response_class=EventSourceResponse)
async def stream(asked: dict[str, Any] = Body()) -> AsyncIterator[ServerSentEvent]:  # noqa: B008 - as FastAPI has it
    async for document in answer(asked):
        yield ServerSentEvent(data=document, event=document["type"], id=str(document["seq"]))


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", backlog=4096)
