"""The page at `/`: the files of the browser client, served unchanged, under a policy that allows no other source."""

from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.params import FromPath
from msgspec import Struct

from chatserver.errors import NotFound
from chatserver.routes.http import PUBLIC

FILES_PATH = "/web/"
"""Below this path, every file has the path that it has in its folder; the client's module too."""

INDEX = "page/index.html"

MEDIA_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)

PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",  # A looked-up name could carry text of the answer away.
}


class File(Struct, frozen=True):
    """A file as it is sent."""

    body: bytes
    media_type: str
    etag: str


def load_files(folder: Traversable) -> dict[str, File]:
    """The files of a folder with a known media type, by their path in the folder."""
    found: dict[str, File] = {}
    for each in folder.iterdir():
        if each.is_dir():
            found |= {f"{each.name}/{name}": file for name, file in load_files(each).items()}
        elif media_type := MEDIA_TYPES.get(Path(each.name).suffix):
            body = each.read_bytes()
            found[each.name] = File(body, media_type, f'"{sha256(body).hexdigest()[:32]}"')
    return found


def folder() -> Traversable:
    """The folder of the files: in an installed package beside the modules, in a checkout `clients/web`."""
    installed = files("chatserver") / "web"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "clients" / "web"


FILES = load_files(folder())


@get("/", opt={PUBLIC: True}, include_in_schema=False)
async def index(request: Request[str, Any, State]) -> Response[bytes]:
    """The page. Its references are relative, so its path must end in a slash, also below the path of a plugin."""
    if name := request.scope["raw_path"].rpartition(b"/")[2].decode("ascii", "replace"):
        return Response(b"", status_code=307, headers={"Location": f"./{name}/"})
    return _response(request, INDEX)


@get(f"{FILES_PATH}{{file:path}}", opt={PUBLIC: True}, include_in_schema=False)
async def file(request: Request[str, Any, State], file: FromPath[str]) -> Response[bytes]:
    """The files of the page, and the client's module for other pages of this origin."""
    return _response(request, str(file).removeprefix("/"))


def _response(request: Request[str, Any, State], name: str) -> Response[bytes]:
    found = FILES.get(name)
    if found is None:
        raise NotFound("there is no such file")
    headers = PAGE_HEADERS | {"ETag": found.etag}
    known = request.headers.get("if-none-match", "")
    if found.etag in {each.strip().removeprefix("W/") for each in known.split(",")}:
        return Response(b"", status_code=304, headers=headers, media_type=found.media_type)
    return Response(found.body, headers=headers, media_type=found.media_type)


ROUTES = [index, file]
