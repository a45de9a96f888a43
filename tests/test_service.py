"""Under a service manager: the socket that it gives, and what it is told."""

import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from chatserver.errors import SettingsError
from chatserver.serving.sockets import prepare
from chatserver.settings import Settings
from tests.clients import request
from tests.live import ServerProcess
from tests.program import until
from tests.service_manager import GIVE, manager

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


@pytest.mark.parametrize("kind", ["path", "abstract"])
async def test_a_given_socket_is_served_and_the_life_of_the_service_is_told(kind: str, tmp_path: Path) -> None:
    address = f"{tmp_path}/notify" if kind == "path" else f"@chatserver-test-{os.getpid()}"
    with manager(address) as service:
        environment = service.environment | {"WATCHDOG_USEC": "2000000"}  # Few: the queue of a socket has ten places.
        async with ServerProcess(None, tmp_path, start=("-c", GIVE), environment=environment) as server:
            await service.hears("READY=1")
            assert server.stdout[0] == f"given {server.port}"
            assert (await request(server, "GET", "/livez")).status == 200
            await service.hears("WATCHDOG=1")
            service.told.clear()
            await service.hears("WATCHDOG=1")
            if kind == "abstract":
                return
            os.kill(server.pid, signal.SIGHUP)
            successor = psutil.Process(int(await service.hears("MAINPID=")))
            try:
                await until(lambda: _has_ended(server))
                assert (await request(server, "GET", "/livez")).status == 200
                service.told.clear()
                await service.hears("WATCHDOG=1")
                assert set(service.told) == {"WATCHDOG=1"}, "the server that was replaced says nothing more"
            finally:
                successor.terminate()
            await service.hears("STOPPING=1")
            assert await server.wait() == 0


async def _has_ended(server: ServerProcess) -> bool:
    return not server.is_running


async def test_a_socket_for_another_process_is_left_alone(tmp_path: Path) -> None:
    async with ServerProcess(None, tmp_path, start=("-c", GIVE), environment={"ANOTHER": "1"}) as server:
        assert server.stdout[0] != f"given {server.port}"


async def test_what_is_no_listening_socket_of_tcp_is_refused_in_words() -> None:
    with socket.socket(socket.AF_UNIX) as local, socket.socket() as open_only:
        for sock in (local, open_only):
            with pytest.raises(SettingsError, match="LISTEN_FDS"):
                prepare(sock, Settings())
