"""The documents say what the program does: each word of the wire, each setting, limit and room, in its place.

A claim is what must stand in one line of one section. Each is also tested on a document from which it was removed.
"""

import ast
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from posixpath import dirname, normpath
from typing import Any, NamedTuple, get_args

import msgspec
import pytest
from litestar.routes import HTTPRoute
from msgspec.structs import fields
from prometheus_client import CollectorRegistry

from chatserver.app import create_app
from chatserver.auth import Ticket
from chatserver.commands import COMMAND_TAGS, COMMAND_TYPES, CallAnswer, ChatRequest, checked_request, parse_command
from chatserver.errors import ChatError
from chatserver.events import EVENT_TYPES, BaseEvent, ErrorCode, FinishReason, Usage, decode
from chatserver.parts import ToolCallPart
from chatserver.providers.demo_script import FAULTS
from chatserver.replies import REPLY_TYPES
from chatserver.resources import (
    MessageResource,
    MessageStatus,
    ModelList,
    RunResource,
    RunStatus,
    SessionDetail,
    SessionPage,
    SessionResource,
)
from chatserver.runs.states import TRANSITIONS, Cause, State
from chatserver.settings import Settings, variable
from chatserver.strict_json import convert
from chatserver.telemetry.instruments import Instruments
from chatserver.tools.functions import FunctionTool
from chatserver.tools.loading import load_tools
from chatserver.transports.close_codes import PUBLISHED
from tests.test_architecture import ROOMS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "chatserver"
PROTOCOL = (ROOT / "PROTOCOL.md").read_text()
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


class Claim(NamedTuple):
    """These words stand together in a line of this section; no words: there is such a section."""

    section: str
    words: tuple[str, ...] = ()


def sections(document: str) -> dict[str, list[str]]:
    """The lines under each heading, up to the next one of any depth. What is fenced holds no headings."""
    found: dict[str, list[str]] = {"": []}
    here, is_code = "", False
    for line in document.splitlines():
        is_code ^= line.startswith("```")
        if line.startswith("#") and not is_code:
            here = line.lstrip("#").strip().replace("`", "")
            assert here not in found, f"two sections have the heading {here}"
            found[here] = []
        else:
            found[here].append(line)
    return found


