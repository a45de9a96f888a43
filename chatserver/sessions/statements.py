"""Statements of the life of each run: compiled once, and on SQLite handed to the driver itself.

SQLAlchemy takes 13 µs for a statement that it has compiled before, SQLite's driver 2 µs. On PostgreSQL the statements
go through SQLAlchemy, since the driver there is asynchronous.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

from sqlalchemy import Connection, Executable
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.expression import ReturnsRows
from sqlalchemy.types import TypeEngine

Row: TypeAlias = Sequence[Any]
Parameters: TypeAlias = Mapping[str, Any]
"""By name; in the same order each time, since a statement is compiled for each order of names."""


class Statement:
    """A statement, or what makes one for the dialect of a name."""

    def __init__(self, statement: Executable | Callable[[str], Executable]) -> None:
        self._make = statement if callable(statement) else lambda _: statement
        self._made: dict[str, Executable] = {}
        self._compiled: dict[tuple[str, ...], Compiled] = {}

    def change(self, connection: Connection, *given: Parameters) -> int:
        """Execute it with each of these parameters; how many rows the last ones have changed.

        Raises:
            IntegrityError: SQLAlchemy's, whatever executes.
        """
        if (driver := _driver(connection)) is None:
            return connection.execute(self._for(connection.dialect), list(given)).rowcount
        compiled, changed = self._compiled_for(connection.dialect, given[0]), 0
        for parameters in given:
            changed = compiled.execute(driver, parameters).rowcount
        return changed

    def rows(self, connection: Connection, parameters: Parameters) -> Sequence[Row]:
        """Execute it; its rows, each with the columns in order."""
        if (driver := _driver(connection)) is None:
            return connection.execute(self._for(connection.dialect), parameters).all()
        compiled = self._compiled_for(connection.dialect, parameters)
        return compiled.read(compiled.execute(driver, parameters).fetchall())

    def _for(self, dialect: Dialect) -> Executable:
        if (made := self._made.get(dialect.name)) is None:
            made = self._made[dialect.name] = self._make(dialect.name)
        return made

    def _compiled_for(self, dialect: Dialect, parameters: Parameters) -> "Compiled":
        names = tuple(parameters)
        if (compiled := self._compiled.get(names)) is None:
            compiled = self._compiled[names] = Compiled(self._for(dialect), names, dialect)
        return compiled


class Compiled:
    """The text of a statement for SQLite, and how its values and rows are converted."""

    def __init__(self, statement: Executable, names: Sequence[str], dialect: Dialect) -> None:
        compiled: Any = statement.compile(dialect=dialect, column_keys=list(names))  # type: ignore[attr-defined]
        order: list[str] = compiled.positiontup
        self.text = str(compiled)
        self._fixed = {name: compiled.params[name] for name in order if name not in names}
        self._in_order = itemgetter(*order, order[0])  # One more: of a single name it would return no tuple.
        self._encoders = [
            (place, encode)
            for place, name in enumerate(order)
            if (encode := _exact(compiled.binds[name].type, dialect).bind_processor(dialect)) is not None
        ]
        columns = statement.exported_columns if isinstance(statement, ReturnsRows) else ()
        decoders = [_exact(column.type, dialect).result_processor(dialect, None) for column in columns]
        self._decoders = [(place, decode) for place, decode in enumerate(decoders) if decode is not None]

    def execute(self, driver: sqlite3.Connection, parameters: Parameters) -> sqlite3.Cursor:
        """Raises as ``Statement.change``."""
        try:
            return driver.execute(self.text, self.values(parameters))
        except sqlite3.IntegrityError as error:
            raise IntegrityError(self.text, None, error, hide_parameters=True) from error

    def values(self, parameters: Parameters) -> list[Any]:
        """The parameters as the driver takes them."""
        values: list[Any]
        *values, _ = self._in_order({**self._fixed, **parameters})
        for place, encode in self._encoders:
            values[place] = encode(values[place])
        return values

    def read(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Rows of the driver with the values that the columns have."""
        if not self._decoders:
            return rows
        read = [[*row] for row in rows]
        for place, decode in self._decoders:
            for row in read:
                row[place] = decode(row[place])
        return read


def _driver(connection: Connection) -> sqlite3.Connection | None:
    """SQLite's connection."""
    driver = connection.connection.driver_connection
    return driver if isinstance(driver, sqlite3.Connection) else None


def _exact(kind: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    return kind.dialect_impl(dialect)
