"""The syntax of headers, hosts, origins and URLs: a setting that can never work is refused when the server starts."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]"
_HOST_AND_PORT = re.compile(rf"({_HOST})(?::([0-9]{{1,5}}))?", re.IGNORECASE | re.ASCII)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.IGNORECASE | re.ASCII)


def is_header_value(text: str) -> bool:
    """Whether the text can be sent as a header's value: printable ASCII, so no line end and no control character."""
    return text.isascii() and text.isprintable()


def is_utf8(text: str) -> bool:
    """Whether the text can be encoded. Bytes of the environment that are not UTF-8 come as lone surrogates."""
    return text == text.encode(errors="ignore").decode()


def one_line(text: str) -> str:
    """A foreign text as one line of a log: characters that cannot be printed are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def headers_of(lines: str) -> dict[str, str]:
    """The headers in lines of `Name: value`, as the openai SDK reads them: a line without a colon is ignored.

    Raises:
        ValueError: a line cannot be sent; the message has the line's number and never its value.
    """
    headers: dict[str, str] = {}
    for number, line in enumerate(lines.split("\n"), start=1):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon:
            continue
        if not _FIELD_NAME.fullmatch(name):
            raise ValueError(f"line {number} has no header's name before its colon")
        if not is_header_value(value):
            raise ValueError(f"line {number} has a control character or one beyond ASCII")
        headers[name] = value
    return headers


def is_host(text: str) -> bool:
    """A name or an address, with or without a port, as in a `Host` header; an IPv6 address also without brackets."""
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None:
        return _is_ipv6(text)
    host, port = found.groups()
    return int(port or 0) <= 65535 and (not host.startswith("[") or _is_ipv6(host[1:-1]))


def is_origin(text: str) -> bool:
    """`scheme://host[:port]`, as in an `Origin` header; a slash at the end does no harm."""
    scheme, separator, host = text.removesuffix("/").partition("://")
    return bool(separator and _SCHEME.fullmatch(scheme)) and is_host(host) and not _is_ipv6(host)


def is_http_url(text: str) -> bool:
    """An address that an HTTP client can ask."""
    try:
        parts = urlsplit(text)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # The port is no number, or too large; a bracket is missing.
        return False
    return is_whole and text.isprintable() and " " not in text  # urlsplit ignores line ends.


def server_url(text: str) -> str:
    """The URL of a server without a slash at its end; without a scheme it is HTTP.

    Raises:
        ValueError: it is none.
    """
    url = text if "://" in text else f"http://{text}"
    if not is_http_url(url) or "?" in url or "#" in url:
        raise ValueError(f"{text} is not the URL of a server")
    scheme, _, rest = url.partition("://")
    return f"{scheme.lower()}://{rest.rstrip('/')}"


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address that a host is, without brackets; None: it is a name, or nothing."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_ipv6(text: str) -> bool:
    return isinstance(address_of(text), IPv6Address)


def is_link(text: str) -> bool:
    """An address that a page may lead to: a path of its own origin, or a web page without a name and password."""
    if not re.fullmatch(r"[!-~]+", text) or set(text) & set('"<>\\^`{|}'):
        return False
    return "@" not in urlsplit(text).netloc if is_http_url(text) else text[:1] == "/" != text[1:2]
