"""Tools that a client declares in its request, and runs itself: the rules of their declaration."""

from collections.abc import Container

import msgspec

from chatserver.commands import ChatRequest, is_id
from chatserver.dialogue import QUESTION, RESERVED
from chatserver.errors import BadRequest, TooLarge

CLIENT_TOOLS_LIMIT = 32
"""How many tools of its own a client may have in a run: as many as of a turn are called."""

CLIENT_TOOLS_BYTES_LIMIT = 64 * 1024
"""All tools of a client as JSON; the model is told of them in each turn."""


def checked_client_tools(request: ChatRequest, taken: Container[str]) -> ChatRequest:
    """The request, with the rules of its ``tools`` held, but for those of schemas; ``taken`` has the server's names.

    Raises:
        BadRequest, TooLarge: a rule is broken.
    """
    tools, names = request.tools or (), set[str]()
    if len(tools) > CLIENT_TOOLS_LIMIT:
        raise BadRequest(f"at most {CLIENT_TOOLS_LIMIT} `tools`", "/tools")
    if tools and len(msgspec.json.encode(tools)) > CLIENT_TOOLS_BYTES_LIMIT:
        raise TooLarge(f"`tools` are over {CLIENT_TOOLS_BYTES_LIMIT} bytes")
    for place, each in enumerate(tools):
        if not is_id(each.name) or each.name in names:
            raise BadRequest("`name` is an id that no other of the `tools` has", f"/tools/{place}/name")
        if each.name == QUESTION:
            raise BadRequest(RESERVED, f"/tools/{place}/name")
        if each.name in taken:
            raise BadRequest("the server has a tool of this name", f"/tools/{place}/name")
        if each.parameters.get("type") != "object":
            raise BadRequest("`parameters` is the JSON Schema of an object", f"/tools/{place}/parameters")
        names.add(each.name)
    return request
