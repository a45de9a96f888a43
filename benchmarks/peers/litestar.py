"""Litestar's own ``ServerSentEvent`` and ``send_websocket_stream``."""

import sys
from collections.abc import AsyncGenerator
from typing import Any

import uvicorn
from litestar import Litestar, WebSocket, get, post, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.handlers import send_websocket_stream
from litestar.response import ServerSentEvent, ServerSentEventMessage
from litestar.serialization import encode_json

from benchmarks.peers.answers import answer
from benchmarks.peers.words import Document


@get("/livez")
async def livez() -> Document:
    return {"status": "ok"}


@post("/chat/stream", status_code=200)
async def stream(data: dict[str, Any]) -> ServerSentEvent:
    async def events() -> AsyncGenerator[ServerSentEventMessage, None]:
        async for document in answer(data):
            yield ServerSentEventMessage(data=encode_json(document), event=document["type"], id=document["seq"])

    return ServerSentEvent(events())


@websocket("/chat/ws")
async def chat(socket: WebSocket[Any, Any, Any]) -> None:
    async def documents(asked: Document) -> AsyncGenerator[bytes, None]:
        async for document in answer(asked):
            yield encode_json(document)

    offered = socket.scope["subprotocols"]
    await socket.accept(subprotocols=offered[0] if offered else None)
    try:
        while True:
            await send_websocket_stream(socket, documents(await socket.receive_json()), close=False)
    except WebSocketDisconnect:
        pass


app = Litestar([livez, stream, chat])

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", backlog=4096)
