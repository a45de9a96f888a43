"""Tools of MCP servers (Model Context Protocol): programs that this process starts, and servers at a URL.

Only `configuration.py` and `opening.py` can be imported without the package `mcp`, which the extra `mcp` installs.
"""
