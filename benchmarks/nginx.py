"""nginx in front of a server, set up as README says."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.servers import free_port, pinned

CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; worker_rlimit_nofile 30000;
events {{ worker_connections 20000; }}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{server_port};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
}}
"""


def binary() -> str | None:
    """Where nginx is; None where it is not installed."""
    return shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


@contextmanager
def before(server_port: int, core: int) -> Iterator[int]:
    """The port of an nginx that passes all on to a server, until the end of the block."""
    command, port = binary(), free_port()
    assert command is not None  # noqa: S101 - asked before
    with tempfile.TemporaryDirectory(prefix="chatserver-nginx-") as folder:
        settings = Path(folder, "nginx.conf")
        settings.write_text(CONFIGURATION.format(folder=folder, port=port, server_port=server_port))
        process = pinned(core, command, "-p", folder, "-c", str(settings), stderr=subprocess.DEVNULL)
        try:
            time.sleep(0.2)
            yield port
        finally:
            process.terminate()
            process.wait(5)