def fenced(document: str, language: str) -> list[str]:
    """The blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)


def lacking(document: str, claims: list[Claim]) -> list[Claim]:
    """The claims that do not hold."""
    said = sections(document)
    return [claim for claim in claims if claim.section not in said or not _holds(said[claim.section], claim)]


def _holds(lines: list[str], claim: Claim) -> bool:
    return not claim.words or any(all(word in line for word in claim.words) for line in lines)


def without(document: str, claim: Claim) -> str:
    """The document with all that holds up a claim removed."""
    kept, here, is_code = [], "", False
    for line in document.splitlines():
        is_code ^= line.startswith("```")
        if line.startswith("#") and not is_code:
            here = line.lstrip("#").strip().replace("`", "")
            holds = not claim.words and here == claim.section
        else:
            holds = bool(claim.words) and here == claim.section and all(word in line for word in claim.words)
        if not holds:
            kept.append(line)
    return "\n".join(kept)


def tag(kind: type[msgspec.Struct]) -> str:
    return str(kind.__struct_config__.tag)


def names(kind: type[msgspec.Struct], section: str) -> list[Claim]:
    """Every field is named."""
    return [Claim(section, (f"`{name}`",)) for name in kind.__struct_fields__]


def rows(section: str, *values: Any) -> list[Claim]:
    """Every value begins a row of a table."""
    return [Claim(section, (f"| `{value}` |",)) for value in values]


def of_events() -> list[Claim]:
    claims = [Claim("Events", ("`type`",)), *names(BaseEvent, "Events")]
    for kind in EVENT_TYPES:
        own = [name for name in kind.__struct_fields__ if name not in BaseEvent.__struct_fields__]
        claims += [Claim(tag(kind)), *rows(tag(kind), *own)]
    claims += [*names(Usage, "done"), *names(ToolCallPart, "Parts"), *rows("done", *get_args(FinishReason))]
    return claims + rows("Run error codes", *get_args(ErrorCode))


def of_commands() -> list[Claim]:
    claims = rows("Starting a run", *ChatRequest.__struct_fields__)
    for kind in COMMAND_TYPES:
        claims += [Claim(tag(kind)), *names(kind, tag(kind))]
    return claims + [Claim(answer) for answer in ANSWERS]


def of_refusals() -> list[Claim]:
    claims = [Claim("Refusals", (f"| `{kind.code}` | {kind.status} |",)) for kind in refusals()]
    return claims + [
        Claim("Close codes", (f"| {each.code} |", "| yes" if each.may_return else "| no")) for each in PUBLISHED
    ]


def refusals(kind: type[ChatError] = ChatError) -> list[type[ChatError]]:
    """Every kind of refusal."""
    return [kind, *(below for each in kind.__subclasses__() for below in refusals(each))]


def of_routes() -> list[Claim]:
    claims = [Claim("WebSocket", ("`GET /chat/ws`",))]
    for route in create_app(Settings()).routes:
        path = re.sub(r":\w+}", "}", route.path)
        if isinstance(route, HTTPRoute) and not path.startswith("/schema"):
            claims += [
                Claim("HTTP routes", (f"| `{method} {path}` |",)) for method in route.methods - {"HEAD", "OPTIONS"}
            ]
    resources = [*names(RunResource, "Run"), *names(SessionDetail, "Session"), *names(MessageResource, "Session")]
    statuses = [("Run", each) for each in get_args(RunStatus)] + [("Session", each) for each in get_args(MessageStatus)]
    return claims + resources + [Claim(section, (f"`{status}`",)) for section, status in statuses]


def of_settings() -> list[Claim]:
    return [Claim("Settings", (f"| `{variable(each.name)}` | {_shown(each.default)} |",)) for each in fields(Settings)]


def _shown(default: object) -> str:
    if default in (None, "", ()):
        return "–"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:.15g}" if isinstance(default, float) else str(default)


INSIDE = {
    "providers/models.py": "how much of a list is read, and how much of it a log says",
    "providers/demo_script.py": "what the demo model says is no contract",
    "tools/demo.py": "what the demo model calls is no contract",
    "function_agent/hop.py": "how far an agent is ahead of its run",
    "function_agent/replay.py": "how much of what an agent says again is held back",
    "function_agent/agent_threads.py": "what wrong agents of the operator take",
    "tools/builtin.py": "a tool says in its result what it refuses",
    "transports/connections.py": "only spreads the clock's work",
}
"""Where a limit is that no client can meet."""


def of_limits() -> list[Claim]:
    claims = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).as_posix() in INSIDE:
            continue
        for name, value in _limits(ast.parse(path.read_text())):
            claims.append(Claim("Limits", (f"| `{name}` |", f"| {value:,.15g}")))
    return claims


def _limits(tree: ast.Module) -> Iterator[tuple[str, float]]:
    values: dict[str, Any] = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.endswith("_LIMIT"):
                values[name] = eval(compile(ast.Expression(value), name, "eval"), values)
                yield name, values[name]


def of_rooms() -> list[Claim]:
    modules = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    rooms = [f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")]
    return [Claim("Rooms", (f"`{name}`",)) for name in sorted(modules + rooms)]


def of_metrics() -> list[Claim]:
    made = vars(Instruments(CollectorRegistry())).values()
    claims = [Claim("Metrics", (f"| `{name}` | {_code(labels)} |",)) for name, labels in map(described, made)]
    return [*claims, Claim("Metrics", ("| `chatserver_build_info` | `version` |",))]


def described(instrument: Any) -> tuple[str, tuple[str, ...]]:
    """The name of a metric as a scrape has it, and its labels."""
    (family,) = instrument.describe()
    return family.name + "_total" * (family.type == "counter"), instrument._labelnames


def _code(labels: tuple[str, ...]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


ANSWERS: Mapping[str, frozenset[str]] = {tag(each): frozenset(each.__struct_fields__) for each in REPLY_TYPES}
"""What the server says over WebSocket beside events, and the fields that may be in it."""

IN_PROTOCOL = [
    *of_events(),
    *of_commands(),
    *of_refusals(),
    *of_routes(),
    *of_settings(),
    *of_limits(),
    *[Claim("Limits", (f"`{variable(each.name)}`",)) for each in fields(Settings) if each.name.startswith("max_")],
]
IN_README = [*of_settings(), *of_metrics(), *[Claim("The demo model", (f"| Fail with {each} |",)) for each in FAULTS]]

each_document = pytest.mark.parametrize(
    ("document", "claims"),
    [(PROTOCOL, IN_PROTOCOL), (README, IN_README), (ARCHITECTURE, of_rooms())],
    ids=["wire", "use", "inside"],
)


@each_document
def test_the_document_says_all_of_it(document: str, claims: list[Claim]) -> None:
    assert lacking(document, claims) == []


@each_document
def test_whatever_is_removed_is_missed(document: str, claims: list[Claim]) -> None:
    unmissed = [claim for claim in claims if not lacking(without(document, claim), [claim])]
    assert unmissed == []


def test_nothing_was_left_to_claim_by_mistake() -> None:
    """A list that became empty would hold for ever."""
    parts = (of_events, of_commands, of_refusals, of_routes, of_settings, of_limits, of_rooms)
    assert [part.__name__ for part in parts if len(part()) < 10] == []


def test_each_file_that_may_have_limits_of_its_own_has_some() -> None:
    assert [name for name in INSIDE if not list(_limits(ast.parse((PACKAGE / name).read_text())))] == []


def test_the_rooms_are_in_the_order_of_imports() -> None:
    rows = [line.split("|")[1] for line in sections(ARCHITECTURE)["Rooms"] if line.startswith("| `")]
    named = [name.removesuffix(".py").rstrip("/") for name in re.findall(r"`([^`]+)`", "".join(rows))]
    assert [name for name in named if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()] == list(ROOMS)


def test_the_table_of_a_run_is_that_of_the_machine() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in sections(ARCHITECTURE)["A run"] if "|" in line]
    causes, states = rows[0][1:], rows[2:]
    told = {(row[0], cause): after for row in states for cause, after in zip(causes, row[1:], strict=True)}
    said = {(state, cause): TRANSITIONS[state].get(cause, "–") for state, cause in product(State, Cause)}
    assert told == said


FILE = re.compile(r"(?:[\w.-]+/)+(?:[\w-]+\.\w+)?|[\w-]+\.(?:py|md|js|json|toml|lock)|justfile")


def missing_files(document: str) -> list[str]:
    """The files and folders, named in code font or linked to, that are neither in the package nor in the project."""
    prose = re.sub(r"^```.*?^```$", "", document, flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"`([^`\s]+)`", prose) + re.findall(r"\]\(([^)#:]+)", prose)
    files = {name for name in named if FILE.fullmatch(name)}
    assert len(files) > 10, "no files are found where many are named"
    return sorted(name for name in files if not (PACKAGE / name).exists() and not (ROOT / name).exists())


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_file_that_is_named_exists(name: str) -> None:
    assert missing_files((ROOT / name).read_text()) == []


@pytest.mark.parametrize("file", ["runs/attic.py", "attic/", "attic.md", "clients/web/attic.js"])
def test_a_file_that_does_not_exist_is_found(file: str) -> None:
    for mention in (f"`{file}`", f"[there]({file})"):
        assert missing_files(f"{ARCHITECTURE}\nSee {mention}.\n") == [file]


def absent_names(document: str) -> list[tuple[str, str]]:
    """Each "`NAME` in `FILE`" whose file does not have the name, or has it of another file."""
    said = re.findall(r"`([\w.]+)` (?:in|of) `([\w./-]+\.\w+)`", " ".join(document.split()))
    assert said, "no names are found where some are named"
    return [(name, file) for name, file in said if not set(name.split(".")) <= words_of(file)]


def words_of(file: str) -> set[str]:
    """The words of a file, without the names that the file has of other files of the package."""
    source = next(path for path in (PACKAGE / file, ROOT / file) if path.exists()).read_text()
    nodes = ast.walk(ast.parse(source)) if file.endswith(".py") else ()
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and str(node.module).startswith("chatserver")]
    return set(re.findall(r"\w+", source)) - {each.name for node in imports for each in node.names}


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_name_is_in_the_file_that_is_named_with_it(name: str) -> None:
    document = (ROOT / name).read_text()
    assert absent_names(document) == []
    assert absent_names(f"{document}\nThe table is `Run.TRANSITIONS`\nin `runs/run.py`.") == [
        ("Run.TRANSITIONS", "runs/run.py")
    ]


def unknown_names(document: str) -> list[str]:
    """The names in code font that stand nowhere in the sources; a setting's variable is a name of the program too."""
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    known = set(re.findall(r"\w+", "\n".join(path.read_text() for path in sources if path != Path(__file__))))
    known |= {variable(each.name) for each in fields(Settings)}
    named = re.findall(r"`([A-Za-z]\w*(?:\.[A-Za-z_]\w*)*)(?:\(\w*\))?`", document)
    return sorted({name for name in named if not set(name.split(".")) <= known})


