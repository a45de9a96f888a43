"""Compaction: a finished run's log as it is stored, a snapshot in place of as many events as one event can hold."""

from chatserver.answer import Answer, fold
from chatserver.events import EVENT_BYTES_LIMIT, Record, decode, record

_TEXT_DOCUMENT = b'{"type":"%b","run_id":"%b","seq":%d,"content":""}'
_NEW_PART = b'{"type":"%b","text":""},'
_NO_RESULT = b',"result":null,"is_error":null,"truncated":null,"duration_ms":null,'
"""What a call without a result has in a snapshot beyond its event."""


def compact(records: list[Record], run_id: str, whole: Answer | None = None) -> list[Record]:
    """The records with their oldest ones replaced by one snapshot, which takes the ``seq`` of the last it replaces.

    A terminal record stays as it is, and so does all that would make the snapshot larger than one event may be: a
    cursor behind the snapshot's ``seq`` still finds every event that follows it.
    ``whole`` is the fold of all records, for who knows it: to decode them again costs as much as to make them.
    """
    last_seq = records[-1].seq if records else 0
    end, room = 0, EVENT_BYTES_LIMIT - len(record(Answer().snapshot(run_id, last_seq)).data) + len(",")
    kind = ""
    for each in records:
        room -= _bytes_in_snapshot(each, run_id, kind)
        kind = each.type if each.type in ("token", "reasoning", "tool_call") else kind
        if room < 0 or each.is_terminal:
            break
        end += 1
    if end < 2:
        return records
    is_all = all(each.is_terminal for each in records[end:])
    answer = whole if whole and is_all else fold(decode(each.data) for each in records[:end])
    return [record(answer.snapshot(run_id, records[end - 1].seq)), *records[end:]]


def _bytes_in_snapshot(each: Record, run_id: str, kind: str) -> int:
    """What a record adds at most to a snapshot whose last part is of a ``kind``; of text it is exactly that."""
    match each.type:
        case "token" | "reasoning":
            size = len(each.data) - len(_TEXT_DOCUMENT % (each.type.encode(), run_id.encode(), each.seq))
            is_new = each.type != kind
            return size + is_new * len(_NEW_PART % (b"text" if each.type == "token" else b"reasoning"))
        case "tool_call":
            return len(each.data) + len(_NO_RESULT)
        case "start":
            return 0
    return len(each.data)
