"""What an operator should know about the sources of the settings when the server starts."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from chatserver.settings import PREFIX, VARIABLES, variable
from chatserver.settings.loading import given
from chatserver.settings.masks import masked
from chatserver.syntax import one_line

ADDRESS = "openai_base_url"
GO_TO_ADDRESS = tuple(map(variable, ("openai_api_key", "openai_org_id", "openai_project_id", "openai_custom_headers")))


def remarks(path: str, file: Mapping[str, str | None], environment: Mapping[str, str]) -> list[str]:
    """Lines about the `.env` file at ``path`` and the environment, which wins over it.

    The file may be another person's, since it lies in the working directory. So the lines always say which settings the
    file gives, and above all whether it sends a key of the environment to an address of its own.
    """
    in_environment = given(environment)
    in_file = {name: text for name, text in given(file).items() if name not in in_environment}
    lines = [f"{path} was read and gives {', '.join(in_file) or 'no setting'}"] if file else []
    lines += [*_mixed(in_file, in_environment, path), *_unknown({**file, **environment})]
    return [one_line(line) for line in lines]


def _mixed(in_file: Mapping[str, str], in_environment: Mapping[str, str], path: str) -> Iterator[str]:
    """Keys and headers whose address comes from the other source."""
    address = variable(ADDRESS)
    for keys, key_place, addresses, address_place in (
        (in_environment, "the environment", in_file, path),
        (in_file, path, in_environment, "the environment"),
    ):
        for name in GO_TO_ADDRESS:
            if name in keys and address in addresses:
                where = masked(ADDRESS, addresses[address])
                yield f"{name} of {key_place} goes to {where}, which is {address} of {address_place}"


def _unknown(names: Mapping[str, object]) -> Iterator[str]:
    for name in names:
        if name.startswith(PREFIX) and name not in VARIABLES:
            yield f"{name} is no setting; the nearest is {get_close_matches(name, VARIABLES, 1, cutoff=0)[0]}"
