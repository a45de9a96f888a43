"""Tokens: which are good, by a secret and by a key set; where they may be; what becomes of streams when they expire."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic, time
from typing import Any

import anyio
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from chatserver.auth import tokens
from chatserver.auth.tokens import Identity, KeySet, Secret, _Claims
from chatserver.errors import Unauthenticated, Unavailable
from tests.clients import (
    SSE,
    TRANSPORTS,
    WS,
    BrokenError,
    ClosedError,
    HandshakeRefusedError,
    HttpReader,
    RefusedError,
    Transport,
    WsReader,
    documents_of,
    request,
)
from tests.fake_upstream import Done, FakeUpstream, Gate, finish, say
from tests.fake_upstream import token as said
from tests.live import LiveServer
from tests.tcp_server import HOST, tcp_server
from tests.users import OTHER_SECRET, SECRET, bearer, guarded_server, of, token, unsigned

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 15.0
EXPIRY_SECONDS = 5.0
"""What the contract gives a stream whose token has expired."""

ANYTHING = _Claims(None, None)


async def identity(credential: str, audience: str | None = None, issuer: str | None = None) -> Identity:
    return await Secret(SECRET, _Claims(audience, issuer)).identity(credential)


# ---- what a token says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["a", "ann@example.org", "auth0|5f7c8ec7", "Łukasz Ω 語", "x" * 255])
async def test_the_subject_is_the_user(user: str) -> None:
    assert (await identity(token(user))).user == user


@pytest.mark.parametrize(
    "user", ["", " ", "  ", "local", "x" * 256, "a\0b", "a\nb", "\x7f", "\u2028", "\ud800", 5, True, ["ann"], {"a": 1}]
)
async def test_a_subject_that_is_no_name_is_nobody(user: Any) -> None:
    with pytest.raises(Unauthenticated):
        await identity(token(user))


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 0},
        {"exp": -1},
        {"exp": "soon"},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"exp": [9e9]},
        {"exp": "-1 s"},
        {"nbf": "+60 s"},
        {"iat": "+60 s"},
        {"nbf": "later"},
        {"aud": "somebody else"},
        {"aud": ""},
        {"aud": []},
        {"aud": [""]},
        {"aud": {}},
        {"aud": 0},
        {"aud": False},
    ],
    ids=str,
)
async def test_a_token_that_is_not_good_now_or_not_for_us_is_refused(claims: dict[str, Any]) -> None:
    moments = {"-1 s": time() - 1, "+60 s": time() + 60}
    with pytest.raises(Unauthenticated):
        await identity(token(**{name: moments.get(str(value), value) for name, value in claims.items()}))


async def test_a_token_without_an_end_is_good_for_ever() -> None:
    found = await identity(jwt.encode({"sub": "ann"}, SECRET, "HS256"))
    assert (found.user, found.is_expired) == ("ann", False)


async def test_an_issuers_clock_may_be_a_little_ahead_but_the_end_is_the_end() -> None:
    assert (await identity(token(nbf=time() + 5, iat=time() + 5))).user == "ann"
    with pytest.raises(Unauthenticated):
        await identity(token(seconds=0))


async def test_audience_and_issuer_are_demanded_where_the_operator_names_them() -> None:
    for_us = token(aud=["chat", "mail"], iss="https://login")
    assert (await identity(for_us, "chat", "https://login")).user == "ann"
    for audience, issuer in ((None, None), ("other", None), ("chat", "https://else")):
        with pytest.raises(Unauthenticated):
            await identity(for_us, audience, issuer)
    for lacking in (token(aud="chat"), token(iss="https://login")):
        with pytest.raises(Unauthenticated):
            await identity(lacking, "chat", "https://login")


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
async def test_a_secret_is_for_one_algorithm(algorithm: str) -> None:
    with pytest.raises(Unauthenticated):
        await identity(jwt.encode({"sub": "ann", "exp": time() + 60}, SECRET * 2, algorithm))


@pytest.mark.parametrize(
    "credential",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "\0",
        "ä",
        unsigned(),
        unsigned(algorithm="HS256"),
        unsigned(algorithm=""),
        "x" * 30000,
    ],
    ids=lambda text: repr(text[:20]),
)
async def test_what_is_no_token_is_refused(credential: str) -> None:
    with pytest.raises(Unauthenticated):
        await identity(credential)


async def test_no_byte_of_a_token_can_be_changed() -> None:
    good = token(seconds=600)
    for at in range(0, len(good), 3):
        if good[at] == ".":
            continue
        changed = good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :]
        with pytest.raises(Unauthenticated):
            await identity(changed)


# ---- key sets -------------------------------------------------------------------------------------------------------


class Issuer:
    """Signs tokens with keys of its own, and serves the public ones at ``url``."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[Any, str]] = {}
        self.more: list[dict[str, Any]] = []
        self.fetches = 0
        self.hangs: asyncio.Event | None = None
        self._asked = asyncio.Event()
        self.answer: Callable[[], bytes] = self.document
        self.url = ""

    def add(self, kid: str, key: Any, algorithm: str) -> None:
        self.keys[kid] = key, algorithm

    def document(self) -> bytes:
        keys = []
        for kid, (key, algorithm) in self.keys.items():
            made = jwt.get_algorithm_by_name(algorithm)
            keys.append(json.loads(made.to_jwk(key.public_key())) | {"kid": kid, "alg": algorithm, "use": "sig"})
        return json.dumps({"keys": [*keys, *self.more]}).encode()

    def token(self, kid: str, seconds: float = 600, *, named: str | None = None, **claims: Any) -> str:
        key, algorithm = self.keys[kid]
        headers = {"kid": kid if named is None else named}
        return jwt.encode({"sub": "ann", "exp": time() + seconds} | claims, key, algorithm, headers=headers)

    async def asked_times(self, count: int) -> None:
        with anyio.fail_after(WAIT_SECONDS):
            while self.fetches < count:
                await self._asked.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.fetches += 1
        self._asked.set()
        self._asked = asyncio.Event()
        if self.hangs is not None:
            await self.hangs.wait()
        body = self.answer()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


