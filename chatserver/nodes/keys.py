"""The names of what nodes keep in Redis. A name is also that of a channel, which is something else to Redis.

| key | type | what |
|---|---|---|
| ``chatserver:nodes`` | set | the ids of all nodes that have registered |
| ``chatserver:node:{node}`` | string with a TTL | the lease of a node; missing: it is gone, or Redis lost it |
| ``chatserver:node:{node}:cancels`` | set with a TTL | the runs of a node that are to be cancelled, until it knows |
| ``chatserver:node:{node}:open`` | hash with a TTL | how many connections, requests and runs each user has on a node |
| ``chatserver:requests:{user}`` | string with a TTL | until when a user's requests are paid for, in µs since 1970 |
| ``chatserver:tokens:{date}:{user}`` | string with a TTL | the model tokens that a user has spent on a day |
| ``chatserver:ticket:{hash}`` | string with a TTL | who asked for a ticket |
| ``chatserver:tickets:{user}`` | sorted set with a TTL | the hashes of a user's tickets, by their expiry |
| ``chatserver:run:{run}`` | stream | what was published of a run and is not merged yet; an id is ``{last seq}-0`` |
| ``chatserver:run:{run}:blocks`` | list | what is merged, older than the stream |
| ``chatserver:run:{run}:owner`` | hash | the owner of a run: its field ``node``; empty: nobody any more |

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


def open_key(node: str) -> str:
    """What a node has open. The scripts make this name too."""
    return f"{node_key(node)}:open"


def requests_key(user: str) -> str:
    """The rate of a user's requests."""
    return f"chatserver:requests:{user}"


def day_key(date: str, user: str) -> str:
    """The tokens of a user's day."""
    return f"chatserver:tokens:{date}:{user}"


def ticket_key(name: str) -> str:
    """A ticket, by its hash."""
    return f"chatserver:ticket:{name}"


def tickets_key(user: str) -> str:
    """The tickets of a user. The scripts make this name too."""
    return f"chatserver:tickets:{user}"


def run_key(run_id: str) -> str:
    """The stream of a run, and the channel of what is published of it."""
    return f"chatserver:run:{run_id}"


def blocks_key(run_id: str) -> str:
    """The merged beginning of a run."""
    return f"chatserver:run:{run_id}:blocks"


def owner_key(run_id: str) -> str:
    """Who owns a run."""
    return f"chatserver:run:{run_id}:owner"
