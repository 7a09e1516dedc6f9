"""A WebSocket that stays with its account: what its frames say of limits.

The account of a socket is fixed at the handshake; limits arrive as frames, long after.
Before anything of an answer has come the socket can be closed, and its client opens
another one, on another account. Frames are read only, and none is ever made up: a client
that cannot parse one waits in silence (clients.md, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from account_pool.core.outcome import Answer, Outcome, OutcomeClass
from account_pool.core.sse import Verdict
from account_pool.providers.base import Provider

#: RFC 6455, 5.2 and 7.4: a final, unmasked Close frame with status 1013 (IANA: "try again
#: later"), as a server sends it.
CLOSE_FRAME = b"\x88\x02" + (1013).to_bytes(2, "big")
#: Where an error says that it is one; later in a frame it is the text of a model.
_HEAD_BYTES = 256
_LIMITS = frozenset({OutcomeClass.RATE_LIMIT, OutcomeClass.QUOTA, OutcomeClass.FORBIDDEN_ACCOUNT})


class _Create(msgspec.Struct):
    type: str = ""
    model: str | None = None


_CREATE = msgspec.json.Decoder(_Create)


@dataclass(slots=True)
class SocketReader:
    """Reads the messages of one socket.

    Attributes:
        model: that of the running turn, if the client named one.
        answered: something of the turn's answer has come.
    """

    provider: Provider
    model: str | None = None
    answered: bool = False

    def client_said(self, content: bytes) -> None:
        """A message of the client: `response.create` begins a turn."""
        try:
            create = _CREATE.decode(content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if create.type == "response.create":
            self.answered = False
            self.model = create.model or self.model

    def server_said(self, content: bytes, wall_now: float) -> Outcome | None:
        """Return what a message says against the account; None if nothing."""
        if self.answered and b"error" not in content[:_HEAD_BYTES]:
            return None
        value = _json(content)
        match self.provider.judge(None, value):
            case Verdict.CONTINUE:
                return None
            case Verdict.COMMIT:
                self.answered = True
                return None
        answer = Answer(
            status=101, payload=value, in_stream=True, model=self.model, wall_now=wall_now
        )
        outcome = self.provider.classify(answer)
        return outcome if outcome.cls in _LIMITS else None


def _json(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