def test_every_name_in_architecture_is_one_of_the_program() -> None:
    assert unknown_names(ARCHITECTURE) == []
    assert unknown_names(f"{ARCHITECTURE}\n`Attic.rummage` `CHATSERVER_ATTIC`") == ["Attic.rummage", "CHATSERVER_ATTIC"]


def test_the_pictures_of_readme_exist_in_light_and_dark() -> None:
    shown = re.findall(r'(?:src|srcset)="([^"]+)"', README) + re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert len(shown) == 3 and "prefers-color-scheme: dark" in README
    assert [path for path in shown if not (ROOT / path).is_file()] == []


def test_every_recipe_that_is_named_exists() -> None:
    recipes = set(re.findall(r"^([a-z][\w-]*)(?: [^:\n]*)?:", (ROOT / "justfile").read_text(), re.MULTILINE))
    for path in sorted(ROOT.glob("*.md")):
        named = set(re.findall(r"\bjust ([a-z][\w-]*)(?=[^`\n]*`)", path.read_text()))
        assert (path.name, named - recipes) == (path.name, set())


def examples(document: str) -> Iterator[dict[str, Any]]:
    """Every whole JSON object: in a block of its own, in a line of a session, in the body of a curl command.

    What an ellipsis shortens is not whole.
    """
    for block in fenced(document, "json"):
        yield json.loads(block)
    for block in [*fenced(document, "console"), *fenced(document, "text")]:
        for line in block.splitlines():
            found = re.search(r"^(?:data: |[<>] )?(\{.*})(?:\\n)?$|-d '(\{.*})'$", line)
            if found and "…" not in line:
                yield json.loads(found[1] or found[2])


