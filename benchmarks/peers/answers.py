"""An answer through the openai SDK as its documentation iterates one: shared by the peers on ASGI frameworks."""

from collections.abc import AsyncIterator
from typing import cast

import openai
from openai.types.chat import ChatCompletionMessageParam

from benchmarks.peers import words
from benchmarks.peers.words import Document

client = openai.AsyncOpenAI(max_retries=0)


async def said(messages: list[dict[str, str]]) -> AsyncIterator[str]:
    """The model's words, one by one."""
    asked = cast("list[ChatCompletionMessageParam]", messages)
    stream = await client.chat.completions.create(model="lab", messages=asked, stream=True)
    async with stream:
        async for chunk in stream:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                yield text


async def answer(request: Document) -> AsyncIterator[Document]:
    """The documents of one run."""
    run_id, seq = words.new_id(), 1
    session_id = request.get("session_id") or words.new_id()
    yield words.start(run_id, session_id)
    parts: list[str] = []
    async for text in said(words.remember(session_id, "user", request["message"])):
        seq += 1
        parts.append(text)
        yield words.token(run_id, seq, text)
    words.remember(session_id, "assistant", "".join(parts))
    yield words.done(run_id, seq + 1)
