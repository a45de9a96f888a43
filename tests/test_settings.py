"""Settings: where they come from, what they may be, and what is shown of them."""

from typing import Any

import msgspec
import pytest

from chatserver.errors import SettingsError
from chatserver.settings import AGENT_MODEL, DEMO_MODEL, LOOPBACK_HOSTS, Settings, variable
from chatserver.settings.loading import load

FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}

CONTRACT = {
    "CHATSERVER_MODEL": "gpt-4o-mini",
    "CHATSERVER_DATABASE_URL": "sqlite:///chatserver.db",
    "CHATSERVER_REDIS_URL": None,
    "CHATSERVER_GRACE_SECONDS": 10,
    "CHATSERVER_HEARTBEAT_SECONDS": 15,
    "CHATSERVER_SEND_TIMEOUT_SECONDS": 30,
    "CHATSERVER_RETENTION_SECONDS": 300,
    "CHATSERVER_UPSTREAM_IDLE_SECONDS": 60,
    "CHATSERVER_DRAIN_SECONDS": 10,
    "CHATSERVER_MAX_MESSAGE_BYTES": 32768,
    "CHATSERVER_MAX_BODY_BYTES": 1048576,
    "CHATSERVER_MAX_FRAME_BYTES": 262144,
    "CHATSERVER_MAX_REQUESTS_PER_MINUTE": 600,
    "CHATSERVER_MAX_RUNS": 1000,
    "CHATSERVER_MAX_RUNS_PER_USER": 4,
    "CHATSERVER_AUTH": "none",
    "CHATSERVER_ALLOWED_ORIGINS": (),
    "CHATSERVER_ALLOWED_HOSTS": (),
    "CHATSERVER_TOOLS": None,
    "OPENAI_API_KEY": None,
    "OPENAI_BASE_URL": None,
    "CHATSERVER_HOST": "127.0.0.1",
    "CHATSERVER_PORT": 8000,
    "CHATSERVER_WORKERS": 1,
}
"""The table of the contract, as far as this version has it."""


@pytest.mark.parametrize(("name", "default"), CONTRACT.items())
def test_defaults_are_those_of_the_contract(name: str, default: Any) -> None:
    setting = next(each for each in FIELDS if variable(each) == name)
    key = {} if name == "OPENAI_API_KEY" else {"OPENAI_API_KEY": "k"}
    assert getattr(load(key), setting) == getattr(Settings(), setting) == default


SAMPLES: dict[str, tuple[str, str, str]] = {
    "host": ("localhost", "::1", "127.0.0.1"),
    "root_path": ("/a", "/b", "/c"),
    "openai_base_url": ("http://a/v1", "http://b/v1", "http://c/v1"),
    "otel_exporter_otlp_endpoint": ("http://a", "http://b", "http://c"),
    "database_url": ("sqlite:///a.db", "sqlite:///b.db", "sqlite:///c.db"),
    "allowed_origins": ("https://a", "https://b", "https://c"),
    "tools": ("a:b", "c:d", "e:f"),
    "mcp_approval": ("destructive", "always", "never"),
    "upstream_omit": ("tools", "stream", "temperature"),
    "login_url": ("/a", "https://b", "http://c/d?e=f"),
    "max_tool_result_bytes": ("101", "102", "103"),
    "insecure": ("1", "false", "true"),
    "access_log": ("1", "false", "true"),
}
ONE_VALUE = {"auth", "upstream_api", "redis_url", "workers", "jwt_secret", "jwks_url"}
"""So far they have only their default, or belong together."""


def samples(name: str) -> tuple[str, str, str]:
    return SAMPLES.get(name, ("11", "12", "13"))


def value(name: str, text: str) -> Any:
    """What a text means, by the type of the default."""
    match FIELDS[name].default:
        case bool():
            return text in ("1", "true")
        case int() | float() as number:
            return type(number)(text)
        case tuple():
            return (text,)
        case None if name in ("max_tokens_per_day", "max_stored_bytes_per_user"):
            return int(text)
        case _:
            return text


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - ONE_VALUE))
def test_flags_win_over_environment_over_env_file_over_defaults(name: str) -> None:
    in_file, in_environment, as_flag = samples(name)
    file, environment = {variable(name): in_file}, {variable(name): in_environment}
    flags = {name: value(name, as_flag)}
    nothing: dict[str, str | None] = {}
    assert getattr(load(nothing, nothing, flags={}), name) == getattr(load(), name)
    assert getattr(load(file, nothing, flags={}), name) == value(name, in_file)
    assert getattr(load(file, environment, flags={name: None}), name) == value(name, in_environment)
    assert getattr(load(nothing, environment), name) == value(name, in_environment)
    assert getattr(load(file, environment, flags=flags), name) == value(name, as_flag)
    assert getattr(load(file, nothing, flags=flags), name) == value(name, as_flag)


