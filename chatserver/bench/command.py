"""The command `chatserver bench`: measure, show, draw."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from chatserver.bench import observations, page, report, tables
from chatserver.bench.client import CHAPTERS, Failed, Plan, measure
from chatserver.bench.connections import ConnectFailed, Target
from chatserver.bench.environment import environment


def run(
    url: str,
    out: Path,
    *,
    request: dict[str, Any],
    rounds: int,
    runs: int,
    headers: tuple[str, ...],
    as_json: bool,
) -> str | None:
    """Measure the server at a URL by runs of this request; a sentence about what went wrong, if anything did."""
    console = tables.console(is_for_people=not as_json)
    recording = out.with_suffix(".jsonl.gz")
    try:
        plan = Plan(Target.parse(url, headers), request, rounds, runs)
        writer = observations.Writer(recording)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{recording}: {error.strerror}"
    writer.write(environment(url=url, message=request["message"], rounds=str(rounds), runs=str(runs)))
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task("", total=3 * (rounds + 1))
            asyncio.run(measure(plan, writer.write, lambda turn: progress.update(bar, advance=1, description=turn)))
    except ConnectFailed as error:
        return f"{url} cannot be reached: {error}"
    except (Failed, msgspec.DecodeError) as error:
        return f"{url} does not answer as a chatserver does: {error}"
    except TimeoutError:
        return f"{url} did not answer in time"
    finally:
        writer.close()
    seen = observations.read(recording)
    out.write_text(page.html(seen, CHAPTERS))
    if as_json:
        print(msgspec.json.encode(report.document(seen, CHAPTERS)).decode())  # noqa: T201 - a program reads it
    else:
        tables.show(seen, CHAPTERS, console)
    console.print(f"\nobservations  {recording}\nreport        {out}")
    return None
