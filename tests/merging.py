"""Merged events, as a reader may be sent them, against the events that they stand for."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

_parsed = lru_cache(maxsize=2**17)(json.loads)


def first_seq_of(document: bytes) -> int:
    """The number of the first event that a document stands for."""
    event = _parsed(document)
    return int(event.get("first_seq", event["seq"]))


def seq_of(document: bytes) -> int:
    return int(_parsed(document)["seq"])


def numbers_of(document: bytes) -> range:
    """Of the events that a document stands for."""
    return range(first_seq_of(document), seq_of(document) + 1)


def unmerged(documents: Sequence[bytes], whole: Sequence[bytes]) -> list[bytes]:
    """The documents, with those of a run whose ``whole`` log is known in place of each merged one, which must fit."""
    found = list[bytes]()
    for each in documents:
        event: dict[str, Any] = _parsed(each)
        first, last = event.get("first_seq"), event["seq"]
        if first is None or last > len(whole):
            found.append(each)
            continue
        assert first < last, f"merged of one: {each!r}"
        parts = [_parsed(part) for part in whole[first - 1 : last]]
        assert {part["type"] for part in parts} == {event["type"]}, f"{each!r} stands for {parts}"
        assert "".join([part["content"] for part in parts]) == event["content"], f"{each!r} stands for {parts}"
        found += whole[first - 1 : last]
    return found
