"""What stands in `deploy/` fits the program: units, image, compose and manifests are read, their commands are run."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml  # type: ignore[import-untyped]

from chatserver.settings import VARIABLES, Settings
from tests.clients import request
from tests.conftest import IS_FULL
from tests.live import ROOT, ServerProcess
from tests.program import Program
from tests.service_manager import GIVE, manager

pytestmark = pytest.mark.anyio

DEPLOY = ROOT / "deploy"
EXIT_SECONDS = 3.0
"""What a server has for its end after the time of the drain."""

STOP_SECONDS = Settings().drain_seconds + EXIT_SECONDS
HERE = f"{Path(sys.executable).parent}/chatserver"


def seconds(text: str) -> float:
    """A duration as compose and systemd write it."""
    return float(text.removesuffix("s"))


def test_what_readme_quotes_stands_in_the_file() -> None:
    (quoted,) = re.findall(r"^```nginx\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    lines = {line.strip() for line in (DEPLOY / "nginx.conf").read_text().splitlines()}
    assert [line for line in quoted.splitlines() if line not in lines] == []


def test_every_file_is_listed_and_exists() -> None:
    linked = set(re.findall(r"\]\(([\w.]+)\)", (DEPLOY / "README.md").read_text()))
    assert linked == {path.name for path in DEPLOY.iterdir()} - {"README.md"}


# ---- systemd --------------------------------------------------------------------------------------------------------


def unit(name: str) -> dict[str, str]:
    """The options of a unit."""
    return dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / name).read_text(), re.MULTILINE))


def test_the_units_are_sound(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    for name in ("chatserver.service", "chatserver.socket"):
        text = (DEPLOY / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/chatserver/.venv/bin/chatserver", HERE))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "chatserver.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_waits_for_the_drain() -> None:
    assert float(unit("chatserver.service")["TimeoutStopSec"]) > STOP_SECONDS
    assert unit("chatserver.socket")["ListenStream"] == f"{Settings().host}:{Settings().port}"


def test_systemd_never_gives_up() -> None:
    """With its defaults, five quick exits at the start of a machine would leave the unit failed for good."""
    service = unit("chatserver.service")
    assert service["StartLimitIntervalSec"] == "0" and float(service["RestartSec"]) >= 1


async def test_the_command_of_the_unit_serves_the_socket_of_the_unit(tmp_path: Path) -> None:
    service = unit("chatserver.service")
    program, *arguments = shlex.split(service["ExecStart"])
    assert (Path(program).name, arguments, service["Type"]) == ("chatserver", ["serve"], "notify")
    with manager(f"{tmp_path}/notify") as told:
        environment = told.environment | {"WATCHDOG_USEC": str(int(service["WatchdogSec"]) * 1_000_000)}
        async with ServerProcess(None, tmp_path, start=("-c", GIVE), environment=environment) as server:
            await told.hears("READY=1")
            assert server.stdout[0] == f"given {server.port}"
            server.terminate()
            await told.hears("STOPPING=1")
            assert await server.wait() == 0


# ---- the image ------------------------------------------------------------------------------------------------------


def instructions() -> Iterator[tuple[str, str]]:
    """The instructions of the Dockerfile."""
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            yield name, rest


def all_of(wanted: str) -> list[str]:
    return [rest for name, rest in instructions() if name == wanted]


def test_the_image_runs_without_root_and_installs_what_is_locked() -> None:
    assert all_of("USER")[-1] not in ("0", "root")
    locked, own = [command for command in all_of("RUN") if "pip install" in command]
    assert "--require-hashes" in locked and "--no-deps" in own and "--no-build-isolation" in own
    assert {*re.findall(r"CHATSERVER_\w+", all_of("ENV")[0])} <= {*VARIABLES}
    assert all_of("EXPOSE") == [str(Settings().port)]


def test_what_the_image_copies_exists() -> None:
    copied = [rest.split()[:-1] for rest in all_of("COPY") if not rest.startswith("--from")]
    assert [path for paths in copied for path in paths if not (ROOT / path).exists()] == []


def test_the_lock_of_the_image_agrees_with_the_others() -> None:
    def versions(path: Path) -> dict[str, str]:
        return dict(re.findall(r"^([a-z][\w.-]*)==(\S+)", path.read_text(), re.MULTILINE))

    image, core, everything = (
        versions(path)
        for path in (DEPLOY / "requirements.lock", ROOT / "requirements.lock", ROOT / "requirements-dev.lock")
    )
    assert core.items() <= image.items() <= everything.items()
    assert {"asyncpg", "redis", "hiredis"} <= image.keys()


if IS_FULL:  # It installs all packages: minutes, and the network.

    @pytest.mark.proof
    @pytest.mark.timeout(900)
    async def test_the_commands_of_the_image_make_a_server_that_is_healthy(tmp_path: Path) -> None:
        source, venv, data = tmp_path / "src", tmp_path / "venv", tmp_path / "data"
        source.mkdir()
        data.mkdir()
        stages = "\n".join(f"{name} {rest}" for name, rest in instructions()).split("FROM ")
        for name, _, rest in (line.partition(" ") for line in stages[1].splitlines()[1:]):
            if name == "COPY":
                *paths, target = rest.split()
                for path in paths:
                    _copy(ROOT / path, source / target)
            elif name == "RUN":
                command = shlex.split(rest.replace("/venv", str(venv)))
                command[0] = sys.executable if command[0] == "python" else command[0]
                await anyio.run_process(command, cwd=source)
        health = json.loads(all_of("HEALTHCHECK")[0].partition("CMD ")[2])
        command = json.loads(all_of("CMD")[0])
        server = _Image(data, [f"{venv}/bin/{command[0]}", *command[1:]])
        async with server:
            probe = [f"{venv}/bin/python", *health[1:-1], health[-1].replace(":8000", f":{server.port}")]
            await anyio.run_process(probe)
            server.terminate()
            assert await server.wait() == 0
        with pytest.raises(subprocess.CalledProcessError):
            await anyio.run_process(probe)


def _copy(source: Path, target: Path) -> None:
    """What COPY does: the content of a folder, or a file into a folder."""
    target.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


class _Image(Program):
    """The command of the image, on a free port."""

    def __init__(self, directory: Path, command: list[str]) -> None:
        super().__init__(directory)
        self._command = command
        self.port = 0

    async def start(self) -> "_Image":
        environment = {"CHATSERVER_HOST": "0.0.0.0", "CHATSERVER_INSECURE": "true", "PYTHONUNBUFFERED": "1"}
        pattern = re.compile(r"on http://127\.0\.0\.1:(\d+)")
        self.port = int((await self.launch(*self._command, "--port", "0", ready=pattern, environment=environment))[1])
        return self


# ---- compose and Kubernetes -----------------------------------------------------------------------------------------


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def test_compose_waits_for_the_drain_and_names_settings_that_exist() -> None:
    (compose,) = documents("compose.yaml")
    services = compose["services"]
    assert services.keys() == {"one", "two", "caddy", "redis", "postgres"}
    assert services["one"] == services["two"]
    assert seconds(services["one"]["stop_grace_period"]) > STOP_SECONDS
    environment = services["one"]["environment"]
    assert environment.keys() <= {*VARIABLES} and environment["CHATSERVER_AUTH"] == "jwt"
    used = set(re.findall(r"\{\$(\w+)", (DEPLOY / "Caddyfile").read_text()))
    assert services["caddy"]["environment"].keys() == used
    for needed in services.values():
        for name, condition in needed.get("depends_on", {}).items():
            is_checked = "healthcheck" in services[name] or "build" in services[name]
            assert condition == {"condition": "service_healthy"} and is_checked
    mounted = {volume.partition(":")[0] for each in services.values() for volume in each.get("volumes", [])}
    assert {name for name in mounted if not name.startswith(".")} == compose["volumes"].keys()
    assert [name for name in mounted if name.startswith(".") and not (DEPLOY / name).is_file()] == []


def test_the_manifests_are_whole_and_agree_with_each_other() -> None:
    deployment, service, budget = documents("kubernetes.yaml")
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    assert budget["spec"]["selector"]["matchLabels"] == labels
    (container,) = pod["spec"]["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"http": Settings().port}
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    assert {each["name"] for each in container["env"]} <= {*VARIABLES}
    assert {mount["name"] for mount in container["volumeMounts"]} == {each["name"] for each in pod["spec"]["volumes"]}
    (user,) = all_of("USER")
    assert pod["spec"]["securityContext"]["runAsUser"] == int(user)


def test_the_pod_is_given_the_time_of_the_drain() -> None:
    pod = documents("kubernetes.yaml")[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    sleep, before_seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert pod["terminationGracePeriodSeconds"] > float(before_seconds) + STOP_SECONDS
    ready = container["readinessProbe"]
    assert float(before_seconds) >= ready["periodSeconds"] * ready["failureThreshold"]


async def test_the_probes_ask_what_needs_neither_token_nor_host(tmp_path: Path) -> None:
    (container,) = documents("kubernetes.yaml")[0]["spec"]["template"]["spec"]["containers"]
    paths = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    secret = {"CHATSERVER_JWT_SECRET": "0" * 32, "CHATSERVER_AUTH": "jwt"}
    async with ServerProcess(None, tmp_path, environment=secret) as server:
        for path in paths:
            assert (await request(server, "GET", path, headers={"Host": "10.0.0.7:8000"})).status == 200
