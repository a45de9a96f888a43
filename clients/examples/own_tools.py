"""The built-in agent with tools of your own. Start it with `python own_tools.py`."""

from chatserver import create_app, serve, tool

STOCK = {"apples": 12, "pears": 0}


@tool
def stock(fruit: str) -> int:
    """How many pieces of a fruit are in stock."""
    return STOCK[fruit]


@tool
async def order(fruit: str, count: int = 1) -> str:
    """Order pieces of a fruit."""
    STOCK[fruit] += count
    return f"{count} {fruit} are ordered"


app = create_app(tools=[stock, order])
if __name__ == "__main__":
    serve(app)
