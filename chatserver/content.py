"""Content: what a user said, as a model is told of it: which part is text, how much each counts, where each is."""

from base64 import b64decode
from collections.abc import Sequence

from chatserver.parts import (
    AnyPart,
    FilePart,
    ImagePart,
    TextPart,
    UserPart,
    UserParts,
    is_user_part,
    text_bytes,
    text_of,
)

IMAGE_BYTES = 4 * 1024
FILE_BYTES = 16 * 1024
"""What an image, and a file that is no text, count as: 1,024 and 4,096 tokens. Models take 250 to 1,600 an image."""

INLINE_SHARE = 32
"""So many characters of inline data count as one byte more: what goes upstream at once stays small enough to hold."""


_TEXT_ALONE = {TextPart}


def told_content(parts: Sequence[AnyPart]) -> str | UserParts:
    """What a user said, as it is told. The text of a file is told as text, since every model can read that."""
    if set(map(type, parts)) <= _TEXT_ALONE:  # Most messages, in half the time.
        return text_of(parts)
    told = tuple([_as_text_part(each) for each in parts if is_user_part(each)])
    return text_of(told) if set(map(type, told)) <= _TEXT_ALONE else told


def _as_text_part(part: UserPart) -> UserPart:
    if isinstance(part, FilePart) and is_text_file(part):
        return TextPart(f"\n\n{part.name}:\n\n{b64decode(part.data or '').decode()}\n\n")
    return part


def part_bytes(part: UserPart) -> int:
    """About how many bytes a part counts as: those of a text, also of a text in a file; of images, an estimate."""
    match part:
        case TextPart():
            return text_bytes(part.text)
        case FilePart() if is_text_file(part):
            return text_bytes(part.name) + len(part.data or "") * 3 // 4
        case _:
            own = IMAGE_BYTES if isinstance(part, ImagePart) else FILE_BYTES
            return own + len(part.data or "") // INLINE_SHARE


def is_text_file(part: UserPart) -> bool:
    """Whether the part is a file whose text is there: any model can read it."""
    return isinstance(part, FilePart) and part.data is not None and is_text(part.media_type or "")


def is_text(media_type: str) -> bool:
    return media_type.startswith("text/") or media_type == "application/json"


def data_url(part: ImagePart | FilePart) -> str:
    """Where an image or a file is: at its address, or in the URL itself (RFC 2397)."""
    return part.url or f"data:{part.media_type};base64,{part.data}"
