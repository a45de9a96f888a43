"""A graph of LangGraph as the agent. It reads `OPENAI_API_KEY` and `OPENAI_BASE_URL`."""

from collections.abc import AsyncIterator

from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph

from chatserver import AgentContext, AssistantTurn, Dialogue, UserMessage, create_app, serve

# No timeout of its own: in Python 3.11 this one can swallow a cancel. The server has `CHATSERVER_AGENT_IDLE_SECONDS`.
model = ChatOpenAI(model="gpt-4o-mini", max_retries=0, stream_chunk_timeout=None)


async def answer(state: MessagesState) -> dict[str, list[AnyMessage]]:
    return {"messages": [await model.ainvoke(state["messages"])]}


graph = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile()


def messages(dialogue: Dialogue) -> list[AnyMessage]:
    told: list[AnyMessage] = []
    for item in dialogue:
        if isinstance(item, UserMessage):
            told.append(HumanMessage(item.text))
        elif isinstance(item, AssistantTurn) and item.text:
            told.append(AIMessage(item.text))
    return told


async def agent(dialogue: Dialogue, context: AgentContext) -> AsyncIterator[str]:
    async for chunk, _ in graph.astream({"messages": messages(dialogue)}, stream_mode="messages"):
        if isinstance(chunk, AIMessageChunk):
            yield str(chunk.text)


app = create_app(agent=agent)
if __name__ == "__main__":
    serve(app)
