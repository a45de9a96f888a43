"""Scrapes of a server, as Prometheus reads them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

import anyio
from prometheus_client import values
from prometheus_client.openmetrics.parser import text_string_to_metric_families as from_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.clients import Address, request

WAIT_SECONDS = 20.0
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Scrape:
    """One scrape. ``scrape("name", label="value")`` is the sum of all samples with that name and these labels."""

    def __init__(self, text: str, *, is_open: bool = False) -> None:
        self.text = text
        self.families = list(from_openmetrics(text) if is_open else text_string_to_metric_families(text))  # type: ignore[no-untyped-call]

    @property
    def samples(self) -> Iterable[Sample]:
        return (sample for family in self.families for sample in family.samples)

    def of(self, name: str, labels: Mapping[str, str]) -> list[Sample]:
        return [each for each in self.samples if each.name == name and labels.items() <= each.labels.items()]

    def __call__(self, name: str, **labels: str) -> float:
        return sum(each.value for each in self.of(name, labels))


async def scrape(server: Address, accept: str = "text/plain") -> Scrape:
    response = await request(server, "GET", "/metrics", headers={"Accept": accept})
    assert response.status == 200, response.body
    return Scrape(response.body.decode(), is_open=accept == OPENMETRICS)


async def until(server: Address, count: float, name: str, **labels: str) -> Scrape:
    """Scrape until this is so."""
    found = await scrape(server)
    with anyio.fail_after(WAIT_SECONDS):
        while found(name, **labels) != count:
            await anyio.sleep(0.01)
            found = await scrape(server)
    return found


@contextmanager
def counted_up() -> Iterator[list[str]]:
    """Each time that a metric of this process changes."""
    changes: list[str] = []
    original = values.MutexValue.inc

    def inc(self: values.MutexValue, amount: float) -> None:
        changes.append("inc")
        original(self, amount)  # type: ignore[no-untyped-call]

    with patch.object(values.MutexValue, "inc", inc):
        yield changes
