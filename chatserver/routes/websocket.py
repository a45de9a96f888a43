"""The WebSocket endpoint: who comes in, and what a dialogue is begun with."""

from functools import partial

from litestar import asgi

from chatserver.auth import Identity
from chatserver.errors import Draining, Unauthenticated, UpgradeRequired
from chatserver.routes.http import OPEN_WHILE_DRAINING, PUBLIC
from chatserver.telemetry import carrier_of
from chatserver.transports.admission import Admission
from chatserver.transports.asgi import AsgiReceive, AsgiScope, AsgiSend
from chatserver.transports.close_codes import closing_of
from chatserver.transports.components import Components
from chatserver.transports.multiplexer import Multiplexer
from chatserver.transports.peer import SocketPeer, with_socket
from chatserver.transports.refusal import refusal_of, refuse

WEBSOCKET_PATH = "/chat/ws"
SUBPROTOCOL = "chatserver.v1"


@asgi(WEBSOCKET_PATH, opt={OPEN_WHILE_DRAINING: True, PUBLIC: True}, copy_scope=False)
async def websocket(scope: AsgiScope, receive: AsgiReceive, send: AsgiSend) -> None:
    """The WebSocket endpoint: let the peer in or refuse the handshake, and begin the dialogue."""
    components: Components = scope["litestar_app"].state["components"]
    if scope["type"] != "websocket":
        return await refuse(scope, send, UpgradeRequired(), components.metrics)
    if components.runs.is_draining:
        return await refuse(scope, send, Draining(), components.metrics)
    identity: Identity | Unauthenticated
    try:
        identity = await components.gate.identify(scope, by_ticket=True)
    except Unauthenticated as error:
        identity = error  # To be told behind the handshake: no browser shows how one was refused.
    except Exception as error:  # noqa: BLE001 - logged by `refusal_of`
        return await refuse(scope, send, refusal_of(error, "a handshake"), components.metrics)
    await receive()
    offered = SUBPROTOCOL in scope["subprotocols"]
    try:
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if offered else None, "headers": []})
    except OSError:
        return  # It has left.

    try:
        if isinstance(identity, Unauthenticated):
            raise identity
        admission = await components.admissions.admit(identity.user)
    except Exception as error:  # noqa: BLE001 - logged by `refusal_of`
        refusal = refusal_of(error, "a WebSocket")
        components.metrics.refused(refusal.code)
        closing = closing_of(refusal)
        return await send({"type": "websocket.close", "code": closing.code, "reason": closing.reason})
    # Nothing is awaited before the dialogue has the admission: no cancellation could come between.
    begin = partial(_begin, components, identity, admission, scope)
    await with_socket(scope, receive, send, components.settings.max_frame_bytes, begin)


def _begin(
    components: Components, identity: Identity, admission: Admission, scope: AsgiScope, peer: SocketPeer
) -> None:
    """Nothing escapes from here: Litestar would close with 4500, which is no code of the protocol."""
    try:
        Multiplexer(peer, identity, components, admission, carrier_of(scope["headers"]))
    except Exception as error:  # noqa: BLE001 - logged by `refusal_of`
        components.connections.release(admission)
        closing = closing_of(refusal_of(error, "a WebSocket"))
        peer.close(closing.code, closing.reason)
