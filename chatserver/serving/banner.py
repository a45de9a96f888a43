"""What a server says on standard output when it serves."""

from chatserver import __version__
from chatserver.settings import Settings


def banner(settings: Settings) -> str:
    """Where the server is, who answers, and a command to try it with."""
    url = settings.own_url
    upstream = "answering with the built-in demo model (set OPENAI_API_KEY or OPENAI_BASE_URL for a real one)"
    if not settings.is_demo:  # Whether the upstream has that model is not known yet.
        upstream = f"asking for {settings.model} at {settings.shown()['openai_base_url'] or 'OpenAI'}"
        if settings.upstream_api != Settings().upstream_api:
            upstream += f" by its API `{settings.upstream_api}`"
    who = "" if settings.auth == "none" else '-H "Authorization: Bearer $TOKEN" '
    return (
        f"chatserver {__version__} on {url}, {upstream}\n"
        f"  curl -N {url}/chat/stream {who}-H 'Content-Type: application/json' "
        """-d '{"message": "What time is it in Tokyo, and what is 17 * 23?"}'"""
    )
