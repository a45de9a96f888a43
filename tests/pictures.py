"""Images and files for tests: the smallest of each kind, and messages that have them."""

from base64 import b64decode, b64encode
from typing import Any

GIF = "R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="
"""One pixel, whole."""

BEGINNINGS = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff\xe0",
    "image/gif": b"GIF89a",
    "image/webp": b"RIFF\x00\x00\x00\nWEBP",
    "application/pdf": b"%PDF-1.7",
    "text/plain": "Grüße".encode(),
    "text/x-python": b"print()",
    "application/json": b"{}",
}


def based(content: bytes) -> str:
    return b64encode(content).decode()


def inline(media_type: str = "image/gif", size: int = 0) -> dict[str, Any]:
    """An image in the message, of about so many bytes."""
    content = b64decode(GIF) if media_type == "image/gif" else BEGINNINGS[media_type]
    return {"type": "image", "data": based(content.ljust(size, b"\0")), "media_type": media_type}


def attached(media_type: str = "application/pdf", name: str = "a.pdf", content: bytes | None = None) -> dict[str, Any]:
    """A file in the message."""
    data = based(BEGINNINGS[media_type] if content is None else content)
    return {"type": "file", "name": name, "data": data, "media_type": media_type}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def at(url: str, **fields: Any) -> dict[str, Any]:
    """An image at an address; a file if it has a name."""
    return {"type": "file" if "name" in fields else "image", "url": url} | fields


def told(part: dict[str, Any]) -> dict[str, Any]:
    """A part as Chat Completions has it."""
    url = part.get("url") or f"data:{part.get('media_type')};base64,{part.get('data')}"
    match part["type"]:
        case "image":
            return {"type": "image_url", "image_url": {"url": url}}
        case "file":
            return {"type": "file", "file": {"filename": part["name"], "file_data": url}}
        case _:
            return part


def shown(part: dict[str, Any]) -> dict[str, Any]:
    """A part as a session has it: with all its fields."""
    return part if part["type"] == "text" else {"url": None, "data": None, "media_type": None} | part
