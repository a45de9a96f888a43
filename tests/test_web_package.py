"""The browser client as a package: types, size, contents; and the client alone, against a hand-made server."""

import gzip
import json
import re
import subprocess
import tomllib
from pathlib import Path

import msgspec
import pytest

from chatserver import __version__
from chatserver.errors import BadJson, BadRequest, ChatError, Draining, RunActive, TooMany
from chatserver.replies import Problem, problem_of
from chatserver.transports.close_codes import CLOSE_CODES, PUBLISHED
from tests.live import ROOT
from tests.web_client import CLIENT, TOOLS, WEB, node, tool, wrong

SIZE_LIMIT_BYTES = 7500
"""A seventh of it answers calls that wait, and runs tools of the client once."""
SECONDS = 50


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def outcome(client: Path = CLIENT, name: str = ".") -> subprocess.CompletedProcess[str]:
    """The tests in ``tests/web`` whose names have this in them, a regular expression, of a client."""
    options = ("--test-reporter=tap", f"--test-name-pattern={name}")
    return run("env", f"CHATSERVER_CLIENT={client}", node(), *options, TOOLS / "client.test.mjs")


def test_the_client_alone() -> None:
    done = outcome()
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"^# pass (\d+)", done.stdout, re.MULTILINE)[0]) > 50


