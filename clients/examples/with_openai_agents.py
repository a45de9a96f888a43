"""An agent of the OpenAI Agents SDK with the server's tools. It reads `OPENAI_API_KEY` and `OPENAI_BASE_URL`."""

import json
from collections.abc import AsyncIterator

from agents import Agent, FunctionTool, ModelSettings, Runner, set_default_openai_api, set_tracing_disabled

from chatserver import AgentContext, AssistantTurn, Dialogue, ToolSpecification, Usage, UserMessage, create_app, serve

set_tracing_disabled(True)  # Otherwise the SDK sends what users write to OpenAI, whoever serves the model.
set_default_openai_api("chat_completions")
assistant = Agent("assistant", model="gpt-4o-mini", model_settings=ModelSettings(include_usage=True))


def function(tool: ToolSpecification, context: AgentContext) -> FunctionTool:
    async def call(_: object, args: str) -> str:
        return json.dumps(await context.call(tool.name, json.loads(args)), ensure_ascii=False)

    return FunctionTool(tool.name, tool.description, tool.parameters, call, strict_json_schema=False)


async def agent(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[str | Usage]:
    said = [each for each in dialogue if isinstance(each, UserMessage | AssistantTurn) and each.text]
    told = [{"role": "user" if isinstance(each, UserMessage) else "assistant", "content": each.text} for each in said]
    able = assistant.clone(tools=[function(each, context) for each in context.tools])
    answer = Runner.run_streamed(able, told)
    try:
        async for event in answer.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                yield event.data.delta
    finally:
        answer.cancel()  # The SDK asks the model in a task of its own.
    used = answer.context_wrapper.usage
    yield Usage(used.input_tokens, used.output_tokens)


app = create_app(agent=agent)
if __name__ == "__main__":
    serve(app)
