"""What a server imports until it serves, for the process that servers are forked from."""

# ruff: noqa: F401
import litestar.plugins.pydantic
import openai
import uvloop

import chatserver.app
import chatserver.cli
import chatserver.nodes.node
import chatserver.plugin
import chatserver.providers.demo_transport
import chatserver.serving.serve
import chatserver.serving.server
import chatserver.upstream.transport
