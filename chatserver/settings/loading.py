"""Loading settings from environments and flags, and refusing what cannot be obeyed."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from dotenv import dotenv_values

from chatserver.errors import SettingsError
from chatserver.settings import DEMO_MODEL, LOOPBACK_HOSTS, PARAMETERS, VARIABLES, Settings, variable
from chatserver.syntax import headers_of, is_header_value, is_host, is_http_url, is_link, is_origin, is_utf8

HEADER_VALUES = ("openai_api_key", "openai_org_id", "openai_project_id")
JWT_SECRET_BYTES = 32
"""A shorter secret can be guessed from a single token (RFC 7518, 3.2)."""

ENV_FILE = Path(".env")

CONNECTIONS_OF_ALL = 10_000
"""How many connections the one user of `none` mode has."""

MCP_APPROVALS = ("never", "destructive", "always")
"""Which calls of MCP servers' tools a person must approve."""


def given(source: Mapping[str, str | None]) -> dict[str, str]:
    """The variables that an environment sets.

    Blanks and line ends around a value are dropped: files that hold mounted secrets often end in a line end.
    """
    return {name: text for name in VARIABLES if (text := (source.get(name) or "").strip())}


def load_settings(**values: Any) -> Settings:
    """The settings of this process: ``values`` win over the environment, and the environment over `.env`.

    The names of ``values`` are those of the fields of ``Settings``; None leaves a setting to the environment.

    Raises:
        SettingsError: a value is wrong, or demands what this server cannot do.
    """
    return load(env_file(), os.environ, flags=values)


def env_file() -> dict[str, str | None]:
    """The variables in `.env` of the working directory.

    Raises:
        SettingsError: the file cannot be read.
    """
    try:
        return dotenv_values(ENV_FILE)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{ENV_FILE} cannot be read: {error}") from None


def load(*sources: Mapping[str, str | None], flags: Mapping[str, Any] | None = None) -> Settings:
    """Settings from environments (a later one wins) and, above all, from command-line flags.

    Raises:
        SettingsError: a value is wrong, or demands what this server cannot do.
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
    if not settings.has_model_server and "model" not in values:
        settings = msgspec.structs.replace(settings, model=DEMO_MODEL)
    if settings.agent:
        settings = settings.answered_by(settings.agent)
    if settings.auth == "none" and "max_connections_per_user" not in values:
        # Everybody is the one user.
        settings = msgspec.structs.replace(settings, max_connections_per_user=CONNECTIONS_OF_ALL)
    path = settings.root_path.strip("/")
    return _possible(msgspec.structs.replace(settings, root_path=f"/{path}" if path else ""))


def with_function_users(settings: Settings) -> Settings:
    """The settings of a server whose users a function names: each has the connections of one user, not those of all."""
    limit = settings.max_connections_per_user
    if settings.auth == "none" and limit == CONNECTIONS_OF_ALL:
        limit = Settings().max_connections_per_user
    return msgspec.structs.replace(settings, auth="function", max_connections_per_user=limit)


def _possible(settings: Settings) -> Settings:
    _possible_texts(settings)
    _possible_auth(settings)
    omittable = PARAMETERS.get(settings.upstream_api)
    if omittable is None:
        raise SettingsError(f"{variable('upstream_api')}: {' or '.join(f'`{name}`' for name in PARAMETERS)}")
    if not set(settings.upstream_omit) <= set(omittable):
        raise SettingsError(f"{variable('upstream_omit')}: only of {', '.join(omittable)}")
    if settings.mcp_approval not in MCP_APPROVALS:
        raise SettingsError(f"{variable('mcp_approval')}: {' or '.join(f'`{name}`' for name in MCP_APPROVALS)}")
    if settings.workers > 1 and not settings.redis_url:
        raise SettingsError(f"{variable('workers')}: more than one worker needs {variable('redis_url')}")
    if settings.login_url is not None and not is_link(settings.login_url):
        raise SettingsError(f"{variable('login_url')}: is no http:// or https:// URL and no path that begins with /")
    if settings.auth == "none" and settings.host not in LOOPBACK_HOSTS and not settings.insecure:
        raise SettingsError(
            f"{variable('host')}: without authentication only loopback is served; --insecure serves {settings.host}"
        )
    return settings


def _possible_texts(settings: Settings) -> None:
    """Refuse wrong values. A message names the variable and never quotes the value, which may be a misplaced secret."""
    for name in HEADER_VALUES:
        if not is_header_value(getattr(settings, name) or ""):
            raise SettingsError(f"{variable(name)}: has a control character or one beyond ASCII inside")
    try:
        headers_of(settings.openai_custom_headers or "")
    except ValueError as error:
        raise SettingsError(f"{variable('openai_custom_headers')}: {error}") from None
    for name in ("openai_base_url", "otel_exporter_otlp_endpoint"):
        if (url := getattr(settings, name)) and not is_http_url(url):
            raise SettingsError(f"{variable(name)}: is no http:// or https:// URL")
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
        if doors:  # An operator who has set this believes that the server authenticates.
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
    """Whether nobody in the network can replace the document at this address."""
    return is_http_url(url) and (url.startswith("https:") or urlsplit(url).hostname in LOOPBACK_HOSTS)
