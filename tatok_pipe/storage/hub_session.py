"""How long the Hugging Face hub may be silent: for most of what its client asks, that client waits for ever."""

from __future__ import annotations

from functools import cache
from typing import Any

SILENCE_S = 30.0


@cache
def limit_silence() -> None:
    """From now on no request of huggingface_hub in this process waits longer than `SILENCE_S` for a connection or for
    the next bytes. Where the caller gives a limit of its own, that one holds."""
    from huggingface_hub import get_session, set_client_factory

    session = get_session()
    options = {"follow_redirects": session.follow_redirects, "timeout": session.timeout}
    hooks = {**session.event_hooks, "request": [*session.event_hooks["request"], _limit]}

    def make_client() -> Any:
        return type(session)(event_hooks=hooks, **options)

    set_client_factory(make_client)


def _limit(request: Any) -> None:
    # A limit of the client's own would not do: its functions ask for none by name, which goes before it.
    limits = request.extensions["timeout"]
    for wait in ("connect", "read", "write"):
        if limits.get(wait) is None:
            limits[wait] = SILENCE_S
