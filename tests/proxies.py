"""The proxies of `deploy/`, real ones with the configuration that stands there, before the servers of a test."""

import asyncio
import os
import re
import shutil
import signal
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import psutil
import pytest
from anyio.abc import Process
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.clients import Address
from tests.live import ROOT
from tests.program import until

PROXIES = ("caddy", "haproxy", "nginx")
FILES = {"caddy": "Caddyfile", "haproxy": "haproxy.cfg", "nginx": "nginx.conf"}

NGINX_MAIN = """
{user}
daemon off;
pid {folder}/pid;
error_log {folder}/log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {config}
}}
"""

CADDY_MAIN = """
{{
	admin unix/{folder}/admin
	skip_install_trust
	auto_https disable_redirects
}}
{config}
"""


@dataclass(frozen=True)
class Proxy:
    """A proxy that listens on this address."""

    program: str
    host: str
    port: int
    process: Process
    folder: Path
    environment: Mapping[str, str]

    async def reload(self) -> None:
        """Let it read its configuration anew, and wait until it has."""
        if self.program == "caddy":
            config = f"{self.folder}/config"
            address = f"unix/{self.folder}/admin"
            command = ["caddy", "reload", "--adapter", "caddyfile", "--config", config, "--address", address, "--force"]
            await anyio.run_process(command, env=self.environment)
            return
        main = psutil.Process(self.process.pid)
        before = {each.pid for each in main.children()}

        async def is_new() -> bool:
            return any(each.pid not in before for each in main.children())

        main.send_signal(signal.SIGUSR2 if self.program == "haproxy" else signal.SIGHUP)
        await until(is_new)


Change = Callable[[str], str]


@asynccontextmanager
async def running(
    program: str, *servers: Address, is_tls: bool = False, change: Change = lambda config: config
) -> AsyncIterator[Proxy]:
    """A proxy until the end of the block; ``change`` is what is done to its configuration."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="chatserver-proxy-") as name:
        folder = Path(name)
        _write_certificate(folder)
        config = change((ROOT / "deploy" / FILES[program]).read_text())
        (folder / "config").write_text(_here(program, config, servers, port, folder, is_tls))
        environment = os.environ | {"XDG_DATA_HOME": name, "XDG_CONFIG_HOME": name, "HOME": name}
        environment["CHATSERVER_SITE"] = f"{'https' if is_tls else 'http'}://127.0.0.1:{port}"
        environment["CHATSERVER_UPSTREAMS"] = " ".join(f"{each.host}:{each.port}" for each in servers)
        process = await anyio.open_process(
            _command(program, found, folder), stdin=None, stdout=None, stderr=None, env=environment
        )
        async with process:
            try:
                proxy = Proxy(program, "127.0.0.1", port, process, folder, environment)
                await until(lambda: _answers(proxy, is_tls))
                yield proxy
            finally:
                process.terminate()


def _command(program: str, found: str, folder: Path) -> list[str]:
    config = f"{folder}/config"
    if program == "caddy":
        return [found, "run", "--adapter", "caddyfile", "--config", config]
    return [found, "-W", "-f", config] if program == "haproxy" else [found, "-p", str(folder), "-c", config]


def _here(program: str, config: str, servers: Sequence[Address], port: int, folder: Path, is_tls: bool) -> str:
    """A configuration for this machine: free ports, a certificate of our own, and no TLS where none is wanted."""
    listen = f"127.0.0.1:{port}"
    first, second = (f"{each.host}:{each.port}" for each in (servers[0], servers[-1]))
    for written, here in {
        "127.0.0.1:8000": first,
        "127.0.0.1:8001": second,
        "bind :443 ssl crt /etc/haproxy/chat.example.org.pem alpn h2,http/1.1": (
            f"bind {listen} ssl crt {folder}/both.pem alpn h2,http/1.1" if is_tls else f"bind {listen}"
        ),
        "listen 443 ssl http2": f"listen {listen} ssl http2" if is_tls else f"listen {listen}",
        "server_name chat.example.org;": "",
        "/etc/ssl/chat.example.org.crt": f"{folder}/crt",
        "/etc/ssl/chat.example.org.key": f"{folder}/key",
    }.items():
        config = config.replace(written, here)
    assert re.search(r":443\b|example\.org/", config) is None
    if program == "nginx":
        return NGINX_MAIN.format(folder=folder, config=config, user="user root;" if os.getuid() == 0 else "")
    return CADDY_MAIN.format(folder=folder, config=config) if program == "caddy" else config


def _write_certificate(folder: Path) -> None:
    """A certificate that nobody has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for file, data in {"crt": certificate, "key": private, "both.pem": certificate + private}.items():
        (folder / file).write_bytes(data)


async def _answers(proxy: Proxy, is_tls: bool) -> bool:
    """Whether it listens, and has found a server."""
    context = ssl._create_unverified_context() if is_tls else None
    try:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port, ssl=context)
    except OSError:
        return False
    writer.write(f"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:{proxy.port}\r\nConnection: close\r\n\r\n".encode())
    head = await reader.readline()
    writer.close()
    return b" 200 " in head
