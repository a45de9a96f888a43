"""The page's files: served with the policy that keeps them alone, in every install, under every path."""

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chatserver.routes.page import FILES, MEDIA_TYPES, POLICY, folder
from tests.clients import request
from tests.live import ROOT, LiveServer, live_server

WEB = ROOT / "clients" / "web"
PAGE = WEB / "page"

LINES_LIMIT = 300


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[LiveServer]:
    async with live_server(None) as server:
        yield server


@pytest.mark.parametrize("path", ["/", *(f"/web/{name}" for name in sorted(FILES))])
async def test_every_file_is_served_alone_and_checked_again(server: LiveServer, path: str) -> None:
    response = await request(server, "GET", path)
    body = (PAGE / "index.html").read_bytes() if path == "/" else (WEB / path.removeprefix("/web/")).read_bytes()
    assert (response.status, response.body) == (200, body)
    kind = MEDIA_TYPES[Path(path if path != "/" else "index.html").suffix]
    assert response.headers["content-type"] == (f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)
    assert response.headers["content-security-policy"] == POLICY
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-content-type-options"] == "nosniff"
    etag = response.headers["etag"]
    for known in (etag, f'"other", W/{etag}'):
        again = await request(server, "GET", path, headers={"If-None-Match": known})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
    other = await request(server, "GET", path, headers={"If-None-Match": '"other"'})
    assert other.status == 200
    head = await request(server, "HEAD", path)
    assert (head.status, head.body, head.headers["etag"]) == (200, b"", etag)


@pytest.mark.parametrize(
    "path", ["/web/", "/web/page", "/web/nothing.js", "/web/package.json", "/web/../README.md", "/web/%2e%2e/README.md"]
)
async def test_nothing_else_is_served(server: LiveServer, path: str) -> None:
    assert (await request(server, "GET", path)).status == 404


async def test_the_page_is_not_written_to(server: LiveServer) -> None:
    response = await request(server, "POST", "/", b"{}")
    assert (response.status, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize(("upstream", "is_demo"), [(None, True), ("http://127.0.0.1:9/v1", False)])
async def test_readiness_says_who_answers(upstream: str | None, is_demo: bool) -> None:
    async with live_server(upstream, model="m") as server:
        response = await request(server, "GET", "/readyz")
        about = {"login_url": None, "max_message_bytes": 32768, "max_inline_bytes": 524288}
        assert response.json == {"status": "ok", "model": "m", "is_demo": is_demo} | about


def sources(*suffixes: str) -> Iterator[Path]:
    return (path for path in sorted(PAGE.iterdir()) if path.suffix in suffixes)


def test_the_page_asks_nobody_else() -> None:
    for path in sources(".js", ".css", ".html"):
        text = path.read_text()
        assert set(re.findall(r"(?:https?:)?//\w[\w./]+", text)) <= {"http://www.w3.org/2000/svg"}, path
        assert "url(" not in text, path


def test_no_text_is_ever_taken_for_html() -> None:
    """The policy forbids it too; here it is said before a browser has to."""
    for path in sources(".js"):
        text = path.read_text()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "srcdoc",
        ):
            assert word not in text, (path, word)
    html = (PAGE / "index.html").read_text()
    assert "style=" not in html and "<style" not in html and " on" + "click" not in html
    assert html.count("<script") == html.count('<script type="module" src=') == 1


def test_every_file_is_used_and_can_be_read() -> None:
    everything = "".join(path.read_text() for path in sources(".js", ".html"))
    for path in sources(".js", ".css", ".svg"):
        assert f'{path.name}"' in everything, path
        assert len(path.read_text().splitlines()) <= LINES_LIMIT, path


def test_no_module_is_found_late() -> None:
    """What a module imports is asked for with the page itself, not when that module has come."""
    modules = {f"web/page/{path.name}" for path in sources(".js")} | {"web/chatserver.js"}
    html = (PAGE / "index.html").read_text()
    assert set(re.findall(r'(?:modulepreload" href|script type="module" src)="([^"]+)"', html)) == modules


def built(kind: str, source: Path, folder: Path) -> Path:
    code = f"import hatchling.build, sys; hatchling.build.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=source, check=True, stdout=subprocess.DEVNULL)
    return folder


def test_the_wheel_is_typed_and_holds_the_page(tmp_path: Path) -> None:
    """Built as an installer does it: through the sdist, and from a copy, since a build leaves files behind."""
    source = tmp_path / "source"
    kept = ("chatserver", "clients", "pyproject.toml", "README.md")
    for name in kept:
        path = ROOT / name
        ignore = shutil.ignore_patterns("node_modules", "__pycache__")
        shutil.copytree(path, source / name, ignore=ignore) if path.is_dir() else shutil.copy(path, source / name)
    (sdist,) = built("sdist", source, tmp_path).glob("*.tar.gz")
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    (wheel,) = built("wheel", unpacked, tmp_path).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {
            name.removeprefix("chatserver/web/") for name in archive.namelist() if name.startswith("chatserver/web/")
        }
        archive.extractall(tmp_path / "installed")
    assert names == set(FILES)
    assert (tmp_path / "installed" / "chatserver" / "py.typed").is_file()
    where = "import chatserver.routes.page as p; print(p.folder(), len(p.FILES))"
    done = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path / "installed", check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(tmp_path / "installed" / "chatserver" / "web"), str(len(FILES))]


def test_a_checkout_serves_what_is_written_there() -> None:
    assert folder() == WEB or not (ROOT / "chatserver" / "web").exists()