@pytest.mark.parametrize("nothing", ["", None])
def test_an_empty_variable_is_an_unset_one(nothing: str | None) -> None:
    assert load({variable(name): nothing for name in FIELDS}) == load()


@pytest.mark.parametrize("around", [" {} ", "{}\n", "\r\n{}\r\n", "\t{}\n\n"])
@pytest.mark.parametrize("name", sorted(FIELDS.keys() - ONE_VALUE))
def test_blanks_and_line_ends_around_a_value_are_none_of_it(name: str, around: str) -> None:
    text = samples(name)[1]
    assert load({variable(name): around.format(text)}) == load({variable(name): text})
    assert load({variable(name): around.format("")}) == load()


CANARY = "canary-4711"


@pytest.mark.parametrize(
    "inside", ["\n", "\r\n", "\r", "\0", "\t", "\x1f", "\x7f", "\x85", "é", "\u2028", "\ufeff", "😀"]
)
@pytest.mark.parametrize("name", ["openai_api_key", "openai_org_id", "openai_project_id"])
def test_a_key_that_no_header_can_hold_is_refused_by_its_name(name: str, inside: str) -> None:
    with pytest.raises(SettingsError, match=rf"\A{variable(name)}: ") as refusal:
        load({variable(name): f"{CANARY}{inside}{CANARY}"})
    assert CANARY not in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "line",
    [
        f"X-Title: {CANARY}é",
        f"X-Title: {CANARY}\rX-Injected: 1",
        f"X-Title: {CANARY}\0",
        f"X-Title: {CANARY}\tb",
        f": {CANARY}",
        f"X Title: {CANARY}",
        f"X-Tïtle: {CANARY}",
        f'{{"X-Title": "{CANARY}"}}',
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_by_its_line(line: str) -> None:
    with pytest.raises(SettingsError, match=r"\AOPENAI_CUSTOM_HEADERS: line 2 ") as refusal:
        load({"OPENAI_CUSTOM_HEADERS": f"A: b\n{line}\nC: d"})
    assert CANARY not in str(refusal.value) and "\n" not in str(refusal.value)


def test_what_is_no_utf8_is_refused_by_its_name() -> None:
    for name in FIELDS:
        with pytest.raises(SettingsError, match=rf"\A{variable(name)}: "):
            load({variable(name): "\udcff" * 40})


def test_variables_of_others_are_not_looked_at() -> None:
    assert load({"PATH": "/bin", "MODEL": "x", "chatserver_model": "x", "CHATSERVER_UNKNOWN": "x"}) == load()


@pytest.mark.parametrize(("text", "seconds"), [("0.25", 0.25), ("3", 3.0), ("1e2", 100.0)])
def test_seconds_may_be_fractions(text: str, seconds: float) -> None:
    assert load({"CHATSERVER_HEARTBEAT_SECONDS": text}).heartbeat_seconds == seconds


@pytest.mark.parametrize(
    ("text", "origins"),
    [("https://a", ("https://a",)), (" https://a , https://b,, ", ("https://a", "https://b")), (" , ", ())],
)
def test_lists_are_separated_by_commas(text: str, origins: tuple[str, ...]) -> None:
    assert load({"CHATSERVER_ALLOWED_ORIGINS": text}).allowed_origins == origins


def wrong_values() -> list[tuple[str, str]]:
    """For each setting that is not just any text, what it cannot be."""
    found: list[tuple[str, str]] = []
    for name, field in FIELDS.items():
        match field.default:
            case bool():
                found += [(name, text) for text in ("maybe", "2", "-1")]
            case int():
                found += [(name, text) for text in ("x", "-1", "1.5", "1e3x", "0x10", "9" * 5000, "nan")]
                found += [] if name in ("port", "max_logs_bytes", "max_inline_bytes") else [(name, "0")]
            case float():
                found += [(name, text) for text in ("x", "-1", "-0.001", "nan", "inf", "-inf", "1e999", "1,5", "10s")]
    found += [(name, "0") for name in FIELDS if name in ("heartbeat_seconds", "send_timeout_seconds")]
    found += [("upstream_idle_seconds", "0"), ("tool_timeout_seconds", "0")]
    found += [("port", "65536"), ("max_tool_result_bytes", "63"), ("max_tool_result_bytes", "49153")]
    return [*found, ("auth", "jwt"), ("auth", "x"), ("upstream_api", "x"), ("mcp_approval", "x"), ("workers", "2")]


@pytest.mark.parametrize(("name", "text"), wrong_values(), ids=lambda text: text[:24])
def test_a_wrong_value_is_refused_and_its_variable_named(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=rf"\A{variable(name)}: ") as refusal:
        load({variable(name): text})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com", "127.0.0.1.example.com"])
def test_beyond_loopback_nothing_is_served_without_authentication(host: str) -> None:
    with pytest.raises(SettingsError, match=r"\ACHATSERVER_HOST: .*--insecure"):
        load(flags={"host": host})
    assert load(flags={"host": host, "insecure": True}).host == host
    assert load({"CHATSERVER_HOST": host, "CHATSERVER_INSECURE": "1"}).host == host


LONG_SECRET = "s" * 32


def test_with_authentication_every_host_is_served() -> None:
    settings = load({"CHATSERVER_AUTH": "jwt", "CHATSERVER_JWT_SECRET": LONG_SECRET}, flags={"host": "0.0.0.0"})
    assert (settings.host, settings.auth) == ("0.0.0.0", "jwt")


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({"CHATSERVER_AUTH": "jwt"}, "CHATSERVER_AUTH"),
        (
            {"CHATSERVER_AUTH": "jwt", "CHATSERVER_JWT_SECRET": LONG_SECRET, "CHATSERVER_JWKS_URL": "https://a/b"},
            "CHATSERVER_AUTH",
        ),
        ({"CHATSERVER_JWT_SECRET": LONG_SECRET}, "CHATSERVER_AUTH"),
        ({"CHATSERVER_JWKS_URL": "https://a/b"}, "CHATSERVER_AUTH"),
        ({"CHATSERVER_AUTH": "jwt", "CHATSERVER_JWKS_URL": "http://issuer.example/keys"}, "CHATSERVER_JWKS_URL"),
        ({"CHATSERVER_AUTH": "jwt", "CHATSERVER_JWKS_URL": "file:///etc/keys"}, "CHATSERVER_JWKS_URL"),
        ({"CHATSERVER_AUTH": "jwt", "CHATSERVER_JWKS_URL": "http://[::1/keys"}, "CHATSERVER_JWKS_URL"),
        ({"CHATSERVER_AUTH": "jwt", "CHATSERVER_JWT_SECRET": "abc"}, "CHATSERVER_JWT_SECRET"),
        ({"CHATSERVER_AUTH": "jwt", "CHATSERVER_JWT_SECRET": "s" * 31}, "CHATSERVER_JWT_SECRET"),
        ({"CHATSERVER_AUTH": "jwt", "CHATSERVER_JWT_SECRET": " " * 40 + "s" * 31}, "CHATSERVER_JWT_SECRET"),
    ],
    ids=str,
)
def test_doors_that_cannot_be_shut_are_refused(environment: dict[str, str], variable: str) -> None:
    """A secret that can be guessed, keys that anybody on the way can change, settings that only seem to lock."""
    with pytest.raises(SettingsError, match=rf"\A{variable}: "):
        load(environment)


