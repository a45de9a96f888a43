"""What a setting names as `module:attribute`: foreign code, loaded when the server starts."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from chatserver.errors import SettingsError
from chatserver.settings import variable

T = TypeVar("T")


def load(setting: str, reference: str, made_of: Callable[[Any], T]) -> T:
    """What ``made_of`` makes of the attribute that a setting names. The module may lie in the working directory.

    Without an attribute, the reference means the one that is called as the setting, in capitals.

    Raises:
        SettingsError: there is no such attribute, or it is of no use.
    """
    module, _, attribute = reference.partition(":")
    try:
        with _working_directory():
            return made_of(getattr(importlib.import_module(module), attribute or setting.upper()))
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything while it is imported
        raise SettingsError(f"{variable(setting)}: {reference}: {error}") from None


@contextmanager
def _working_directory() -> Iterator[None]:
    """While entered, modules can be imported from the working directory, unless Python was told to leave it out (`-P`).

    The working directory stands last on the import path, so that no file in it replaces another module.
    """
    here = str(Path.cwd())
    if sys.flags.safe_path or here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        with suppress(ValueError):  # The module may have removed the folder from the path.
            sys.path.remove(here)
