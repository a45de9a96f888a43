"""An agent without any model: it says what it was told, word by word. Start it with `python no_model.py`."""

import asyncio
from collections.abc import AsyncIterator

from chatserver import AgentContext, Dialogue, UserMessage, create_app, serve


async def agent(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[str]:
    yield f"{context.user} said:"
    match dialogue[-1]:
        case UserMessage() as asked:
            for word in asked.text.split():
                yield f" {word}"
                await asyncio.sleep(0.02)


app = create_app(agent=agent)
if __name__ == "__main__":
    serve(app)
