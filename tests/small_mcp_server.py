"""A small MCP server over stdio, for tests: well-behaved, or wrong in one way. It is a program without packages.

``python small_mcp_server.py FAULT FOLDER``; the fault may be `none`. In the folder it keeps a journal of
what it is sent, one JSON document a line, and the ids of its processes.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

FAULT, FOLDER = sys.argv[1], Path(sys.argv[2])
LOCK = threading.Lock()
OBJECT: dict[str, Any] = {"type": "object", "properties": {}}
TOOLS: list[dict[str, Any]] = [
    {
        "name": "add",
        "description": "Add.",
        "inputSchema": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
        "annotations": {"readOnlyHint": True},
    },
    *(
        {"name": name, "inputSchema": OBJECT}
        for name in (
            "environment",
            "hang",
            "die",
            "fail",
            "refuse",
            "blocks",
            "lie",
            "huge",
            "ask",
            "ask_again",
            "insist",
            "open",
        )
    ),
    {
        "name": "work",
        "description": "Report progress.",
        "inputSchema": OBJECT,
        "annotations": {"destructiveHint": False},
    },
    {"name": "grow", "description": "Add a tool.", "inputSchema": OBJECT},
]
ODD: list[Any] = [
    None,
    {"inputSchema": OBJECT},
    {"name": "none"},
    {"name": "text", "inputSchema": "object"},
    {"name": "array", "inputSchema": {"type": "array"}},
    {"name": "number", "inputSchema": OBJECT | {"properties": {"a": 5}}},
    {"name": "dangling", "inputSchema": OBJECT | {"$ref": "#/$defs/nowhere"}},
    {"name": "result", "inputSchema": OBJECT, "outputSchema": {"type": 5}},
    {"name": "wordy", "inputSchema": OBJECT, "description": ["Do."]},
]
"""No tools, among those that are."""

FORM: dict[str, Any] = {"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]}
MODERN = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
"""What each result has in the version of 2026-07-28, which the server speaks where that is its fault."""

ASKING: dict[str, Any] = {}
"""The calls that have asked, by the id of the question."""

BLOCKS = [
    {"type": "text", "text": "Look:"},
    {"type": "image", "data": "AAAA", "mimeType": "image/png"},
    {"type": "resource_link", "uri": "file:///a", "name": "a"},
    {"type": "resource", "resource": {"uri": "file:///b", "text": "bee"}},
    {"type": "resource", "resource": {"uri": "file:///c", "blob": "AAA=", "mimeType": "a/b"}},
]


def write(document: Any) -> None:
    text = document if isinstance(document, str) else json.dumps(document | {"jsonrpc": "2.0"})
    with LOCK:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def note(document: Any) -> None:
    with (FOLDER / "journal").open("a") as journal:
        journal.write(json.dumps(document) + "\n")


def called(id: Any, name: str, params: dict[str, Any]) -> None:
    args = params.get("arguments", {})
    match name:
        case "add":
            text(id, str(args["a"] + args["b"]))
        case "environment":
            result(id, {"content": [], "structuredContent": dict(os.environ) | {"cwd": str(Path.cwd())}})
        case "hang":
            pass
        case "die":
            sys.stderr.write("I am gone\n")
            sys.stderr.flush()
            os._exit(3)
        case "fail":
            result(id, {"content": [{"type": "text", "text": "no such file"}], "isError": True})
        case "refuse":
            write({"id": id, "error": {"code": -32000, "message": "the disk is full"}})
        case "blocks":
            result(id, {"content": BLOCKS})
        case "lie":
            result(id, {"content": "not a list"})
        case "huge":
            text(id, "x" * (5 << 20))
        case "work":
            token = params["_meta"]["progressToken"]
            for step in (1, 2):
                progress = {"progressToken": token, "progress": step, "total": 2, "message": f"step {step}"}
                write({"method": "notifications/progress", "params": progress})
            text(id, "worked")
        case "ask":
            ask(id, {"message": "Which size?", "requestedSchema": FORM})
        case "open":
            ask(id, {"mode": "url", "message": "Sign in", "url": "https://example.org/", "elicitationId": "1"})
        case "ask_again" if "inputResponses" in params:
            text(id, json.dumps([params["requestState"], params["inputResponses"]]))
        case "ask_again" | "insist":
            question = {"method": "elicitation/create", "params": {"message": "Which?", "requestedSchema": FORM}}
            result(
                id, {"resultType": "input_required", "inputRequests": {"size": question}, "requestState": "by heart"}
            )
        case "grow":
            TOOLS.append({"name": f"grown{len(TOOLS)}", "inputSchema": OBJECT})
            write({"method": "notifications/tools/list_changed"})
            text(id, "grown")


def ask(id: Any, params: dict[str, Any]) -> None:
    ASKING[f"q{id}"] = id
    write({"id": f"q{id}", "method": "elicitation/create", "params": params})


def result(id: Any, document: dict[str, Any]) -> None:
    write({"id": id, "result": MODERN | document if FAULT == "modern" else document})


def text(id: Any, words: str) -> None:
    result(id, {"content": [{"type": "text", "text": words}]})


def listed(params: dict[str, Any]) -> dict[str, Any]:
    if FAULT == "many":
        page = int(params.get("cursor", "0"))
        names = [f"tool{page}_{number}" for number in range(50)]
        return {"tools": [{"name": name, "inputSchema": OBJECT} for name in names], "nextCursor": str(page + 1)}
    return {"tools": [*ODD, *TOOLS] if FAULT == "odd" else TOOLS}


def answer(message: dict[str, Any]) -> None:
    id, params = message.get("id"), message.get("params") or {}
    match message.get("method"):
        case None if id in ASKING:
            text(ASKING.pop(id), json.dumps(message.get("result") or message["error"]["message"]))
        case "server/discover" if FAULT == "modern":
            result(id, {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}})
        case "initialize":
            capabilities = {"tools": {"listChanged": True}}
            about = {"name": "small", "version": "1"}
            version = "2025-06-18"
            result(id, {"protocolVersion": version, "capabilities": capabilities, "serverInfo": about})
        case "tools/list":
            result(id, listed(params))
        case "tools/call":
            called(id, params["name"], params)
        case str(method) if id is not None:
            write({"id": id, "error": {"code": -32601, "message": f"no {method}"}})


def flood() -> None:
    """Say that the tools have changed, as fast as it goes."""
    while True:
        write({"method": "notifications/tools/list_changed"})


def begin() -> None:
    keep_pid(os.getpid())
    match FAULT:
        case "exit":
            sys.stderr.write("a word\nno such port\n")
            sys.exit(2)
        case "mute":
            time.sleep(3600)
        case "banner":
            write('Welcome to the small server!\n{"jsonrpc": "1.0"}\n[]\n{"jsonrpc": "2.0", "id": 77, "result": {}}')
        case "endless":
            while True:
                sys.stdout.write("x" * 65536)
        case "immortal":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
            keep_pid(subprocess.Popen([sys.executable, "-S", "-c", ignoring]).pid)


def keep_pid(pid: int) -> None:
    with (FOLDER / "pids").open("a") as pids:
        pids.write(f"{pid}\n")


begin()
for line in sys.stdin:
    asked = json.loads(line)
    note(asked)
    if asked.get("method") == "notifications/initialized" and FAULT == "flood":
        threading.Thread(target=flood, daemon=True).start()
    answer(asked)
if FAULT == "immortal":
    time.sleep(3600)
