"""An agent of pydantic-ai, with a tool of its own. It reads `OPENAI_API_KEY` and `OPENAI_BASE_URL`."""

from collections.abc import AsyncIterator

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart
from pydantic_ai.models.openai import OpenAIChatModel

from chatserver import AgentContext, AssistantTurn, Dialogue, Usage, UserMessage, create_app, serve

assistant = Agent(OpenAIChatModel("gpt-4o-mini"), instructions="Be brief.", defer_model_check=True)


@assistant.tool_plain
def stock(fruit: str) -> int:
    """How many pieces of a fruit are in stock."""
    return {"apples": 12}.get(fruit, 0)


def history(dialogue: Dialogue) -> list[ModelMessage]:
    told: list[ModelMessage] = []
    for item in dialogue:
        if isinstance(item, UserMessage):
            told.append(ModelRequest.user_text_prompt(item.text))
        elif isinstance(item, AssistantTurn) and item.text:
            told.append(ModelResponse([TextPart(item.text)]))
    return told


async def agent(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[str | Usage]:
    async with assistant.run_stream(message_history=history(dialogue)) as answer:
        async for piece in answer.stream_text(delta=True, debounce_by=None):
            yield piece
        yield Usage(answer.usage.input_tokens, answer.usage.output_tokens)


app = create_app(agent=agent)
if __name__ == "__main__":
    serve(app)