def test_a_secret_is_as_long_as_its_bytes() -> None:
    for secret in ("é" * 16, "s" * 32):
        assert load({"CHATSERVER_AUTH": "jwt", "CHATSERVER_JWT_SECRET": f"{secret}\n"}).jwt_secret == secret


NO_HOSTS = [
    "*",
    "*.example.org",
    "https://a",
    "a/b",
    "me@a",
    "a:",
    ":80",
    "a:99999",
    "a:b",
    "a b",
    "a..b",
    "bücher.example",
]
NO_HOSTS += ["[::1", "[a]", "::1]", "[127.0.0.1]", "a?b", "a#b", "a\\b", "[::1]x", "a:80:80"]
NO_ORIGINS = [
    *(f"https://{host}" for host in NO_HOSTS if ":/" not in host),
    "null",
    "*",
    "a.example",
    "a.example:443",
    "https:a",
]
NO_ORIGINS += [
    "//a",
    "https://",
    "://a",
    "https//a",
    "https://a/x",
    "https://a?x",
    "https://::1",
    "ht tp://a",
    "1a://b",
]


@pytest.mark.parametrize("entry", NO_ORIGINS)
def test_an_origin_that_could_never_match_or_matches_too_much_is_refused(entry: str) -> None:
    with pytest.raises(SettingsError, match=r"\ACHATSERVER_ALLOWED_ORIGINS: entry 2 ") as refusal:
        load({"CHATSERVER_ALLOWED_ORIGINS": f"https://a.example, {entry}"})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("entry", NO_HOSTS)
