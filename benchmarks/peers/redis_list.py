"""What is usually built for several servers: each token goes into a Redis list and out through a channel of its run."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from redis.asyncio import Redis
from sse_starlette import EventSourceResponse

from benchmarks.peers import words
from benchmarks.peers.answers import answer
from benchmarks.peers.words import Document

app = FastAPI()
redis = Redis.from_url(os.environ["CHATSERVER_REDIS_URL"])
writing = set[asyncio.Task[None]]()


async def write(key: str, asked: Document) -> None:
    """Answer into the list and the channel of a run, with a round trip for each event."""
    async for document in answer(asked):
        data = json.dumps(document)
        pipeline: Any = redis.pipeline(transaction=False)
        await pipeline.rpush(key, data).expire(key, 300).publish(key, data).execute()


async def read(key: str) -> AsyncIterator[Document]:
    """What is in the list, then what comes through the channel; from whichever server."""
    async with redis.pubsub(ignore_subscribe_messages=True) as channel:
        await channel.subscribe(key)
        last = 0
        for data in await redis.lrange(key, 0, -1):
            last = json.loads(data)["seq"]
            yield json.loads(data)
        while True:
            message = await channel.get_message(timeout=None)
            if message is None:
                continue
            document: Document = json.loads(message["data"])
            if document["seq"] > last:
                last = document["seq"]
                yield document
                if document["type"] == "done":
                    return


@app.get("/livez")
async def livez() -> Document:
    return {"status": "ok"}


@app.post("/chat/stream")
async def stream(request: Request) -> EventSourceResponse:
    asked, key = await request.json(), words.new_id()

    async def events() -> AsyncIterator[dict[str, str]]:
        task = asyncio.create_task(write(key, asked))
        writing.add(task)
        task.add_done_callback(writing.discard)
        async for document in read(key):
            yield {"id": str(document["seq"]), "event": document["type"], "data": json.dumps(document)}

    return EventSourceResponse(events())


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", backlog=4096)
