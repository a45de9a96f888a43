"""The result of an MCP server's tool, as JSON for the model and the user."""

from typing import Any

from mcp import types

from chatserver.tools.results import ToolFailed


def result_of(given: types.CallToolResult) -> Any:
    """A structured result as it is; texts alone as one text; else a list of what there is.

    Of images, sounds and files only kind and size are told: a model cannot read their Base64.

    Raises:
        ToolFailed: the tool has failed; the words are the tool's own.
    """
    texts = [each.text for each in given.content if isinstance(each, types.TextContent)]
    if given.is_error:
        raise ToolFailed("\n".join(texts) or "the tool has failed, and does not say why")
    if given.structured_content is not None:
        return given.structured_content
    if len(texts) == len(given.content):
        return "\n".join(texts)
    return [_told(each) for each in given.content]


def _told(block: types.ContentBlock) -> dict[str, Any]:
    match block:
        case types.TextContent(text=text):
            return {"type": "text", "text": text}
        case types.ImageContent(data=data, mime_type=kind) | types.AudioContent(data=data, mime_type=kind):
            return {"type": block.type, "mime_type": kind, "bytes": _size(data)}
        case types.ResourceLink(uri=uri, name=name, mime_type=kind):
            return {"type": "resource_link", "uri": uri, "name": name, "mime_type": kind}
        case types.EmbeddedResource(resource=resource):
            content = (
                {"text": resource.text}
                if isinstance(resource, types.TextResourceContents)
                else {"bytes": _size(resource.blob)}
            )
            return {"type": "resource", "uri": resource.uri, "mime_type": resource.mime_type} | content


def _size(base64: str) -> int:
    return len(base64) * 3 // 4 - base64[-2:].count("=")