def fault(document: dict[str, Any]) -> str | None:
    """What is wrong with an example; None: the program could have sent it, or would take it."""
    match document.get("type"):
        case "about:blank":
            return _fault_of_problem(document)
        case str(kind) if kind in {tag(each) for each in EVENT_TYPES}:
            try:
                event = decode(json.dumps(document).encode())
            except msgspec.ValidationError as error:
                return str(error)
            return None if _on_wire(event) == document else f"a `{kind}` has other fields"
        case str(kind) if kind in COMMAND_TAGS:
            return _refusal(document, parse_command)
        case str(kind) if kind in ANSWERS:
            return None if document.keys() <= ANSWERS[kind] | {"type"} else f"an `{kind}` has other fields"
        case None:
            kinds = (ModelList, RunResource, SessionDetail, SessionResource, SessionPage, Ticket)
            is_record = any(_is_whole(document, kind) for kind in kinds)
            bodies = [_refusal(document, partial(convert, kind=kind)) for kind in (CallAnswer, ChatRequest)]
            return None if is_record or None in bodies else bodies[-1]
        case kind:
            return f"nothing is of type {kind}"


def _fault_of_problem(document: dict[str, Any]) -> str | None:
    statuses = {kind.code: kind.status for kind in refusals()}
    if statuses.get(document.get("code", "")) != document.get("status"):
        return "no such code, or with another status"
    needed = {"type", "title", "status", "detail", "code"}
    fits = needed <= document.keys() <= needed | {"errors", "run_id", "retry_after"}
    return None if fits else "a problem has other fields"


