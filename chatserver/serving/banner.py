"""What a server says on standard output when it serves."""

from chatserver import __version__
from chatserver.settings import Settings


def banner(settings: Settings) -> str:
    """Where the server is, who answers, and a command to try it with."""
    url = settings.own_url
    who = "" if settings.auth == "none" else '-H "Authorization: Bearer $TOKEN" '
    return (
        f"chatserver {__version__} on {url}, {_answering(settings)}\n"
        f"  curl -N {url}/chat/stream {who}-H 'Content-Type: application/json' "
        """-d '{"message": "What time is it in Tokyo, and what is 17 * 23?"}'"""
    )


def _answering(settings: Settings) -> str:
    if settings.is_demo:
        return "answering with the built-in demo model (set OPENAI_API_KEY or OPENAI_BASE_URL for a real one)"
    said = [f"answering with the agent {settings.agent}"] if settings.agent else []
    if settings.has_model_server:  # Whether it has that model is not known yet.
        said.append(f"asking for {settings.model} at {settings.shown()['openai_base_url'] or 'OpenAI'}")
        if settings.upstream_api != Settings().upstream_api:
            said[-1] += f" by its API `{settings.upstream_api}`"
    return ", ".join(said)
