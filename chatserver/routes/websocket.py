"""The WebSocket endpoint: who comes in, and how a dialogue is ended."""

from contextlib import suppress

import anyio
from litestar import asgi

from chatserver.auth import Identity
from chatserver.errors import Draining, Unauthenticated, UpgradeRequired
from chatserver.transports.close_codes import GONE, Closing, closing_of
from chatserver.transports.components import Components
from chatserver.transports.connections import FLUSH_SECONDS, TRANSPORT, Receive, Scope, Send
from chatserver.transports.multiplexer import Multiplexer
from chatserver.transports.refusal import refusal_of, refuse

WEBSOCKET_PATH = "/chat/ws"
SUBPROTOCOL = "chatserver.v1"


@asgi(WEBSOCKET_PATH, copy_scope=False)
async def websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """The WebSocket endpoint: let the peer in or refuse the handshake, hold the dialogue, say goodbye."""
    if scope["type"] != "websocket":
        return await refuse(scope, send, UpgradeRequired())
    components: Components = scope["litestar_app"].state.components
    if components.runs.is_draining:
        return await refuse(scope, send, Draining())
    identity: Identity | Unauthenticated
    try:
        identity = await components.gate.identify(scope, by_ticket=True)
    except Unauthenticated as error:
        identity = error  # To be told behind the handshake: no browser shows how one was refused.
    except Exception as error:  # noqa: BLE001 - logged by `refusal_of`
        return await refuse(scope, send, refusal_of(error, "a handshake"))
    closing = await _held(identity, components, scope, receive, send)
    if closing is None or (not closing.is_cut and await _has_said_goodbye(send, closing)):
        return
    if transport := scope.get("extensions", {}).get(TRANSPORT):
        transport.abort()


async def _held(
    identity: Identity | Unauthenticated, components: Components, scope: Scope, receive: Receive, send: Send
) -> Closing | None:
    """Take the handshake and hold the dialogue; how it is to be closed, if the peer has not left.

    Nothing escapes from here: Litestar would close with 4500, which is no code of the protocol.
    """
    try:
        await receive()
        offered = SUBPROTOCOL in scope["subprotocols"]
        try:
            await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if offered else None, "headers": []})
        except OSError:
            return GONE
        if isinstance(identity, Unauthenticated):
            raise identity
        await components.requests.count(identity.user)
        async with await components.admissions.admit(identity.user):
            return await Multiplexer(identity, components, scope, send).run(receive)
    except Exception as error:  # noqa: BLE001 - logged by `refusal_of`
        return closing_of(refusal_of(error, "a WebSocket"))


async def _has_said_goodbye(send: Send, closing: Closing) -> bool:
    with anyio.move_on_after(FLUSH_SECONDS) as patience, suppress(OSError, RuntimeError):
        await send({"type": "websocket.close", "code": closing.code, "reason": closing.reason})
    return not patience.cancelled_caught
