"""`python -m benchmarks`: run the lab, make its report, or just serve its model."""

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import goals, nginx, redis, upstream
from benchmarks.conductor import Conductor, Turn, chosen, record, turns
from benchmarks.processes import cores, raise_files_limit
from benchmarks.scenarios import CHAPTERS, COVER, SCENARIOS
from benchmarks.servers import LIMITS, checked_out
from benchmarks.verify import verify
from chatserver.bench import observations, page, tables
from chatserver.bench import report as reports
from chatserver.bench.environment import environment, versions
from chatserver.bench.schedule import Schedule

RESULTS = Path("bench")
SEED = 7
ROUNDS = 5
MINUTES = 25.0
COLUMNS = (
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.description}"),
)
PEERS = ("fastapi", "starlette", "sse-starlette", "httpx2", "pydantic")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The latency lab: this server, what one would otherwise write, and the floor, side by side."""


as_json = click.option("--json", "as_json", is_flag=True, help="Print the tables for programs.")


@main.command()
@click.option(
    "--quick", is_flag=True, help="A small part of everything, once: does the lab work? Its times say nothing."
)
@click.option("--only", multiple=True, type=click.Choice([each.name for each in SCENARIOS]), help="These scenarios.")
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True)
@click.option("--minutes", type=float, default=MINUTES, show_default=True, help="No turn begins later than this.")
@click.option("--against", metavar="COMMIT", help="Measure this server as it was at that commit too.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="Folder of the results."
)
@as_json
def run(
    quick: bool, only: tuple[str, ...], rounds: int, minutes: float, against: str | None, out: Path, as_json: bool
) -> None:
    """Measure, write down every observation, and report."""
    console = tables.console(is_for_people=not as_json)
    rounds = 1 if quick else rounds
    try:
        before = checked_out(against) if against else None
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    _warn(console)
    path = out / f"{'quick' if quick else 'bench'}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.jsonl.gz"
    writer = observations.Writer(path)
    writer.write(environment(**versions(PEERS), **_facts(before, rounds, raise_files_limit())))
    plan = list(turns(chosen(SCENARIOS, only, quick=quick), rounds, with_before=before is not None))
    with Conductor(SEED, before) as conductor:
        is_whole = _recorded(conductor, plan, minutes, writer, console)
    writer.close()
    _report(path, None, console, as_json)
    if quick and not is_whole:
        sys.exit(1)


def _warn(console: Console) -> None:
    """Tell what this machine lacks."""
    if nginx.binary() is None:
        console.print("nginx is not installed: nothing is measured behind it.", style="yellow")
    if redis.binary() is None:
        console.print("Redis is not installed: no nodes are measured.", style="yellow")
    server_core, load_core = cores()
    if server_core == load_core:
        console.print("There is one core only: the load takes its time from the servers.", style="yellow")


def _facts(before: Path | None, rounds: int, open_files: int) -> dict[str, str]:
    """What a recording says of its run, beside the machine and the versions."""
    server_core, load_core = cores()
    return {
        "before": before.name if before else "–",
        "rounds": str(rounds),
        "seed": str(SEED),
        "server on core": str(server_core),
        "load and model on core": str(load_core),
        "open files": str(open_files),
        "settings": " ".join(f"{name}={value}" for name, value in LIMITS.items()),
        "nginx": "not installed: nothing was measured behind it" if nginx.binary() is None else "installed",
        "Redis": "not installed: no nodes were measured" if redis.binary() is None else "installed",
    }


def _recorded(
    conductor: Conductor, plan: list[Turn], minutes: float, writer: observations.Writer, console: Console
) -> bool:
    """Check the contenders and take the turns of those that passed; whether all of them passed and nothing failed."""
    with Progress(*COLUMNS, console=console, refresh_per_second=1) as progress:
        task = progress.add_task("are the contenders' answers whole?", total=None)
        rejected = verify(conductor, {each.contender for each in plan})
        for line in rejected.values():
            console.print(f"rejected: {line}", style="red")
        plan = [each for each in plan if each.contender not in rejected]
        progress.update(task, total=len(plan), completed=0)
        failures = 0

        def on_turn(turn: Turn) -> None:
            step = f" {turn.step:,} {turn.scenario.chapter.steps}" if turn.step else ""
            progress.update(task, advance=1, description=f"{turn.scenario.name} {turn.contender.title}{step}")

        def write(observation: observations.Observation) -> None:
            nonlocal failures
            writer.write(observation)
            failures += bool(observation.refusal)

        left = record(conductor, plan, minutes * 60, write, on_turn)
    if left:
        console.print(f"Time was up: {left} of {len(plan)} turns are missing, the last rounds.", style="yellow")
    return not (failures or rejected)


@main.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("--compare", type=click.Path(path_type=Path, exists=True), help="An earlier recording.")
@as_json
def report(path: Path | None, compare: Path | None, as_json: bool) -> None:
    """The report of a recording, computed anew; without a name, of the newest one."""
    found = sorted(RESULTS.glob("bench-*.jsonl*"), key=lambda each: each.stat().st_mtime)
    if path is None and not found:
        raise click.ClickException(f"there is no recording in {RESULTS}/")
    _report(path or found[-1], compare, tables.console(is_for_people=not as_json), as_json)


def _report(path: Path, compare: Path | None, console: Console, as_json: bool) -> None:
    try:
        recording = observations.read(path)
        earlier = observations.read(compare) if compare else None
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    made = path.with_name(f"{name}.html")
    made.write_text(page.html(recording, CHAPTERS, earlier))
    picture = page.picture(recording, COVER)
    if picture:
        path.with_name(f"{name}.svg").write_text(picture)
    if as_json:
        document = reports.document(recording, CHAPTERS) | {"goals": goals.document(recording)}
        return click.echo(msgspec.json.encode(document))
    tables.show(recording, CHAPTERS, console, earlier)
    console.print(goals.table(recording))
    console.print(f"\nobservations  {path}\nreport        {made}")
    if picture:
        console.print(f"for README    {path.with_name(f'{name}.svg')}")


@main.command()
@click.option("--port", type=int, default=8100, show_default=True)
def model(port: int) -> None:
    """Serve the scripted model, as OPENAI_BASE_URL of whatever you like."""

    async def serve() -> None:
        async with upstream.serving(Schedule(), port) as served:
            click.echo(
                f"OPENAI_BASE_URL={served.url}  a message is e.g. lab:100,20,0,0 (tokens, a second, key, silence)"
            )
            await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