RSA_KEY = rsa.generate_private_key(65537, 2048)


@asynccontextmanager
async def issuing() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    issuer.add("rsa", RSA_KEY, "RS256")
    issuer.add("ec", ec.generate_private_key(ec.SECP256R1()), "ES256")
    issuer.add("ed", ed25519.Ed25519PrivateKey.generate(), "EdDSA")
    async with tcp_server(issuer._serve) as port:
        issuer.url = f"http://{HOST}:{port}/keys"
        yield issuer


@asynccontextmanager
async def keeping_fresh(keys: KeySet, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """As the server does, but all the time."""
    monkeypatch.setattr(tokens, "KEYS_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(tokens, "KEYS_FRESH_SECONDS", 0.001)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keys.keep_fresh)
        yield
        tasks.cancel_scope.cancel()


async def test_public_keys_of_all_kinds_are_fetched_once() -> None:
    async with issuing() as issuer:
        keys = KeySet(issuer.url, ANYTHING)
        assert issuer.fetches == 0, "keys are fetched when they are needed"
        async with anyio.create_task_group() as tasks:
            for kid in (*issuer.keys, *issuer.keys):
                tasks.start_soon(keys.identity, issuer.token(kid))
        assert issuer.fetches == 1


async def test_no_token_can_choose_how_it_is_checked() -> None:
    """Public keys are known to everybody: as the secret of HS256 they would sign whatever one likes."""
    async with issuing() as issuer:
        keys = KeySet(issuer.url, ANYTHING)
        public = RSA_KEY.public_key()
        forms = [
            public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            public.public_bytes(Encoding.PEM, PublicFormat.PKCS1),
            public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        ]
        issuer.more = [{"kty": "oct", "kid": "shared", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "alg": "HS256"}]
        header, payload = (issuer.token("rsa").split("."))[:2]
        bad = [
            f"{header}.{payload}.",
            unsigned(),
            jwt.encode({"sub": "a", "exp": time() + 9}, b"secret" * 6, "HS256", {"kid": "shared"}),
        ]
        bad += [_hs256(form, "rsa") for form in forms]
        bad += [issuer.token("ec", named="rsa"), issuer.token("rsa", named="ec"), issuer.token("rsa", named="unknown")]
        bad += [jwt.encode({"sub": "a", "exp": time() + 9}, RSA_KEY, "PS256", {"kid": "rsa"})]
        bad += [jwt.encode({"sub": "a", "exp": time() + 9}, RSA_KEY, "RS256")]  # Three keys, and it names none.
        for credential in bad:
            with pytest.raises(Unauthenticated):
                await keys.identity(credential)
        assert (await keys.identity(issuer.token("rsa"))).user == "ann"


def _hs256(secret: bytes, kid: str) -> str:
    """PyJWT would refuse to make it."""
    import hmac
    from base64 import urlsafe_b64encode

    def part(data: bytes) -> str:
        return urlsafe_b64encode(data).decode().rstrip("=")

    head = part(json.dumps({"alg": "HS256", "kid": kid}).encode())
    signed = f"{head}.{part(json.dumps({'sub': 'ann', 'exp': time() + 600}).encode())}"
    return f"{signed}.{part(hmac.digest(secret, signed.encode(), 'sha256'))}"


async def test_a_new_key_is_found_and_unknown_ones_cause_few_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    async with issuing() as issuer:
        keys = KeySet(issuer.url, ANYTHING)
        await keys.identity(issuer.token("rsa"))
        for number in range(50):
            with pytest.raises(Unauthenticated):
                await keys.identity(issuer.token("rsa", named=f"unknown {number}"))
        assert issuer.fetches == 1
        issuer.add("new", ec.generate_private_key(ec.SECP384R1()), "ES384")
        monkeypatch.setattr(tokens, "KEYS_AGAIN_SECONDS", 0.0)
        assert (await keys.identity(issuer.token("new"))).user == "ann"
        assert issuer.fetches == 2


async def test_a_key_that_is_withdrawn_is_refused_when_the_set_is_fetched_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with issuing() as issuer:
        keys = KeySet(issuer.url, ANYTHING)
        old = issuer.token("ec")
        await keys.identity(old)
        del issuer.keys["ec"]
        await keys.identity(old)
        async with keeping_fresh(keys, monkeypatch):
            await issuer.asked_times(3)
            with pytest.raises(Unauthenticated):
                await keys.identity(old)
            assert (await keys.identity(issuer.token("rsa"))).user == "ann"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": []}',
        b'{"keys": 5}',
        b"\xff",
        b"x" * 300_000,
        b'{"keys": ["a"]}',
        b"[" * 200_000,
        b'{"keys": [{"kty": []}]}',
        b'{"keys": [{"kty": "EC", "crv": 5, "x": 1}]}',
        b'{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": [], "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}',
    ],
)
async def test_without_keys_nothing_can_be_checked_and_with_old_ones_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    async with issuing() as issuer:
        good = issuer.token("rsa")
        issuer.answer = lambda: answer
        keys = KeySet(issuer.url, ANYTHING)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await keys.identity(good)
        assert issuer.fetches == 1, "a server that is in trouble is not asked all the time"
        monkeypatch.setattr(tokens, "KEYS_AGAIN_SECONDS", 0.0)
        issuer.answer = issuer.document
        await keys.identity(good)
        issuer.answer = lambda: answer
        async with keeping_fresh(keys, monkeypatch):
            await issuer.asked_times(5)
            assert (await keys.identity(good)).user == "ann"


