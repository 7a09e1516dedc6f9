"""Which request meets which fault, and how its client behaves: a function of seed and number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random

from benchmarks.chaos.faults import BY_NAME, ROWS, Must, Row
from benchmarks.chaos.replies import MODELS, SHAPES, VENDORS

#: What tells the provider about a request.
HEADER = "x-chaos"
#: In every credential of an account, and in the one that clients send.
SECRET, CLIENT = "c4a05acct", "c4a05client"
#: Clients in a hundred that leave before the end, and that read slowly.
LEAVING, SLOW = 7, 3
MAX_UPLOAD = 60_000


class Leave(Enum):
    """When a client goes away."""

    TUNNEL = "as soon as it is connected"
    UPLOAD = "in the middle of its own body"
    WAITING = "before the first byte"
    BODY = "in the middle of the answer"
    #: over HTTP/1.1 only: over HTTP/2 others share the connection
    GARBAGE = "in the middle of the answer, with bytes that are no TLS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request to be made.

    Attributes:
        nonce: of this request alone; its answer holds it.
        shape: of the good answer.
        size: of the request's body, bytes.
        patience_s: how long a client that leaves while it waits does so.
        session: the conversation it is a part of, if it says so.
    """

    number: int
    nonce: str
    row: Row
    protocol: str
    vendor: str
    shape: str
    size: int
    leave: Leave | None
    patience_s: float
    slow: bool
    session: str | None

    @property
    def mark(self) -> str:
        """What the provider is told; see `read_mark`."""
        return f"{self.row.name} {self.nonce} {self.shape} {self.vendor}"

    def body(self) -> bytes:
        """Return the request's body."""
        text = f"{self.nonce} " * (1 + self.size // (len(self.nonce) + 1))
        value = {
            "model": MODELS[self.vendor],
            "stream": self.shape == "sse",
            "max_tokens": 64,
            "messages": [{"role": "user", "content": text}],
        }
        return json.dumps(value).encode()


def read_mark(text: str) -> tuple[Row, str, str, str]:
    """Return (row, nonce, shape, vendor) of a request's mark."""
    name, nonce, shape, vendor = text.split()
    return BY_NAME[name], nonce, shape, vendor


def plan(
    seed: int,
    number: int,
    protocol: str,
    rows: Sequence[Row],
    vendors: Sequence[str] = VENDORS,
) -> Ask:
    """Return request *number* of a campaign over *protocol*, h1 or h2.

    *rows* are those to draw from; one at least must be possible over *protocol*.
    """
    chance = Random(f"{seed} {number} {protocol}")
    possible = [row for row in rows if protocol in row.over and not row.lane]
    row = chance.choices(possible, [row.weight for row in possible])[0]
    shape = row.shape or chance.choice(SHAPES)
    leave: Leave | None = None
    if row.must is Must.LEFT:
        leave = Leave.WAITING
    elif chance.randrange(100) < LEAVING:
        leave = chance.choice(
            [way for way in Leave if way is not Leave.GARBAGE or protocol == "h1"]
        )
    return Ask(
        number=number,
        nonce=f"n{seed}x{number}{protocol}",
        row=row,
        protocol=protocol,
        vendor=chance.choice(vendors),
        shape=shape,
        size=row.upload or (chance.randrange(MAX_UPLOAD) if chance.random() < 0.1 else 40),
        leave=leave,
        patience_s=chance.uniform(0, 0.3),
        slow=leave is None and chance.randrange(100) < SLOW,
        session=f"{seed}-{chance.randrange(200)}" if chance.random() < 0.3 else None,
    )


def plan_lane(seed: int, number: int, protocol: str, row: Row) -> Ask:
    """Return a request whose connection fails, as *row* says: nobody leaves."""
    return Ask(
        number=number,
        nonce=f"n{seed}x{number}{protocol}-lane",
        row=row,
        protocol=protocol,
        vendor=VENDORS[0],
        shape="json",
        size=40,
        leave=None,
        patience_s=0,
        slow=False,
        session=None,
    )


def rows_named(names: Sequence[str]) -> list[Row]:
    """Return the rows whose names begin with one of *names*; all for none.

    Raises ValueError for a name that is nobody's.
    """
    for name in names:
        if not any(row.name.startswith(name) for row in ROWS):
            raise ValueError(f"no fault is called {name!r}")
    return [row for row in ROWS if not names or any(row.name.startswith(n) for n in names)]
