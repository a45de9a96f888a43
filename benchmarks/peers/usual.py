"""The usual stack: FastAPI, sse-starlette and the openai SDK; and the same over FastAPI's WebSocket."""

import json
import sys
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from sse_starlette import EventSourceResponse

from benchmarks.peers.answers import answer
from benchmarks.peers.words import Document

app = FastAPI()


@app.get("/livez")
async def livez() -> Document:
    return {"status": "ok"}


@app.post("/chat/stream")
async def stream(request: Request) -> EventSourceResponse:
    asked = await request.json()

    async def events() -> AsyncIterator[dict[str, str]]:
        async for document in answer(asked):
            yield {"id": str(document["seq"]), "event": document["type"], "data": json.dumps(document)}

    return EventSourceResponse(events(), ping=int(sys.argv[2]))


@app.websocket("/chat/ws")
async def chat(socket: WebSocket) -> None:
    offered: list[str] = socket.scope["subprotocols"]
    await socket.accept(subprotocol=offered[0] if offered else None)
    try:
        while True:
            asked = await socket.receive_json()
            async for document in answer(asked):
                await socket.send_json(document)
    except WebSocketDisconnect:
        pass


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", backlog=4096)
