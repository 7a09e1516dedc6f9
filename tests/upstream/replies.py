"""Replies and a script made of them; what the vendors say in them is in tests/scripts.

Events are complete blocks of an event stream, one per item, so that a test can put whatever it
wants between two of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.upstream.exchange import Framing, Headers, Pause, Reply, Request, Script, Step

JSON: Headers = (("content-type", "application/json"),)
EVENT_STREAM: Headers = (("content-type", "text/event-stream; charset=utf-8"),)


def by_credential(replies: Mapping[str, Reply | Sequence[Reply]]) -> Script:
    """Return a script that answers by credential: the nth reply to its nth request.

    The last reply repeats. A credential that is not in the table is answered 401, in
    no provider's envelope: whoever sends it is not meant to.
    """
    table = {c: [r] if isinstance(r, Reply) else list(r) for c, r in replies.items()}

    def script(request: Request) -> Reply:
        row = table.get(request.credential)
        if row is None:
            return json_reply({"error": "the script does not know this credential"}, status=401)
        return row[min(request.turn, len(row)) - 1]

    return script


def json_reply(value: Any, status: int = 200, headers: Headers = ()) -> Reply:
    """Return *value* as a JSON body of known length."""
    body = json.dumps(value).encode()
    return Reply(status=status, headers=JSON + headers, steps=(body,), framing=Framing.LENGTH)


def stream_reply(events: Iterable[bytes], pause_s: float = 0, headers: Headers = ()) -> Reply:
    """Return an event stream, one step per event, with a pause after each of them."""
    steps: list[Step] = []
    for event in events:
        steps += [event, Pause(pause_s)] if pause_s else [event]
    return Reply(headers=EVENT_STREAM + headers, steps=tuple(steps))


def event(data: Any, name: str | None = None) -> bytes:
    """Return one block of an event stream. Strings are sent as they are."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()
