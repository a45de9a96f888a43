# What can be done here: `.venv/bin/just` lists it. README has the two commands that work before .venv exists; where
# just itself is installed, every recipe below does too. Tools come from .venv, nothing has to be activated.

set positional-arguments

export PATH := justfile_directory() / ".venv/bin:" + env("PATH")

# Debian packages that tests use beyond Python's. Without them those tests are skipped, but never in CI.
debian_packages := "postgresql redis-server redis-sentinel chromium chromium-headless-shell haproxy nginx caddy prometheus"

# Twice as many as cores: tests wait for other processes for half of their time.
workers := `echo $((2 * $(getconf _NPROCESSORS_ONLN)))`

lock_command := "uv pip compile --quiet --system-certs --universal --python-version 3.11 --generate-hashes --no-emit-index-url --group build --custom-compile-command 'just lock'"

# list the recipes
_default:
    @just --list --unsorted

# start the server; options as in `chatserver serve --help`
serve *options: _package
    chatserver serve "$@"

# install what the tests need, then run them; arguments go to pytest: `just test tests/test_events.py -k fold`
test *arguments: _package _services _node _openai_agents
    pytest -n {{workers}} --dist loadfile --no-loadscope-reorder "$@"

# the promises of PROTOCOL.md at full length, one after the other: minutes, not seconds
proofs *arguments: _package _services _node
    CHATSERVER_PROOFS=full pytest -m proof --timeout 1800 "$@"

# the latency lab in full: 20 minutes; on fewer than 2 idle cores it says less. `just bench --only paced --against COMMIT`
bench *options: _package
    python -m benchmarks run "$@"

# does the lab work, and is every contender's answer whole? Under a minute, nothing about speed
bench-quick: _package
    python -m benchmarks run --quick

# a recording's report anew; of the newest one where none is named: `just bench-report FILE --compare OLDER`
bench-report *arguments: _package
    python -m benchmarks report "$@"

# rules of style and likely bugs
lint: _package
    ruff check .
    ruff format --check .

# strict types, of the package and of its tests
types: _package
    mypy

# rewrite the code in the one format, and mend what can be mended safely
format: _package
    ruff check --fix-only .
    ruff format .

# all that CI holds, the quick ones first
check: lint types test

# write the checked-in schemas and types anew from the events and commands
schema: _package _node
    #!/usr/bin/env bash
    set -euo pipefail
    chatserver schema clients
    mv clients/events.d.ts clients/resources.d.ts clients/web/
    made=$(mktemp -d) && trap 'rm -r "$made"' EXIT
    tests/web/node_modules/.bin/tsc --project clients/web --noEmit false --declaration --emitDeclarationOnly --stripInternal --outDir "$made"
    mv "$made/chatserver.d.ts" clients/web/

# draw the pictures of the page that README shows anew; needs Chromium
screenshots: _package _services
    python -m tests.screenshots

# resolve the locks anew after a change of pyproject.toml; `just lock --upgrade` takes the newest of everything
lock *options: _package
    {{lock_command}} "$@" --output-file requirements.lock pyproject.toml
    {{lock_command}} "$@" --all-extras --group dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
    {{lock_command}} "$@" --extra redis --extra postgres --extra otel --extra mcp --constraint requirements-dev.lock --output-file deploy/requirements.lock pyproject.toml
    sed '/^websockets==/,/[^\\]$/d' requirements-dev.lock | {{lock_command}} "$@" --group openai-agents --constraint - --output-file clients/examples/with_openai_agents.lock pyproject.toml

# .venv with all locked packages and the project itself, editable; nothing to do while neither has changed
_package:
    #!/usr/bin/env bash
    set -euo pipefail
    stamp=.venv/complete
    if [[ $stamp -nt requirements-dev.lock && $stamp -nt pyproject.toml ]]; then exit; fi
    [[ -x .venv/bin/pip ]] || python3 -m venv .venv
    pip install --quiet --requirement requirements-dev.lock
    pip install --quiet --no-deps --no-build-isolation --editable .
    touch "$stamp"

# the environment of the example whose SDK refuses the websockets of .venv; all other packages are the same there
_openai_agents: _package
    #!/usr/bin/env bash
    set -euo pipefail
    folder=.venv/openai-agents lock=clients/examples/with_openai_agents.lock
    if [[ $folder/complete -nt $lock && $folder/complete -nt pyproject.toml ]]; then exit; fi
    uv venv --quiet --clear --python .venv/bin/python "$folder"
    uv pip install --quiet --system-certs --require-hashes --compile-bytecode --python "$folder" --requirement "$lock"
    uv pip install --quiet --offline --no-deps --no-build-isolation --python "$folder" --editable .
    touch "$folder/complete"

# the npm packages that check the browser client, and MCP servers, as locked; Node 20 or newer is not installed here
_node:
    #!/usr/bin/env bash
    set -euo pipefail
    for folder in tests/web tests/mcp; do
        stamp=$folder/node_modules/.package-lock.json
        if [[ $stamp -nt $folder/package-lock.json ]]; then continue; fi
        if ! command -v npm >/dev/null; then echo "npm is not installed; tests that need Node are skipped"; exit; fi
        npm ci --prefix "$folder" --silent --no-audit --no-fund
        touch "$stamp"
    done

# the Debian packages, where this user may install them; otherwise a word about what will be skipped
_services:
    #!/usr/bin/env bash
    set -euo pipefail
    installed() { dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }
    missing=()
    for package in {{debian_packages}}; do
        installed "$package" || missing+=("$package")
    done
    if [[ ${#missing[@]} -eq 0 ]]; then exit; fi
    as_root=(env DEBIAN_FRONTEND=noninteractive)
    if [[ $(id -u) -ne 0 ]]; then as_root=(sudo --non-interactive "${as_root[@]}"); fi
    install() { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" apt-get install -qq --no-install-recommends "$@" >/dev/null; }
    if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
        echo "installing Debian packages for the tests: ${missing[*]}"
        if install "${missing[@]}"; then exit; fi
    fi
    echo "not installed, and not installable by this user on this machine: ${missing[*]}; tests that need them are skipped"