def _refusal(document: dict[str, Any], read: Callable[[str], object]) -> str | None:
    try:
        asked = read(json.dumps(document))
        if isinstance(asked, ChatRequest):
            checked_request(asked, Settings().max_message_bytes, Settings().max_inline_bytes)
    except ChatError as error:
        return error.detail
    return None


def _on_wire(value: msgspec.Struct) -> dict[str, Any]:
    return msgspec.json.decode(msgspec.json.encode(value), type=dict[str, Any])


def _is_whole(document: dict[str, Any], kind: type[msgspec.Struct]) -> bool:
    try:
        return _on_wire(msgspec.convert(document, kind)) == document
    except msgspec.ValidationError:
        return False


@pytest.mark.parametrize("document", [PROTOCOL, README], ids=["wire", "use"])
def test_every_example_is_of_this_program(document: str) -> None:
    assert [(fault(example), example) for example in examples(document) if fault(example)] == []


def test_every_type_has_an_example() -> None:
    shown = {example.get("type") for block in fenced(PROTOCOL, "json") for example in [json.loads(block)]}
    types = {tag(kind) for kind in (*EVENT_TYPES, *COMMAND_TYPES)} | ANSWERS.keys()
    assert types - shown == set()


@pytest.mark.parametrize(
    "example",
    [
        '```json\n{"type": "token", "run_id": "a", "seq": 1}\n```',
        '```json\n{"type": "token", "run_id": "a", "seq": 1, "content": "a", "index": 0}\n```',
        '```json\n{"type": "chunk", "content": "a"}\n```',
        '```json\n{"type": "attach", "after": 1}\n```',
        '```json\n{"type": "accepted", "run": "a"}\n```',
        '```json\n{"session_id": "a", "title": "a"}\n```',
        '```json\n{"type": "about:blank", "title": "a", "status": 400, "detail": "a", "code": "too_large"}\n```',
        '```console\n< {"type":"done","run_id":"a","seq":1}\n```',
        '```console\n> {"type":"cancel"}\n```',
        '```text\ndata: {"type":"token"}\n```',
        """```console\n$ curl -N http://127.0.0.1/chat/stream -d '{"messages": []}'\n```""",
        """```console\n$ curl -N http://127.0.0.1/chat/stream -d '{"message": " "}'\n```""",
    ],
)
def test_a_wrong_example_is_found(example: str) -> None:
    assert [fault(each) for each in examples(f"{PROTOCOL}\n{example}\n") if fault(each)] != []


def commands_of(script: str) -> set[str]:
    """The lines of a script that install and test. `just check` is the linters and then what `just test` is."""
    return {
        line.removesuffix("check") + "test" if line.endswith("just check") else line for line in script.splitlines()
    }


def test_ci_calls_the_test_command_of_readme() -> None:
    assert re.search(r"^check:.*\btest$", (ROOT / "justfile").read_text(), re.MULTILINE)
    (command,) = [block.strip() for block in fenced(README, "sh") if block.endswith("just test\n")]
    script = (ROOT / ".ci" / "run").read_text()
    assert command in commands_of(script)
    assert command not in commands_of(script.replace("requirements-dev.lock", "requirements.lock"))


OF_THE_ENVIRONMENT = re.compile(
    r"(?:^|&& )(?:\$ )?(?:\w+=(?:'[^']*'|[^'\s])* )*"
    r"((?:chatserver|granian|hypercorn|just|pip|pytest|python|uvicorn) .*)",
    re.MULTILINE,
)
"""A command whose program is in `.venv/bin`, without that folder."""


