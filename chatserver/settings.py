"""Settings: one frozen Struct, read once. The only module that knows the names of environment variables."""

import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from chatserver.errors import SettingsError

SECONDS_LIMIT = 10_000_000
"""Four months: longer is a mistake, and infinity is no time."""

Positive = Annotated[float, Meta(gt=0, le=SECONDS_LIMIT)]
NotNegative = Annotated[float, Meta(ge=0, le=SECONDS_LIMIT)]
Count = Annotated[int, Meta(ge=1)]

PREFIX = "CHATSERVER_"
SDK_VARIABLES = {"openai_api_key": "OPENAI_API_KEY", "openai_base_url": "OPENAI_BASE_URL"}
_SECRET_PARAMETER = re.compile(r"(?i)([^?&=]*(?:pass|secret|token|key)[^&=]*=)[^&]*")
SECRETS = frozenset({"openai_api_key", "jwt_secret"})
DEMO_MODEL = "demo"
CONNECTIONS_OF_ALL = 10_000
"""Of the one user that there is without authentication."""
WILDCARD_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
"""Every address of the machine, each with the one that reaches it from the machine itself."""
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
    model: str = "gpt-4o-mini"
    tools: str | None = None

    database_url: str = "sqlite:///chatserver.db"
    redis_url: str | None = None

    grace_seconds: NotNegative = 10.0
    heartbeat_seconds: Positive = 15.0
    send_timeout_seconds: Positive = 30.0
    retention_seconds: NotNegative = 300.0
    upstream_idle_seconds: Positive = 60.0
    drain_seconds: NotNegative = 10.0
    tool_timeout_seconds: Positive = 30.0

    max_message_bytes: Count = 32768
    max_body_bytes: Count = 1048576
    max_frame_bytes: Count = 262144
    max_tool_result_bytes: Annotated[int, Meta(ge=64, le=49152)] = 32768
    max_log_bytes: Count = 1048576
    max_connections: Count = 20_000
    max_connections_per_user: Count = 100
    max_requests_per_minute: Count = 600
    max_runs: Count = 1000
    max_runs_per_user: Count = 4
    max_turns: Count = 10
    max_tool_calls_per_run: Count = 100
    max_tokens_per_run: Count = 1_000_000
    max_tokens_per_day: Count | None = None
    max_context_tokens: Count = 100_000

    auth: str = "none"
    jwt_secret: str | None = None
    jwks_url: str | None = None
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()

    @property
    def is_demo(self) -> bool:
        """Nobody named an upstream, so the built-in demo model answers."""
        return not (self.openai_api_key or self.openai_base_url)

    @property
    def own_url(self) -> str:
        """Where this very server is reached from its own machine."""
        host = WILDCARD_HOSTS.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.shown().items())})"

    def shown(self) -> dict[str, Any]:
        """All settings in force, secrets masked, also inside URLs."""
        values = msgspec.to_builtins(self)
        return {name: _masked(name, value) for name, value in values.items()}


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return SDK_VARIABLES.get(name, PREFIX + name.upper())


def load(*sources: Mapping[str, str | None], flags: Mapping[str, Any] | None = None) -> Settings:
    """Settings from environments (a later one wins) and, above all, from command-line flags.

    Raises:
        SettingsError: a value is wrong, or asks for what this server cannot do.
    """
    environment = {key: value for source in sources for key, value in source.items() if value}
    values: dict[str, Any] = {}
    for each in msgspec.structs.fields(Settings):
        text = environment.get(variable(each.name))
        if text is not None:
            is_list = isinstance(each.default, tuple)
            values[each.name] = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
    values |= {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        sentence, _, path = str(error).partition(" - at `$.")
        raise SettingsError(f"{variable(path.split('[')[0].rstrip('`'))}: {sentence}") from None
    if settings.is_demo and "model" not in values:
        settings = msgspec.structs.replace(settings, model=DEMO_MODEL)
    if settings.auth == "none" and "max_connections_per_user" not in values:
        # There is one user, and everybody is that one.
        settings = msgspec.structs.replace(settings, max_connections_per_user=CONNECTIONS_OF_ALL)
    path = settings.root_path.strip("/")
    return _possible(msgspec.structs.replace(settings, root_path=f"/{path}" if path else ""))


def _possible(settings: Settings) -> Settings:
    _possible_auth(settings)
    if settings.redis_url:
        raise SettingsError(f"{variable('redis_url')}: a shared event log is not available in this version")
    if settings.workers > 1:
        raise SettingsError(f"{variable('workers')}: more than one worker needs {variable('redis_url')}")
    if settings.openai_base_url and not _is_http(settings.openai_base_url):
        raise SettingsError(f"{variable('openai_base_url')}: is no http:// or https:// URL")
    if settings.auth == "none" and settings.host not in LOOPBACK_HOSTS and not settings.insecure:
        raise SettingsError(
            f"{variable('host')}: without authentication only loopback is served; --insecure serves {settings.host}"
        )
    return settings


def _possible_auth(settings: Settings) -> None:
    if settings.auth not in ("none", "jwt"):
        raise SettingsError(f"{variable('auth')}: `none` or `jwt`")
    url = settings.jwks_url
    given = [name for name in ("jwt_secret", "jwks_url") if getattr(settings, name) is not None]
    if settings.auth == "none":
        if given:  # Who has set it believes that there are doors.
            raise SettingsError(f"{variable('auth')}: {variable(given[0])} has no effect unless this is `jwt`")
        return
    if len(given) != 1:
        raise SettingsError(
            f"{variable('auth')}: `jwt` needs either {variable('jwt_secret')} or {variable('jwks_url')}"
        )
    if url is not None and not _is_trustworthy(url) and not settings.insecure:
        raise SettingsError(f"{variable('jwks_url')}: keys come over https only; --insecure takes them as they come")


def _is_trustworthy(url: str) -> bool:
    """Nobody on the way can put another document in the place of this one."""
    return _is_http(url) and (url.startswith("https:") or urlsplit(url).hostname in LOOPBACK_HOSTS)


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # The port is no number, or too large; a bracket is missing.
        return False


def _masked(name: str, value: Any) -> Any:
    if name in SECRETS and value:
        return "***"
    if name.endswith("_url") and value:
        # Not parsed as a URL: a password with `/` or `#` in it is none, and must not be shown for that.
        scheme, _, rest = value.partition("://")
        who, _, where = rest.rpartition("@")
        user, colon, _ = who.partition(":")
        mask = f"{user}:***@" if colon else f"{user}@" if who else ""
        shown = _SECRET_PARAMETER.sub(r"\1***", where)
        return f"{scheme}://{mask}{shown}"
    return value
