"""What the lab says about numbers: equal contenders are equal, different ones are not, percentiles are exact."""

import json
import random
from pathlib import Path

import msgspec
import pytest

from benchmarks import goals
from benchmarks.scenarios import CHAPTERS
from chatserver.bench import observations, page, report, tables
from chatserver.bench.chapters import Chapter, latency
from chatserver.bench.environment import environment
from chatserver.bench.observations import Observation
from chatserver.bench.statistics import Metric, by_round, difference, histogram, percentile, ratio

CPU = Metric("cpu_us_per_token", "CPU", "µs")


def rounds(source: random.Random, middle: float, count: int = 5) -> dict[int, float]:
    return {number: middle * source.lognormvariate(0, 0.1) for number in range(1, count + 1)}


def verdicts(factor: float, count: int) -> list[str]:
    """What is said of 100 pairs of contenders, one of which costs ``factor`` times the other."""
    source = random.Random(1)
    compared = (ratio(rounds(source, 100 * factor, count), rounds(source, 100, count)) for _ in range(100))
    return [each.verdict for each in compared if each is not None]


@pytest.mark.parametrize("count", [5, 10])
def test_equal_contenders_come_out_as_no_measurable_difference(count: int) -> None:
    assert verdicts(1.0, count).count("no measurable difference") >= 100 * 0.9


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_different_contenders_come_out_different(factor: float) -> None:
    assert verdicts(factor, 5).count("higher" if factor > 1 else "lower") >= 100 * 0.99


def test_what_the_machine_did_to_both_is_taken_out() -> None:
    """A machine that is five times slower in some rounds, and a contender that is 10 % dearer in all."""
    weather = [1.0, 5.0, 1.2, 3.0, 1.1]
    ours = {number: 110 * each for number, each in enumerate(weather)}
    theirs = {number: 100 * each for number, each in enumerate(weather)}
    compared = ratio(ours, theirs)
    assert compared is not None and compared.verdict == "higher" and compared.middle == pytest.approx(1.1)


def test_few_rounds_are_no_verdict() -> None:
    compared = difference({1: 5.0, 2: 5.0}, {1: 1.0, 2: 1.0})
    assert compared is not None and compared.middle == 4.0 and compared.verdict == "only 2 rounds"


def test_rounds_that_only_one_has_do_not_count() -> None:
    compared = ratio({1: 4.0, 2: 4.0, 3: 9.0}, {1: 2.0, 2: 2.0})
    assert compared is not None and (compared.middle, compared.rounds) == (2.0, 2)
    assert ratio({1: 4.0}, {2: 2.0}) is None


def test_percentiles_are_those_of_the_samples() -> None:
    samples = list(range(1, 1001))
    random.Random(3).shuffle(samples)
    assert [percentile(samples, each) for each in (0, 50, 99, 99.9, 100)] == [1, 500, 990, 999, 1000]
    made = histogram(samples)
    assert made.get_value_at_percentile(99) == pytest.approx(990, rel=1e-3)


def observation(number: int, contender: str, transport: str, **fields: object) -> Observation:
    return Observation(number, "paced", contender, transport, **fields)  # type: ignore[arg-type]


def test_what_was_refused_does_not_count_and_is_told() -> None:
    whole = observation(1, "usual", "SSE", values={"cpu_us_per_token": 7.0}, samples={"delivery_us": [1000]})
    refused = observation(2, "usual", "SSE", values={"cpu_us_per_token": 1.0}, refusal="events were lost")
    late = observation(
        3, "usual", "SSE", values={"cpu_us_per_token": 8.0}, samples={"delivery_us": [9]}, latency_refusal="late"
    )
    seen = [whole, refused, late]
    assert by_round(seen, CPU) == {1: 7.0, 3: 8.0}
    assert by_round(seen, latency("delivery_us", "delivery", 50)[0]) == {1: 1.0}
    assert list(report.refusals(seen)) == [
        "usual SSE, round 2: events were lost",
        "usual SSE, round 3: late (times only)",
    ]