def test_a_host_that_is_none_is_refused(entry: str) -> None:
    with pytest.raises(SettingsError, match=r"\ACHATSERVER_ALLOWED_HOSTS: entry 2 ") as refusal:
        load({"CHATSERVER_ALLOWED_HOSTS": f"a.example, {entry}"})
    assert "\n" not in str(refusal.value)


def test_origins_and_hosts_that_are_some_are_taken() -> None:
    hosts = [
        "a",
        "A.Example",
        "a_b.c-d",
        "xn--bcher-kva.example",
        "10.0.0.1",
        "[::1]",
        "[2001:db8::1]:8000",
        "a:1",
        "a:65535",
    ]
    schemes = ["http", "https", "capacitor", "chrome-extension", "HTTPS"]
    origins = [f"{scheme}://{host}" for scheme in schemes for host in hosts] + ["https://a/"]
    assert load({"CHATSERVER_ALLOWED_ORIGINS": ",".join(origins)}).allowed_origins == tuple(origins)
    hosts.append("2001:db8::1")
    assert load({"CHATSERVER_ALLOWED_HOSTS": ",".join(hosts)}).allowed_hosts == tuple(hosts)


@pytest.mark.parametrize("url", ["/login", "/sso/in?to=/chat", "https://login.example/a?b=c#d", "http://127.0.0.1:9/"])
def test_one_signs_in_on_this_origin_or_on_a_web_page(url: str) -> None:
    settings = load({"CHATSERVER_LOGIN_URL": url})
    assert settings.login_url == settings.shown()["login_url"] == url


@pytest.mark.parametrize(
    "url",
    [
        *(
            "javascript:alert(1)",
            "JavaScript:alert(1)",
            "data:text/html,a",
            "login",
            "//evil.example/a",
            "/\\evil.example",
        ),
        *(
            "https://",
            "http:///a",
            "https://me:word@login.example/",
            "https://a b/",
            "/a b",
            "/ü",
            '/a"b',
            "ftp://a/b",
            "/a\tb",
        ),
    ],
)
def test_a_link_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="CHATSERVER_LOGIN_URL"):
        load({"CHATSERVER_LOGIN_URL": url})


@pytest.mark.parametrize("url", ["https://issuer.example/keys", "http://127.0.0.1:9/keys", "http://[::1]/keys"])
def test_keys_come_over_https_or_from_this_machine(url: str) -> None:
    assert load({"CHATSERVER_AUTH": "jwt", "CHATSERVER_JWKS_URL": url}).jwks_url == url


def test_connections_are_fewer_where_there_are_users() -> None:
    """The contract: 100 of a user; 10,000 where everybody is one."""
    with_users = load({"CHATSERVER_AUTH": "jwt", "CHATSERVER_JWT_SECRET": LONG_SECRET})
    assert with_users.max_connections_per_user == 100
    assert load().max_connections_per_user == 10_000
    assert load({"CHATSERVER_MAX_CONNECTIONS_PER_USER": "7"}).max_connections_per_user == 7


@pytest.mark.parametrize("host", sorted(LOOPBACK_HOSTS))
def test_loopback_is_served(host: str) -> None:
    assert load(flags={"host": host}).host == host


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        (Settings(), "http://127.0.0.1:8000"),
        (Settings(host="0.0.0.0", port=9), "http://127.0.0.1:9"),
        (Settings(host="::"), "http://[::1]:8000"),
        (Settings(host="::1", root_path="/x"), "http://[::1]:8000"),
        (Settings(host="localhost"), "http://localhost:8000"),
    ],
)
def test_a_server_knows_its_own_address(settings: Settings, url: str) -> None:
    assert settings.own_url == url


@pytest.mark.parametrize(
    ("settings", "is_demo"),
    [
        (Settings(), True),
        (Settings(openai_api_key="k"), False),
        (Settings(openai_base_url="http://a"), False),
        (Settings(openai_api_key="k", openai_base_url="http://a"), False),
        (Settings(agent="mine:agent"), False),
        (Settings(agent="mine:agent", openai_api_key="k"), False),
    ],
)
def test_the_demo_answers_when_neither_an_upstream_nor_an_agent_is_named(settings: Settings, is_demo: bool) -> None:
    assert settings.is_demo == is_demo


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://a/v1",
        "http://",
        "http://a:b/v1",
        "http://a:99999",
        "http://[",
        "http://a\n.b",
        "http://a b",
    ],
)
def test_an_upstream_that_has_no_address_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^OPENAI_BASE_URL: "):
        load({"OPENAI_BASE_URL": url})


