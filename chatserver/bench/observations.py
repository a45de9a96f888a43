"""What was seen, as it was seen: one JSON line each. Every number of a report is computed from these, whenever."""

import gzip
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct


class Environment(Struct, frozen=True, tag="environment"):
    """Where and how it was measured; the first line of a file."""

    command: str
    began_at: str
    facts: dict[str, str] = {}


class Observation(Struct, frozen=True, tag="observation"):
    """One measurement of one contender in one round.

    Names end in their unit. ``samples`` are single events, ``values`` numbers of the whole measurement. ``refusal``
    says why it must not count, ``latency_refusal`` why its samples must not.
    """

    round: int
    scenario: str
    contender: str
    transport: str
    step: int = 0
    values: dict[str, float] = {}
    samples: dict[str, list[int]] = {}
    refusal: str | None = None
    latency_refusal: str | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        return self.contender, self.transport, self.step


Line: TypeAlias = Environment | Observation

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


class Recording(Struct, frozen=True):
    """All lines of a file."""

    environment: Environment
    observations: list[Observation]

    def of(self, scenario: str) -> list[Observation]:
        return [each for each in self.observations if each.scenario == scenario]


def _open(path: Path, mode: str) -> Any:
    return gzip.open(path, mode) if path.suffix == ".gz" else path.open(mode)


class Writer:
    """Appends lines to a file as they come, so that a run that is broken off is not lost."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _open(path, "wb")

    def write(self, line: Line) -> None:
        self._file.write(_encode(line) + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def write(path: Path, lines: Iterable[Line]) -> None:
    """A whole file."""
    writer = Writer(path)
    for line in lines:
        writer.write(line)
    writer.close()


def _lines(path: Path) -> Iterator[Line]:
    with _open(path, "rb") as file, suppress(EOFError):  # A run that was broken off leaves its file without an end.
        for line in file:
            yield _decode(line)


def read(path: Path) -> Recording:
    """A file's lines.

    Raises:
        ValueError: it is no file of the lab.
    """
    try:
        environment, *rest = _lines(path)
    except (msgspec.DecodeError, ValueError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is no recording: {error}") from None
    if not isinstance(environment, Environment):
        raise ValueError(f"{path} is no recording: it does not begin with its environment")
    return Recording(environment, [each for each in rest if isinstance(each, Observation)])
