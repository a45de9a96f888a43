"""Settings as they may be shown: no key, and no password within a URL."""

import re
from typing import Any

SECRETS = frozenset({"openai_api_key", "jwt_secret"})
_SECRET_PARAMETER = re.compile(r"(?i)([^?&=]*(?:pass|secret|token|key)[^&=]*=)[^&]*")


def masked(name: str, value: Any) -> Any:
    """The value of a setting as it may be shown."""
    if name in SECRETS and value:
        return "***"
    if name == "openai_custom_headers" and value:
        return "\n".join(f"{line.partition(':')[0].strip()}: ***" for line in value.split("\n") if ":" in line)
    if name == "mcp":
        return [_masked_server(entry) for entry in value]
    if name.endswith(("_url", "_endpoint")) and value and name != "login_url":  # The login URL is public.
        # Not parsed as a URL: a password with `/` or `#` would make it no URL, and must be masked all the same.
        scheme, _, rest = value.partition("://")
        who, _, where = rest.rpartition("@")
        user, colon, _ = who.partition(":")
        mask = f"{user}:***@" if colon else f"{user}@" if who else ""
        shown = _SECRET_PARAMETER.sub(r"\1***", where)
        return f"{scheme}://{mask}{shown}"
    return value


def _masked_server(entry: str) -> str:
    """Which MCP server it is: the host of a URL, the program of a command. What follows may be a secret."""
    first, blank, _ = entry.partition(" ")
    scheme, separator, rest = first.partition("://")
    if separator:
        host, slash, _ = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2].partition('?')[0]}{'/***' if slash else ''}"
    return f"{first} ***" if blank else first