async def test_a_known_key_waits_for_nothing_and_an_unknown_one_for_one_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every five minutes, a key server that hung made good tokens wait for 5 s."""
    async with issuing() as issuer:
        keys, good = KeySet(issuer.url, ANYTHING), issuer.token("rsa")
        await keys.identity(good)
        issuer.hangs = asyncio.Event()
        unknown = [issuer.token("rsa", named=f"unknown {number}") for number in range(50)]
        issuer.add("new", ec.generate_private_key(ec.SECP256R1()), "ES256")
        fresh = asyncio.create_task(keys.identity(issuer.token("new")))
        leaving = asyncio.create_task(keys.identity(unknown[0]))
        async with keeping_fresh(keys, monkeypatch):
            await issuer.asked_times(2)
            flood = [asyncio.create_task(keys.identity(each)) for each in unknown]
            for _ in range(100):
                assert (await at_once(keys.identity(good))).user == "ann"
            leaving.cancel()
            await asyncio.wait([leaving])
            assert not any(each.done() for each in (fresh, *flood)) and issuer.fetches == 2
            issuer.hangs.set()
            assert (await fresh).user == "ann", "who left has not taken the fetch along"
            refused = await asyncio.gather(*flood, return_exceptions=True)
            assert {type(each) for each in refused} == {Unauthenticated}


async def at_once(identity: Awaitable[Identity]) -> Identity:
    """What needs no turn of the loop."""
    task = asyncio.ensure_future(identity)
    await asyncio.sleep(0)
    assert task.done()
    return task.result()


async def test_a_server_keeps_its_keys_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "KEYS_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(tokens, "KEYS_FRESH_SECONDS", 0.001)
    async with issuing() as issuer, guarded_server(None, jwt_secret=None, jwks_url=issuer.url) as server:
        headers = bearer(issuer.token("ec"))
        assert (await request(server, "GET", "/chat/sessions", headers=headers)).status == 200
        del issuer.keys["ec"]
        await issuer.asked_times(issuer.fetches + 2)
        assert (await request(server, "GET", "/chat/sessions", headers=headers)).status == 401


async def test_a_key_server_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    monkeypatch.setattr(tokens, "KEYS_TIMEOUT_SECONDS", 0.1)
    async with tcp_server(hang) as port:
        keys = KeySet(f"http://{HOST}:{port}/", ANYTHING)
        with anyio.fail_after(WAIT_SECONDS), pytest.raises(Unavailable):
            await keys.identity(jwt.encode({"sub": "a", "exp": time() + 9}, RSA_KEY, "RS256"))


async def test_a_server_with_a_key_set_lets_in_refuses_and_says_when_it_cannot_tell() -> None:
    async with issuing() as issuer, guarded_server(None, jwt_secret=None, jwks_url=issuer.url) as server:
        issuer.answer = lambda: b"trouble"
        headers = bearer(issuer.token("ed"))
        answer = await request(server, "GET", "/chat/sessions", headers=headers)
        assert (answer.status, answer.json["code"]) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) > 0
        with pytest.raises(HandshakeRefusedError) as refused:
            await WsReader.connect(server, headers=headers)
        assert (refused.value.status, refused.value.code) == (503, "unavailable")
    async with issuing() as issuer, guarded_server(None, jwt_secret=None, jwks_url=issuer.url) as server:
        for kid in issuer.keys:
            assert (await request(server, "GET", "/chat/sessions", headers=bearer(issuer.token(kid)))).status == 200
        assert (await request(server, "GET", "/chat/sessions", headers=of("ann"))).status == 401


# ---- where a token may be -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def server(anyio_backend: str) -> AsyncIterator[LiveServer]:
    async with FakeUpstream() as upstream, guarded_server(upstream.url) as live:
        upstream.always(*say("An answer."))
        yield live


def cookie(credential: str, **headers: str) -> dict[str, str]:
    return {"Cookie": f"theme=dark; chatserver_token={credential}; x"} | headers


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_is_known_in_any_case(server: LiveServer, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {token()}"}
    assert (await request(server, "GET", "/chat/sessions", headers=headers)).status == 200


async def test_a_cookie_is_good_for_reading_and_beside_an_origin_for_everything(server: LiveServer) -> None:
    own = {"Origin": server.url}
    assert (await request(server, "GET", "/chat/sessions", headers=cookie(token()))).status == 200
    assert (await request(server, "POST", "/chat/runs", {"message": "x"}, cookie(token(), **own))).status == 202
    async with await WsReader.connect(server, headers=cookie(token()), origin=server.url) as reader:
        assert await reader.command(type="send", message="x")


async def test_a_cookie_without_an_origin_changes_nothing(server: LiveServer) -> None:
    """A form of a foreign page in an old browser: the cookie comes along by itself."""
    answer = await request(server, "POST", "/chat/runs", {"message": "x"}, cookie(token()))
    assert (answer.status, answer.json["code"]) == (403, "forbidden")
    for method, path in (("POST", "/chat/tickets"), ("DELETE", "/chat/sessions/x"), ("PATCH", "/chat/sessions/x")):
        assert (await request(server, method, path, {"title": "x"}, cookie(token()))).status == 403
    with pytest.raises(HandshakeRefusedError) as refused:
        await WsReader.connect(server, headers=cookie(token()))
    assert refused.value.status == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
async def test_a_cookie_beside_a_foreign_origin_is_worth_nothing(server: LiveServer, origin: str) -> None:
    for method, path in (("GET", "/chat/sessions"), ("POST", "/chat/runs")):
        assert (await request(server, method, path, headers=cookie(token(), Origin=origin))).status == 403
    with pytest.raises(HandshakeRefusedError):
        await WsReader.connect(server, headers=cookie(token()), origin=origin)


async def test_a_bad_header_is_not_made_up_for_by_a_good_cookie(server: LiveServer) -> None:
    headers = cookie(token()) | bearer(token(secret=OTHER_SECRET))
    assert (await request(server, "GET", "/chat/sessions", headers=headers)).status == 401


async def test_a_token_in_a_url_is_no_credential(server: LiveServer) -> None:
    for name in ("token", "access_token", "ticket", "api_key"):
        assert (await request(server, "GET", f"/chat/sessions?{name}={token()}")).status == 401


async def test_an_allowed_origin_can_read_that_it_has_no_token() -> None:
    async with guarded_server(None, allowed_origins=("https://app.example",)) as live:
        answer = await request(live, "GET", "/chat/sessions", headers={"Origin": "https://app.example"})
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (401, "https://app.example")
        asks = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
        preflight = await request(live, "OPTIONS", "/chat/sessions", headers={"Origin": "https://app.example"} | asks)
        assert preflight.status in (200, 204)
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()


# ---- a token that expires -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS, ids=str)
async def test_a_stream_ends_with_its_token_and_a_new_one_takes_it_up_without_loss(transport: Transport) -> None:
    gate = anyio.Event()
    async with FakeUpstream() as upstream, guarded_server(upstream.url) as live:
        upstream.script(said("before "), Gate(gate), said("after"), finish(), Done())
        with anyio.fail_after(WAIT_SECONDS):
            old = of("ann", 1.0)
            expires_at = monotonic() + 1.0
            reading = await transport.start(live, {"message": "Hi"}, headers=old)
            first = await reading.take(2)
            if transport is WS:
                with pytest.raises(BrokenError, match="4401"):
                    await reading.next()
            else:
                assert await reading.next() is None
            assert 0 <= monotonic() - expires_at <= EXPIRY_SECONDS
            with pytest.raises((RefusedError, ClosedError), match="401"):
                await transport.attach(live, reading.run_id, 2, headers=old)
            run = (await request(live, "GET", f"/chat/runs/{reading.run_id}", headers=of("ann"))).json
            assert run["status"] == "running", "the run goes on, as after any disconnect"
            again = await transport.attach(live, reading.run_id, 2, headers=of("ann"))
            gate.set()
            rest = await documents_of(again)
        events = [json.loads(each) for each in (*first, *rest)]
        assert [each["seq"] for each in events] == list(range(1, len(events) + 1))
        assert (events[-1]["type"], "".join(each.get("content", "") for each in events)) == ("done", "before after")


async def test_plain_text_whose_token_expires_is_broken_off() -> None:
    """Ended cleanly, it would look like a whole answer."""
    async with FakeUpstream() as upstream, guarded_server(upstream.url) as live:
        upstream.script(said("Half"), Gate(anyio.Event()))
        headers = of("ann", 1.0) | {"Accept": "text/plain"}
        with anyio.fail_after(WAIT_SECONDS):
            async with await HttpReader.post(live, "/chat/stream", {"message": "Hi"}, headers) as reader:
                with pytest.raises(BrokenError):
                    await reader.read_all()
        assert bytes(reader.raw) == b"Half"


async def test_no_command_is_obeyed_with_a_token_that_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the moment before the clock has noticed."""
    async with guarded_server(None) as live:
        async with await WsReader.connect(live, headers=of("ann", 1.0)) as reader:
            reader.send({"type": "ping"})
            await reader.until("pong")
            monkeypatch.setattr(tokens, "time", lambda: time() + 2)
            reader.send({"type": "send", "message": "Hi"})
            with anyio.fail_after(WAIT_SECONDS):
                assert (await reader.closing()).code == 4401
        monkeypatch.undo()
        assert (await request(live, "GET", "/chat/sessions", headers=of("ann"))).json["sessions"] == []


async def test_a_stream_of_one_user_ends_alone() -> None:
    gate = anyio.Event()
    async with FakeUpstream() as upstream, guarded_server(upstream.url) as live:
        upstream.always(said("x"), Gate(gate), finish(), Done())
        with anyio.fail_after(WAIT_SECONDS):
            short = await SSE.start(live, {"message": "Hi"}, headers=of("ann", 1.0))
            long = [await SSE.start(live, {"message": "Hi"}, headers=of(user)) for user in ("ann", "bob")]
            long.append(await WS.attach(live, long[0].run_id, headers=of("ann")))
            while await short.next():
                pass
            gate.set()
            for reading in long:
                assert json.loads((await documents_of(reading))[-1])["type"] == "done"


def test_an_identity_without_an_end_has_none() -> None:
    assert not Identity("local").is_expired
    assert Identity("ann", time()).is_expired
