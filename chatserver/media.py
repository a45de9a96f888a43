"""Media: what images and files a user's message may have. Nothing is ever fetched: an address goes on as it is."""

import re
from base64 import b64decode
from binascii import Error as NoBase64
from urllib.parse import urlsplit

from chatserver.content import is_text
from chatserver.errors import BadRequest, TooLarge
from chatserver.parts import FilePart, ImagePart, TextPart, UserParts, text_bytes

URL_CHARS_LIMIT = 2048
"""Of an address of an image or a file: more than servers and browsers take."""

FILE_NAME_CHARS_LIMIT = 256

BEGINNINGS: dict[str, re.Pattern[bytes]] = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "application/pdf": re.compile(rb"%PDF-"),
}
"""How the data of each media type begins. A picture that is a program, SVG, is none of them."""

_ADDRESS = re.compile(r"https?://[!-\[\]-~]+", re.IGNORECASE)  # Without `\`, which browsers take for `/`.
_TEXT = re.compile(r"text/[a-z0-9.+-]{1,64}|application/json")


def checked_parts(parts: UserParts, text_limit: int, inline_limit: int) -> None:
    """Refuse a message of these parts, where a rule of messages is broken.

    ``text_limit``: bytes of the texts in UTF-8 together; ``inline_limit``: bytes of the inline data together.

    Raises:
        BadRequest, TooLarge: a rule is broken.
    """
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    if len(texts) == len(parts) and not "".join(texts).strip():
        raise BadRequest("`message` is blank", "/message")
    if sum(map(text_bytes, texts)) > text_limit:
        raise TooLarge(f"the text of `message` is over {text_limit} bytes")
    media = [(f"/message/{place}", part) for place, part in enumerate(parts) if not isinstance(part, TextPart)]
    if sum(_decoded_bytes(part.data or "") for _, part in media) > inline_limit:
        raise TooLarge(f"the inline data of `message` is over {inline_limit} bytes")
    for pointer, part in media:
        _check(part, pointer)


def _decoded_bytes(data: str) -> int:
    """How many bytes base64 stands for, without decoding what may be too long."""
    return len(data) * 3 // 4 - data[-2:].count("=")


def _check(part: ImagePart | FilePart, pointer: str) -> None:
    if isinstance(part, FilePart):
        _check_name(part.name, f"{pointer}/name")
    if part.url is not None:
        if part.data is not None or part.media_type is not None:
            raise BadRequest("either `url`, or `data` with `media_type`", pointer)
        return _check_url(part.url, f"{pointer}/url")
    if part.data is None or part.media_type is None:
        raise BadRequest("either `url`, or `data` with `media_type`", pointer)
    kind = "image/" if isinstance(part, ImagePart) else ""
    is_known = part.media_type in BEGINNINGS or _TEXT.fullmatch(part.media_type)
    if not part.media_type.startswith(kind) or not is_known:
        raise BadRequest("`media_type` is none that is taken here", f"{pointer}/media_type")
    _check_data(part.data, part.media_type, f"{pointer}/data")


def _check_name(name: str, pointer: str) -> None:
    if not (name.strip() and len(name) <= FILE_NAME_CHARS_LIMIT and name.isprintable()):
        raise BadRequest(f"`name` is 1 to {FILE_NAME_CHARS_LIMIT} printable characters", pointer)


def _check_url(url: str, pointer: str) -> None:
    """An address of the web without a password. Who fetches it is the model server."""
    if len(url) > URL_CHARS_LIMIT:
        raise BadRequest(f"`url` is over {URL_CHARS_LIMIT} characters", pointer)
    try:
        address = urlsplit(url)
        is_good = bool(_ADDRESS.fullmatch(url) and address.hostname and address.port != 0 and "@" not in address.netloc)
    except ValueError:
        is_good = False
    if not is_good:
        raise BadRequest("`url` is an http or https address without user and password", pointer)


def _check_data(data: str, media_type: str, pointer: str) -> None:
    try:
        content = b64decode(data, validate=True)
    except NoBase64:
        raise BadRequest("`data` is base64, with its padding", pointer) from None
    if not content:
        raise BadRequest("`data` is empty", pointer)
    if is_text(media_type):
        try:
            content.decode()
        except UnicodeDecodeError:
            raise BadRequest("`data` is no text in UTF-8", pointer) from None
    elif not BEGINNINGS[media_type].match(content):
        raise BadRequest(f"`data` is no {media_type}", pointer)