@pytest.mark.parametrize("name", ["bench.jsonl", "bench.jsonl.gz"])
def test_a_report_is_made_from_a_recording_alone(tmp_path: Path, name: str) -> None:
    source = random.Random(2)
    lines: list[observations.Line] = [environment(nginx="<none>")]
    for number in range(1, 6):
        for contender, middle in (("chatserver", 40.0), ("FastAPI + sse-starlette", 330.0)):
            for transport in ("SSE", "WebSocket"):
                samples = {"delivery_us": [int(source.lognormvariate(6, 1)) for _ in range(300)]}
                values = {"cpu_us_per_token": middle * source.lognormvariate(0, 0.1)}
                lines.append(observation(number, contender, transport, values=values, samples=samples))
    observations.write(tmp_path / name, lines)
    recording = observations.read(tmp_path / name)
    assert len(recording.observations) == 20
    html = page.html(recording, CHAPTERS, earlier=recording)
    assert "&lt;none&gt;" in html and "<none>" not in html
    assert html.count("<polyline") > 4 and "whisker" in html and "no measurable difference of earlier" in html
    for fetched in ("<script", "http://", "https://", "@import", "url("):
        assert fetched not in html.replace("http://www.w3.org/2000/svg", "")


def two_contenders() -> observations.Recording:
    lines = [
        observation(number, contender, "SSE", values={"cpu_us_per_token": cost}, samples={"delivery_us": [cost * 100]})
        for number in range(1, 6)
        for contender, cost in (("chatserver", 10), ("usual", 100))
    ]
    return observations.Recording(environment(), [*lines, observation(6, "usual", "SSE", refusal="events were lost")])


def test_no_table_is_cut_where_the_output_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """The ratio is the last column, and the reason to look."""
    tables.show(two_contenders(), CHAPTERS, tables.console())
    printed = capsys.readouterr().out
    paced = next(each for each in CHAPTERS if each.scenario == "paced")
    assert all(metric.title in printed for metric in paced.metrics) and len(paced.metrics) > 8
    assert "10.0× [10.0, 10.0]" in printed and "…" not in printed


def test_programs_get_the_tables_too() -> None:
    [chapter] = json.loads(msgspec.json.encode(report.document(two_contenders(), CHAPTERS)))["chapters"]
    ours, usual = chapter["rows"]
    cost = {"unit": "µs", "median": 100.0, "low": 100.0, "high": 100.0, "rounds": 5}
    ratio = {"median": 10.0, "low": 10.0, "high": 10.0, "rounds": 5}
    assert usual["metrics"]["server CPU a token"] == cost | {"to_chatserver": ratio}
    assert usual["metrics"]["delivery p50"]["unit"] == "ms"
    assert ours["metrics"]["delivery p50"]["to_chatserver"] is None
    assert (chapter["scenario"], chapter["refused"]) == ("paced", ["usual SSE, round 6: events were lost"])


def test_a_knee_and_drops_are_drawn() -> None:
    chapter = Chapter(
        "paced", "Growth", "", latency("delivery_us", "delivery", 50), steps="streams", series="delivery_us"
    )
    seen = [
        observation(
            1,
            "chatserver",
            "SSE",
            step=step,
            values={"delivered_share": share},
            samples={"delivery_us": [100, 200], "at_ms": [1, 2], "drop_at_ms": [2]},
        )
        for step, share in ((1, 1.0), (10, 0.5))
    ]
    html = page.html(observations.Recording(environment(), seen), [chapter])
    assert "50 % at 10" in html and ">dropped<" in html


@pytest.mark.parametrize("content", [b"", b"{}\n", b'{"type":"observation"}\n', b"\x1f\x8bx"])
def test_what_is_no_recording_is_told_as_that(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bench.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no recording"):
        observations.read(path)


def test_a_goal_is_met_missed_or_open() -> None:
    """By the whole interval, not by its middle."""
    costs = {
        "chatserver": [10.0, 11.0, 12.0, 10.5, 11.5],
        "FastAPI + sse-starlette": [100.0, 115.0, 100.0, 116.0, 111.0],
    }
    seen = [
        Observation(number, "closed", contender, "SSE", values={"cpu_us_per_token": value})
        for contender, values in costs.items()
        for number, value in enumerate(values)
    ]
    recording = observations.Recording(environment(), seen)
    goal = next(each for each in goals.GOALS if (each.scenario, each.peer) == ("closed", "usual"))
    compared = goals.measured(goal, recording)
    assert compared is not None and compared.low < goal.limit < compared.high
    assert goals.measured(next(each for each in goals.GOALS if each.scenario == "memory"), recording) is None
    assert goals.table(recording).row_count == 1
    assert [each["verdict"] for each in goals.document(recording)] == ["open"]
