"""Settings: one frozen Struct, read once. The only module that knows the names of environment variables."""

import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from chatserver.errors import SettingsError
from chatserver.syntax import headers_of, is_header_value, is_host, is_http_url, is_link, is_origin, is_utf8

SECONDS_LIMIT = 10_000_000
"""Four months: longer is a mistake, and infinity is no time."""

Positive = Annotated[float, Meta(gt=0, le=SECONDS_LIMIT)]
NotNegative = Annotated[float, Meta(ge=0, le=SECONDS_LIMIT)]
Count = Annotated[int, Meta(ge=1)]

PARAMETERS = ("stream", "stream_options", "tools", "temperature", "max_tokens", "max_completion_tokens")
"""The parameters of a request to the upstream that can be left out."""

PREFIX = "CHATSERVER_"
SDK_PREFIX = "openai_"
"""Settings that begin so are the variables that the openai SDK reads."""

_SECRET_PARAMETER = re.compile(r"(?i)([^?&=]*(?:pass|secret|token|key)[^&=]*=)[^&]*")
SECRETS = frozenset({"openai_api_key", "jwt_secret"})
HEADER_VALUES = ("openai_api_key", "openai_org_id", "openai_project_id")
JWT_SECRET_BYTES = 32
"""A shorter one can be guessed from a single token (RFC 7518, 3.2)."""

DEMO_MODEL = "demo"
CONNECTIONS_OF_ALL = 10_000
"""How many connections the one user has that there is without authentication."""
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
    openai_org_id: str | None = None
    openai_project_id: str | None = None
    openai_custom_headers: str | None = None
    upstream_omit: tuple[str, ...] = ()
    model: str = "gpt-4o-mini"
    models: tuple[str, ...] = ()
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

    access_log: bool = False

    max_message_bytes: Count = 32768
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
    def is_demo(self) -> bool:
        """Nobody named an upstream, so the built-in demo model answers."""
        return not (self.openai_api_key or self.openai_base_url)

    @property
    def models_offered(self) -> tuple[str, ...]:
        """What a request may name if ``models`` says anything: the default model, and those."""
        return tuple(dict.fromkeys((self.model, *self.models)))

    @property
    def upstream_headers(self) -> dict[str, str]:
        """What goes to the model server with every request, beside the key."""
        named = {"OpenAI-Organization": self.openai_org_id, "OpenAI-Project": self.openai_project_id}
        return {name: value for name, value in named.items() if value} | headers_of(self.openai_custom_headers or "")

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
        return {name: masked(name, value) for name, value in values.items()}


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return ("" if name.startswith(SDK_PREFIX) else PREFIX) + name.upper()


VARIABLES = tuple(variable(name) for name in Settings.__struct_fields__)


def given(source: Mapping[str, str | None]) -> dict[str, str]:
    """The variables that an environment sets.

    Blanks and line ends around a value are none of it: files that secrets are mounted from often end in one.
    """
    return {name: text for name in VARIABLES if (text := (source.get(name) or "").strip())}


def load(*sources: Mapping[str, str | None], flags: Mapping[str, Any] | None = None) -> Settings:
    """Settings from environments (a later one wins) and, above all, from command-line flags.

    Raises:
        SettingsError: a value is wrong, or asks for what this server cannot do.
    """
    environment = {name: text for source in sources for name, text in given(source).items()}
    values: dict[str, Any] = {}
    for each in msgspec.structs.fields(Settings):
        text = environment.get(variable(each.name))
        if text is not None:
            if not is_utf8(text):
                raise SettingsError(f"{variable(each.name)}: is no text in UTF-8")
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
    _possible_texts(settings)
    _possible_auth(settings)
    if settings.redis_url:
        raise SettingsError(f"{variable('redis_url')}: a shared event log is not available in this version")
    if not set(settings.upstream_omit) <= set(PARAMETERS):
        raise SettingsError(f"{variable('upstream_omit')}: only of {', '.join(PARAMETERS)}")
    if settings.workers > 1:
        raise SettingsError(f"{variable('workers')}: more than one worker needs {variable('redis_url')}")
    if settings.login_url is not None and not is_link(settings.login_url):
        raise SettingsError(f"{variable('login_url')}: is no http:// or https:// URL and no path that begins with /")
    if settings.auth == "none" and settings.host not in LOOPBACK_HOSTS and not settings.insecure:
        raise SettingsError(
            f"{variable('host')}: without authentication only loopback is served; --insecure serves {settings.host}"
        )
    return settings


def _possible_texts(settings: Settings) -> None:
    """What is wrong is named by its variable and never quoted: it may be a secret in the wrong place."""
    for name in HEADER_VALUES:
        if not is_header_value(getattr(settings, name) or ""):
            raise SettingsError(f"{variable(name)}: has a control character or one beyond ASCII inside")
    try:
        headers_of(settings.openai_custom_headers or "")
    except ValueError as error:
        raise SettingsError(f"{variable('openai_custom_headers')}: {error}") from None
    if settings.openai_base_url and not is_http_url(settings.openai_base_url):
        raise SettingsError(f"{variable('openai_base_url')}: is no http:// or https:// URL")
    for name, is_right, form in (
        ("allowed_origins", is_origin, "scheme://host or scheme://host:port"),
        ("allowed_hosts", is_host, "a host or host:port"),
    ):
        wrong = [number for number, each in enumerate(getattr(settings, name), start=1) if not is_right(each)]
        if wrong:
            raise SettingsError(f"{variable(name)}: entry {wrong[0]} is not {form}")


def _possible_auth(settings: Settings) -> None:
    if settings.auth not in ("none", "jwt"):
        raise SettingsError(f"{variable('auth')}: `none` or `jwt`")
    url = settings.jwks_url
    doors = [name for name in ("jwt_secret", "jwks_url") if getattr(settings, name) is not None]
    if settings.auth == "none":
        if doors:  # Who has set it believes that there are doors.
            raise SettingsError(f"{variable('auth')}: {variable(doors[0])} has no effect unless this is `jwt`")
        return
    if len(doors) != 1:
        raise SettingsError(
            f"{variable('auth')}: `jwt` needs either {variable('jwt_secret')} or {variable('jwks_url')}"
        )
    if settings.jwt_secret is not None and len(settings.jwt_secret.encode()) < JWT_SECRET_BYTES:
        raise SettingsError(f"{variable('jwt_secret')}: has less than {JWT_SECRET_BYTES} bytes and can be guessed")
    if url is not None and not _is_trustworthy(url) and not settings.insecure:
        raise SettingsError(f"{variable('jwks_url')}: keys come over https only; --insecure takes them as they come")


def _is_trustworthy(url: str) -> bool:
    """Nobody on the way can put another document in the place of this one."""
    return is_http_url(url) and (url.startswith("https:") or urlsplit(url).hostname in LOOPBACK_HOSTS)


def masked(name: str, value: Any) -> Any:
    """The value of a setting as it may be shown."""
    if name in SECRETS and value:
        return "***"
    if name == "openai_custom_headers" and value:
        return "\n".join(f"{line.partition(':')[0].strip()}: ***" for line in value.split("\n") if ":" in line)
    if name.endswith("_url") and value and name != "login_url":  # That one is told to everybody.
        # Not parsed as a URL: a password with `/` or `#` in it is none, and must not be shown for that.
        scheme, _, rest = value.partition("://")
        who, _, where = rest.rpartition("@")
        user, colon, _ = who.partition(":")
        mask = f"{user}:***@" if colon else f"{user}@" if who else ""
        shown = _SECRET_PARAMETER.sub(r"\1***", where)
        return f"{scheme}://{mask}{shown}"
    return value
