"""Where a measurement was made: what somebody needs to make it again, or to know why theirs came out otherwise."""

import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from chatserver.bench.observations import Environment

PACKAGES = ("chatserver", "litestar", "uvicorn", "uvloop", "httptools", "websockets", "openai", "msgspec")


def environment(**facts: str) -> Environment:
    """This machine and this command; ``facts`` are added."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    if command.startswith("__main__.py"):
        command = command.replace("__main__.py", f"python -m {_module()}", 1)
    known = {
        "commit": _commit(),
        "CPU": _cpu(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }
    if hasattr(os, "getloadavg"):
        known["load before"] = f"{os.getloadavg()[0]:.2f}"
    return Environment(command, datetime.now(UTC).isoformat(timespec="seconds"), known | versions(PACKAGES) | facts)


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Those of them that are installed."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else ""


def _commit() -> str:
    """The commit of a checkout, with a + where files differ from it; of an installed package there is none."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "–"


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