def commands_not_found(document: str) -> list[str]:
    prose = re.sub(r"^```.*?^```$", "", document, flags=re.DOTALL | re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return OF_THE_ENVIRONMENT.findall("\n".join([*fenced(document, "sh"), *spans]))


def test_every_command_of_readme_is_found_as_it_is_typed() -> None:
    assert commands_not_found(README) == []
    for wrong in ("`pip install x`", "```sh\nA='b c' B=… chatserver serve\n```", "```sh\n$ python -m x\n```"):
        assert len(commands_not_found(f"{README}\n{wrong}\n")) == 1, wrong


async def test_the_tools_of_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = next(each for each in fenced(README, "python") if "TOOLS =" in each)
    reference = re.search(r"CHATSERVER_TOOLS=((\w+):\w+)", README)
    assert reference and f"`{reference[2]}.py`" in README
    (tmp_path / f"{reference[2]}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        tools = load_tools(reference[1])
    finally:
        sys.modules.pop(reference[2], None)
        importlib.invalidate_caches()
    assert tools.keys() == {"dice", "calculator", "clock"}
    dice = tools["dice"]
    assert isinstance(dice, FunctionTool)
    thrown = await dice.function(**dice.bind({"count": 3}))
    assert len(thrown) == 3 and set(thrown) <= set(range(1, 7))


def long_lines(document: str) -> list[str]:
    """The lines of prose with more than 120 characters; tables and what is fenced or indented cannot be wrapped."""
    prose = re.sub(r"^```.*?^```$", "", document, flags=re.DOTALL | re.MULTILINE)
    return [line for line in prose.splitlines() if len(line) > 120 and not line.startswith(("|", "    "))]


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")), ids=lambda path: path.name)
def test_prose_is_wrapped(path: Path) -> None:
    document = path.read_text()
    assert long_lines(document) == []
    assert long_lines(f"{document}\n{'word ' * 25}\n") == ["word " * 25]


OF_A_WORKPLACE = re.compile(
    r"(?<![\w.])/(?:work|tmp|root|home|opt|Users)/|\bissue \d|pypi|pythonhosted|npmjs|index-url", re.IGNORECASE
)
"""Folders of somebody's machine, numbers of a tracker, names of registries: nothing a reader could use."""


def test_documents_are_of_no_workplace() -> None:
    documents = sorted([*ROOT.glob("*.md"), *ROOT.glob("deploy/*.md"), *ROOT.glob("clients/*/*.md")])
    assert {"README.md", "PROTOCOL.md", "CHANGELOG.md", "ARCHITECTURE.md", "CONTRIBUTING.md"} <= {
        path.name for path in documents
    }
    assert [(path.name, OF_A_WORKPLACE.findall(path.read_text())) for path in documents] == [
        (path.name, []) for path in documents
    ]


@pytest.mark.parametrize("text", ["cd /home/ann/chat", "see issue 12", "https://pypi.org/simple", "(/tmp/x)"])
def test_what_is_of_a_workplace_is_found(text: str) -> None:
    assert OF_A_WORKPLACE.search(text)


def broken_links(document: str, documents: Mapping[str, str], folder: str = "") -> list[tuple[str, str]]:
    """Links, as (file, heading), to what is not there; without a file: to the document itself."""
    found = []
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document):
        text = documents.get(normpath(f"{folder}/{file}".lstrip("/"))) if file else document
        if text is None or (anchor and anchor not in _anchors(text)):
            found.append((file, anchor))
    return found


def _anchors(document: str) -> set[str]:
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in sections(document)}


def test_every_link_leads_somewhere() -> None:
    linked = ("*.md", "deploy/*", "clients/*/*.md", "clients/*/*.d.ts", "clients/examples/*.py", "benchmarks/*.svg")
    files = [path for pattern in linked for path in ROOT.glob(pattern)]
    documents = {path.relative_to(ROOT).as_posix(): path.read_text() for path in files}
    broken = {name: broken_links(text, documents, dirname(name)) for name, text in documents.items()}
    assert {name: links for name, links in broken.items() if links} == {}
    assert broken_links("[a](#b) [c](README.md#d) [e](F.md) [g](README.md)", documents) == [
        ("", "b"),
        ("README.md", "d"),
        ("F.md", ""),
    ]
