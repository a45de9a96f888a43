"""Models that take no images or no files: how they say so, and the dialogue without what they cannot see.

What the newest message shows is never left out: its run fails, in words. What older messages show is left out, so that
a session in which a picture was refused once, or that goes on with another model, can go on. Nothing is remembered: a
refusal comes before the first token, and a model of the same name may take images tomorrow.
"""

import re
from collections.abc import Set
from typing import Literal, TypeAlias

from chatserver.dialogue import Dialogue, Item, UserMessage
from chatserver.parts import FilePart, ImagePart, TextPart, UserPart, UserParts

Media: TypeAlias = Literal["images", "files"]

_NOUNS: dict[Media, re.Pattern[str]] = {
    "images": re.compile(r"image|vision|visual|multi-?modal|mmproj"),
    "files": re.compile(r"\bfiles?\b|input_file|pdf|document"),
}
_MEDIA = r"(image|vision|visual|multi-?modal|input_file|file|pdf|document)"
_REFUSED = re.compile(
    rf"\b{_MEDIA}\w*\b.{{0,60}}\b(not|n't|only)\b.{{0,20}}\b(support|enabled|available|implemented|accept|allow)"
    rf"|(not|n't|no endpoints found that) (\w+ ){{0,2}}(support|accept|take).{{0,40}}{_MEDIA}"
    rf"|not an? {_MEDIA}|at most 0 {_MEDIA}|missing data required for image|mmproj|text-only"
    r"|unknown variant `?(image|file|input_)|invalid type: sequence, expected a string"
    r"|variant of untagged enum \w*content"
    r"|content\b.{0,20}\bmust be a string|(unknown|unsupported|invalid) (content )?part type"
    r"|invalid value: '(image_url|file|input_image|input_file)'"
)
"""How OpenAI, vLLM, Ollama, llama.cpp, DeepSeek, Groq, Gemini, OpenRouter and their like say it."""

_BROKEN = re.compile(
    r"format|mime|media[_ ]type|dimension|resolution|too (large|big|small)|download|fetch|corrupt|decod"
)
"""Words about one image or file that is none, and not about all of them."""


def refused_in(words: str, dialogue: Dialogue) -> Set[Media]:
    """What of the dialogue its model does not take, as a refusal in these words says; none: it says another thing."""
    words = words.lower()
    shown = {kind for item in dialogue if isinstance(item, UserMessage) for kind in _kinds(item.parts)}
    if not shown or not _REFUSED.search(words) or _BROKEN.search(words):
        return set()
    named: set[Media] = {kind for kind, pattern in _NOUNS.items() if pattern.search(words)}
    return shown & (named or shown)


def newest_of(dialogue: Dialogue) -> Set[Media]:
    """What the newest message of the user shows."""
    newest = dialogue[_newest(dialogue)]
    return _kinds(newest.content) if isinstance(newest, UserMessage) and not isinstance(newest.content, str) else set()


def without(dialogue: Dialogue, kinds: Set[Media]) -> Dialogue:
    """The dialogue with a sentence in place of each image or file of older messages."""
    newest = _newest(dialogue)
    return [_blind(item, kinds, is_newest=place == newest) for place, item in enumerate(dialogue)]


def _newest(dialogue: Dialogue) -> int:
    return max((place for place, item in enumerate(dialogue) if isinstance(item, UserMessage)), default=-1)


def _kinds(parts: UserParts) -> set[Media]:
    return {"images" if isinstance(part, ImagePart) else "files" for part in parts if not isinstance(part, TextPart)}


def _blind(item: Item, kinds: Set[Media], *, is_newest: bool) -> Item:
    if not isinstance(item, UserMessage) or not item.has_media:
        return item
    earlier = tuple([_unseen(part, kinds) for part in item.earlier])
    content = item.content
    if not is_newest and not isinstance(content, str):
        content = tuple([_unseen(part, kinds) for part in content])
    blind = UserMessage(content, earlier)
    if _kinds(blind.parts):
        return blind
    # One text, not a list of texts: there are servers that take nothing else.
    return UserMessage("\n\n".join([part.text for part in blind.parts if isinstance(part, TextPart) and part.text]))


def _unseen(part: UserPart, kinds: Set[Media]) -> UserPart:
    if isinstance(part, ImagePart) and "images" in kinds:
        return TextPart("[An image was here that you cannot see.]")
    if isinstance(part, FilePart) and "files" in kinds:
        return TextPart(f"[The file {part.name} was here, which you cannot read.]")
    return part
