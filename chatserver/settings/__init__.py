"""Settings: one frozen Struct, read once. Only this room knows the names of environment variables."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from chatserver.settings.masks import masked
from chatserver.syntax import headers_of

SECONDS_LIMIT = 10_000_000
"""Four months. A longer time is a mistake, and infinity cannot be waited for."""

Positive = Annotated[float, Meta(gt=0, le=SECONDS_LIMIT)]
NotNegative = Annotated[float, Meta(ge=0, le=SECONDS_LIMIT)]
Count = Annotated[int, Meta(ge=1)]
NotNegativeCount = Annotated[int, Meta(ge=0)]

PARAMETERS = {
    "chat_completions": (
        *("stream", "stream_options", "tools", "temperature", "max_tokens", "max_completion_tokens"),
        *("reasoning_content", "reasoning", "reasoning_details", "extra_content"),
    ),
    "responses": (
        *("stream", "store", "include", "reasoning", "tools", "temperature", "max_output_tokens"),
        "encrypted_content",
    ),
}
"""The APIs of a model server, each with what can be left out of its requests: first parameters, then fields of a
model's own messages that go back to it.
"""

PREFIX = "CHATSERVER_"
SDK_PREFIXES = ("openai_", "otel_")
"""Settings that begin so are variables that the SDKs of OpenAI and OpenTelemetry read."""

DEMO_MODEL = "demo"
AGENT_MODEL = "agent"
"""What the model is called where somebody's agent answers and no model server is named."""

WILDCARD_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
"""Wildcard addresses, each with the address that reaches the server from its own machine."""
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator can choose; seconds may be fractions."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    workers: Count = 1
    root_path: str = ""
    insecure: bool = False

    openai_api_key: str | None = None
    openai_base_url: str | None = None
    openai_org_id: str | None = None
    openai_project_id: str | None = None
    openai_custom_headers: str | None = None
    upstream_api: str = "chat_completions"
    upstream_omit: tuple[str, ...] = ()
    model: str = "gpt-4o-mini"
    models: tuple[str, ...] = ()
    tools: str | None = None
    agent: str | None = None
    mcp: tuple[str, ...] = ()
    mcp_approval: str = "never"

    database_url: str = "sqlite:///chatserver.db"
    redis_url: str | None = None

    grace_seconds: NotNegative = 10.0
    heartbeat_seconds: Positive = 15.0
    send_timeout_seconds: Positive = 30.0
    retention_seconds: NotNegative = 300.0
    upstream_idle_seconds: Positive = 60.0
    drain_seconds: NotNegative = 10.0
    tool_timeout_seconds: Positive = 30.0
    approval_seconds: Positive = 86_400.0
    agent_idle_seconds: Positive = 300.0

    access_log: bool = False
    otel_exporter_otlp_endpoint: str | None = None

    max_message_bytes: Count = 32768
    max_inline_bytes: NotNegativeCount = 524288
    max_body_bytes: Count = 1048576
    max_frame_bytes: Count = 262144
    max_tool_result_bytes: Annotated[int, Meta(ge=64, le=49152)] = 32768
    max_answer_bytes: Count = 4194304
    max_logs_bytes: Count = 268435456
    max_connections: Count = 20_000
    max_connections_per_user: Count = 100
    max_requests_per_minute: Count = 600
    max_runs: Count = 1000
    max_runs_per_user: Count = 4
    max_waiting_runs_per_user: Count = 100
    max_turns: Count = 10
    max_tool_calls_per_run: Count = 100
    max_tokens_per_run: Count = 1_000_000
    max_tokens_per_day: Count | None = None
    max_context_tokens: Count = 100_000
    max_sessions_per_user: Count = 10_000
    max_stored_bytes_per_user: Count | None = None

    auth: str = "none"
    jwt_secret: str | None = None
    jwks_url: str | None = None
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    login_url: str | None = None
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()

    @property
    def has_model_server(self) -> bool:
        """Whether a model server is named, by its address or by a key; else the demo model stands in for it."""
        return bool(self.openai_api_key or self.openai_base_url)

    @property
    def is_demo(self) -> bool:
        """Whether the built-in demo model answers: neither a model server nor an agent is named."""
        return not (self.has_model_server or self.agent)

    def answered_by(self, agent: str) -> "Settings":
        """The settings of a server with this agent, whose answers are not the demo model's."""
        is_demo = self.model == DEMO_MODEL and not self.has_model_server
        return msgspec.structs.replace(self, agent=agent, model=AGENT_MODEL if is_demo else self.model)

    @property
    def models_offered(self) -> tuple[str, ...]:
        """The models that a request may name where ``models`` is set: the default model, then those."""
        return tuple(dict.fromkeys((self.model, *self.models)))

    @property
    def upstream_headers(self) -> dict[str, str]:
        """The headers of every request to the model server, beside the key."""
        named = {"OpenAI-Organization": self.openai_org_id, "OpenAI-Project": self.openai_project_id}
        return {name: value for name, value in named.items() if value} | headers_of(self.openai_custom_headers or "")

    @property
    def own_url(self) -> str:
        """The address at which this server is reached from its own machine."""
        host = WILDCARD_HOSTS.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.shown().items())})"

    def shown(self) -> dict[str, Any]:
        """All settings in force, secrets masked, also inside URLs."""
        values = msgspec.to_builtins(self)
        return {name: masked(name, value) for name, value in values.items()}


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return ("" if name.startswith(SDK_PREFIXES) else PREFIX) + name.upper()


VARIABLES = tuple(variable(name) for name in Settings.__struct_fields__)
