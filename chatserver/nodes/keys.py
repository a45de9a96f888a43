"""The names of what nodes keep in Redis. A name is also that of a channel, which is something else to Redis.

| key | type | what |
|---|---|---|
| ``chatserver:nodes`` | set | the ids of all nodes that have registered |
| ``chatserver:node:{node}`` | string with a TTL | the lease of a node; missing: it is gone, or Redis lost it |
| ``chatserver:node:{node}:cancels`` | set | the runs of a node that are to be cancelled, until it looks |
| ``chatserver:run:{run}`` | stream | what was published of a run and is not merged yet; an id is ``{last seq}-0`` |
| ``chatserver:run:{run}:blocks`` | list | what is merged, older than the stream |
| ``chatserver:run:{run}:owner`` | hash | the owner of a run: its field ``node`` |

| channel | what |
|---|---|
| ``chatserver:node:{node}`` | commands for a node |
| ``chatserver:run:{run}`` | what is published of a run, as its followers need it |
"""

NODES = "chatserver:nodes"
CANCELS = ":cancels"


def node_key(node: str) -> str:
    """The lease of a node, and the channel of commands for it."""
    return f"chatserver:node:{node}"


def cancels_key(node: str) -> str:
    """The runs of a node that are to be cancelled."""
    return node_key(node) + CANCELS


def run_key(run_id: str) -> str:
    """The stream of a run, and the channel of what is published of it."""
    return f"chatserver:run:{run_id}"


def blocks_key(run_id: str) -> str:
    """The merged beginning of a run."""
    return f"chatserver:run:{run_id}:blocks"


def owner_key(run_id: str) -> str:
    """Who owns a run."""
    return f"chatserver:run:{run_id}:owner"