WRONG = {
    "closed with 1012 is come": ("1011, 1012,", "1011,"),
    "closed with 4401 is final": ("4408, 4429]", "4401, 4408, 4429]"),
    "429 with a header is obeyed": ("this.#mayHurry && this.#hurry()", "this.#hurry()"),
    "waits longer each time": ("    this.tries = 0;\n", ""),
    "and remembers": ("gotThrough.set(this.url, via)", "void via"),
    "comments and pings count": ("SILENT_HEARTBEATS = 2.5", "SILENT_HEARTBEATS = 2.3"),
    "drops a duplicate": ("event.seq <= this.cursor", "event.seq < this.cursor"),
    "LF, cut anywhere": ('text.endsWith("\\r")', "false"),
    "never|by GET|leaves a stream alone": ("this.#heardAt + this.chat.heartbeatMs - Date.now()", "-PATIENCE_MS"),
    "detached from, not cancelled": ('{ type: "detach", run_id: run.id }', '{ type: "cancel", run_id: run.id }'),
    "takes merged events": (".first_seq ?? event.seq", ".seq"),
    "read twice": ("!each.reader(run.id)", "true"),
    "asked for twice with one key": ("if (other && other !== run)", "if (!other)"),
    "in the order in which it happened": ("if (last?.type === type)", "if (last)"),
    "is read by one loop": ("this.#isRead = true;", ""),
    "after maxTries losses": ("tries >= maxTries", "tries > maxTries"),
    "line at the end of the stream is obeyed": ("    retryAfter = undefined;\n", ""),
    "refuses the answer": ("status === 409 && mayBeDone", "status === 409"),
    "that the log answers": ("!(await run.until(() => run.cursor >= lastSeq)) || signal.aborted", "signal.aborted"),
    "notes that it is run": ('note(name, "");', ""),
    "in one of the pages": ("locks ? locks.request(name, { signal }, once) : once()", "once()"),
    "leaves no timer behind": ("reader.cancel()", "Promise.reject()"),
    "numbers that a json of the page keeps": ("const message = chat.json", "const message = JSON"),
    "with its key": ("idempotency_key: idempotencyKey", "get idempotency_key() { return newKey(); }"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_fault_of_the_client_is_found(name: str, tmp_path: Path) -> None:
    done = outcome(wrong(tmp_path, WRONG[name]), name)
    assert done.returncode == 1
    failed = re.findall(r"^ *not ok \d+ - (.*)$", done.stdout, re.MULTILINE)
    assert any(re.search(name, each) for each in failed), failed


def test_it_is_typed_strictly() -> None:
    done = run(tool("tsc"), "--project", WEB)
    assert done.returncode == 0, done.stdout


def test_a_wrong_type_is_found(tmp_path: Path) -> None:
    wrong(tmp_path, ('this.#say("text", event.content)', 'this.#say("text", event.contents)'))
    for name in ("tsconfig.json", "events.d.ts", "resources.d.ts"):
        (tmp_path / name).write_bytes((WEB / name).read_bytes())
    assert "TS2551" in run(tool("tsc"), "--project", tmp_path).stdout


def test_its_declarations_are_those_of_its_source(tmp_path: Path) -> None:
    emit = ["--noEmit", "false", "--declaration", "--emitDeclarationOnly", "--stripInternal", "--outDir", str(tmp_path)]
    done = run(tool("tsc"), "--project", WEB, *emit)
    assert done.returncode == 0, done.stdout
    made, kept = (tmp_path / "chatserver.d.ts").read_text(), (WEB / "chatserver.d.ts").read_text()
    assert made == kept, "run `just schema`"


def test_who_uses_it_has_its_types(tmp_path: Path) -> None:
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "chatserver").symlink_to(WEB)
    (tmp_path / "use.ts").write_text(
        """
        import { connect, type Run, type State, type Wait } from "chatserver";
        import type { ChatEvent } from "chatserver/events";
        import type { MessageResource, RunResource, SessionDetail, SessionPage } from "chatserver/resources";
        import type { Problem, Ticket } from "chatserver/resources";

        const chat = connect("https://chat.example.org", { transport: "auto", token: async () => "t", json: JSON });
        const off: () => void = chat.on("state", (state: State, { delayMs }) => console.log(state, delayMs));
        const run: Run = chat.send("Hello", { sessionId: "s", idempotencyKey: "k" });
        const maybe: string | undefined = [run.text][1];
        chat.send("Hello", { sessionId: maybe, parentId: maybe, signal: undefined, temperature: undefined });
        chat.attach("run", { after: undefined });
        connect("https://chat.example.org", { token: undefined, WebSocket: undefined, maxTries: undefined });
        const wait: Wait | null = run.waits;
        console.log(wait?.reason.code.length, wait?.reason.retryAfter, wait?.until);
        for await (const event of run) {
          const any: ChatEvent = event;
          if (event.type === "token") console.log(event.content.length);
          // @ts-expect-error: only a token has it
          else console.log(event.content);
          if (event.type === "done") console.log(event.usage.input_tokens, any.seq);
        }
        const text: string = run.text;
        // @ts-expect-error: no such transport
        chat.transport = "carrier pigeon";
        const page: SessionPage = await (await chat.request("/chat/sessions")).json();
        const session: SessionDetail = await (await chat.request(`/chat/sessions/${page.cursor}`)).json();
        const newest: MessageResource | undefined = session.messages.at(-1);
        if (newest?.finish_reason === "length") console.log(newest.parent_id, newest.usage?.output_tokens);
        // @ts-expect-error: no such end
        if (newest?.finish_reason === "boredom") console.log(newest);
        const shown = (run: RunResource, { code, errors }: Problem, { ticket }: Ticket) =>
          [run.error?.code, code, errors?.[0]?.pointer, ticket];
        for (const { call_id, tool, args } of run.openCalls) console.log(call_id, tool, args.people);
        await run.answer("call", { approve: true, args: { people: 4 } });
        await run.answer("call", { result: [1], is_error: false });
        // @ts-expect-error: neither an approval nor a result
        await run.answer("call", { reason: "too late" });
        const run_ = async (args: { unit: string }) => args.unit;
        const size = { description: "", parameters: { type: "object" }, run: run_ };
        connect("https://chat.example.org", { tools: { size } }).send("Hello", { tools: ["size"] });
        await run.cancel();
        off();
        export { shown, text };
        """
    )
    options = [
        "--strict",
        "--exactOptionalPropertyTypes",
        "--noUncheckedIndexedAccess",
        "--noEmit",
        "--target",
        "es2022",
        "--module",
        "esnext",
        "--moduleResolution",
        "bundler",
    ]
    done = run(tool("tsc"), *options, "--types", "", "--lib", "es2023,dom,dom.iterable", tmp_path / "use.ts")
    assert done.returncode == 0, done.stdout


def test_what_may_be_absent_may_be_undefined() -> None:
    """For those who compile with `exactOptionalPropertyTypes`."""
    optional = re.findall(r"^ +\w+\?: (.*);$", (WEB / "chatserver.d.ts").read_text(), re.MULTILINE)
    assert len(optional) > 20
    assert [kind for kind in optional if not re.search(r"\| undefined$|^unknown$", kind)] == []


def test_it_knows_every_close_of_the_server_as_a_refusal() -> None:
    known = re.findall(r'^  (\d{4}): \[(\d{3}), "(\w+)"\],$', CLIENT.read_text(), re.MULTILINE)
    assert {int(code) for code, _, _ in known} == {each.code for each in PUBLISHED} - {1000}
    kinds: list[type[ChatError]] = [ChatError, *ChatError.__subclasses__()]
    refusals = {(kind.status, kind.code) for kind in kinds}
    assert {(int(status), word) for _, status, word in known} <= refusals


def test_it_comes_back_from_the_closes_that_the_server_says() -> None:
    (lost,) = re.findall(r"^const LOST_CODES = \[(.*)\];", CLIENT.read_text(), re.MULTILINE)
    assert [int(code) for code in lost.split(",")] == [each.code for each in CLOSE_CODES.values() if each.may_return]


def test_every_refusal_is_the_problem_that_is_typed() -> None:
    refusals = [
        BadJson("why"),
        BadRequest("why", "/message"),
        RunActive("run"),
        TooMany("why", retry_after=7),
        Draining(),
    ]
    for each in refusals:
        document = msgspec.to_builtins(problem_of(each))
        assert document.keys() <= set(Problem.__struct_fields__)
        assert msgspec.to_builtins(msgspec.convert(document, Problem)) == document


def test_it_is_small() -> None:
    minified = subprocess.run(
        [tool("esbuild"), CLIENT, "--minify", "--format=esm"], capture_output=True, timeout=SECONDS, check=True
    ).stdout
    size = len(gzip.compress(minified, 9, mtime=0))
    assert size <= SIZE_LIMIT_BYTES, f"{size} bytes"


def test_the_package_holds_what_it_promises() -> None:
    package = json.loads((WEB / "package.json").read_text())
    assert (package["name"], package["version"], package["type"]) == ("chatserver", __version__, "module")
    assert not [name for name in package if name.endswith("ependencies")]
    for entry in package["exports"].values():
        for path in [entry] if isinstance(entry, str) else entry.values():
            assert (WEB / path).is_file() and Path(path).name in package["files"]
    packed = json.loads(run("npm", "pack", "--dry-run", "--json", "--silent", WEB).stdout)
    (tarball,) = packed if isinstance(packed, list) else packed.values()
    assert {each["path"] for each in tarball["files"]} == {*package["files"], "package.json", "README.md", "LICENSE"}


def test_one_license_is_named_wherever_one_looks_for_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert json.loads((WEB / "package.json").read_text())["license"] == project["license"] == "MIT"
    assert project["license-files"] == ["LICENSE"]
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License\n") and text == (WEB / "LICENSE").read_text()


def test_its_readme_leads_nowhere_that_is_not_in_the_package() -> None:
    """A registry shows it without the repository around."""
    links = re.findall(r"\]\(([^)]*)\)", (WEB / "README.md").read_text())
    assert [link for link in links if not link.startswith(("#", "https://"))] == []


def test_it_needs_nothing() -> None:
    assert not re.findall(r"^\s*import\s|\brequire\(|\bimport\(", CLIENT.read_text(), re.MULTILINE)


def test_the_locked_packages_name_no_registry() -> None:
    assert "resolved" not in (TOOLS / "package-lock.json").read_text()