@pytest.mark.parametrize("path", ["api/v2", "/api/v2", "api/v2/", "//api/v2//"])
def test_a_root_path_has_one_form(path: str) -> None:
    assert load({"CHATSERVER_ROOT_PATH": path}).root_path == "/api/v2"
    assert load({"CHATSERVER_ROOT_PATH": "/"}).root_path == ""


def test_the_demo_model_goes_by_the_name_it_was_given() -> None:
    assert load().model == DEMO_MODEL
    assert load({"CHATSERVER_MODEL": "mine"}).model == load(flags={"model": "mine"}).model == "mine"


def test_no_agent_goes_by_the_name_of_the_demo_model() -> None:
    agent = {"CHATSERVER_AGENT": "mine:agent"}
    assert load(agent).model == AGENT_MODEL
    assert load(agent | {"CHATSERVER_MODEL": "mine"}).model == "mine"
    assert load(agent | {"OPENAI_API_KEY": "k"}).model == load({"OPENAI_API_KEY": "k"}).model


# ---- what is shown --------------------------------------------------------------------------------------------------

SECRET = "hunter2"
URLS = [
    "postgresql://me:hunter2@db/chat",
    "postgresql://me:hunter2@db:5432/chat?sslmode=require",
    "postgresql://:hunter2@db/chat",
    "postgresql://me:pre/hunter2#post@db/chat",
    "postgresql://me:a@hunter2@db/chat",
    "postgresql://db/chat?user=me&password=hunter2",
    "postgresql+asyncpg://me:hunter2@[::1]:5432/chat",
]
API_URLS = [
    "https://me:hunter2@gateway/v1",
    "https://gateway/v1?api_key=hunter2&version=3",
    "https://gateway/v1?key=hunter2",
]


def test_all_settings_are_shown() -> None:
    settings = Settings(port=9, allowed_hosts=("a", "b"))
    assert list(settings.shown()) == list(FIELDS)
    assert msgspec.convert(settings.shown(), Settings) == settings


@pytest.mark.parametrize(
    "url",
    ["http://gateway:8080/v1", "http://me@gateway/v1?version=3", "sqlite:///chat.db", "postgresql://me@db:5432/chat"],
)
def test_a_url_without_a_secret_is_shown_as_it_is(url: str) -> None:
    assert Settings(database_url=url).shown()["database_url"] == url


@pytest.mark.parametrize(
    "settings",
    [
        Settings(openai_api_key=SECRET),
        Settings(openai_custom_headers=f"api-key: {SECRET}\nX-B:{SECRET}\n{SECRET}"),
        Settings(jwt_secret=SECRET),
        Settings(jwks_url=f"https://issuer/keys?token={SECRET}"),
        *[Settings(database_url=url) for url in URLS],
        *[Settings(openai_base_url=url) for url in API_URLS],
        Settings(redis_url=f"redis://:{SECRET}@cache:6379/0"),
    ],
    ids=lambda settings: next(str(value) for value in msgspec.to_builtins(settings).values() if SECRET in str(value)),
)
def test_no_secret_is_shown(settings: Settings) -> None:
    shown = settings.shown()
    assert SECRET not in repr(shown) + repr(settings) + str(settings)
    assert any("***" in str(each) for each in shown.values())


def test_of_headers_the_names_are_shown() -> None:
    settings = Settings(openai_custom_headers=f"api-key: {SECRET}\r\nX-Title : a: b\n")
    assert settings.shown()["openai_custom_headers"] == "api-key: ***\nX-Title: ***"


@pytest.mark.parametrize("url", [*URLS[:2], "https://me:hunter2@gateway:8080/v1"])
def test_the_rest_of_a_url_with_a_secret_is_shown(url: str) -> None:
    assert Settings(database_url=url).shown()["database_url"] == url.replace(SECRET, "***")


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_refusal_never_quotes_a_secret(name: str) -> None:
    """Whatever else is wrong, keys and URLs do not get into the message."""
    secrets = {
        "CHATSERVER_AUTH": "jwt",
        "CHATSERVER_JWT_SECRET": SECRET * 5,
        "OPENAI_API_KEY": SECRET,
        "OPENAI_CUSTOM_HEADERS": f"api-key: {SECRET}",
        "CHATSERVER_DATABASE_URL": URLS[0],
        "OPENAI_BASE_URL": API_URLS[0],
    }
    try:
        load(secrets | {"CHATSERVER_REDIS_URL": f"redis://:{SECRET}@cache"} | {variable(name): f"\0{SECRET}"})
    except SettingsError as refusal:
        message = str(refusal)
    else:
        message = ""
    assert SECRET not in message or name == "host"
