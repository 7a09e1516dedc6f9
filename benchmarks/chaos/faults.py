"""What goes wrong, row by row, and what must be true afterwards. Pure: values only.

An act is `verb` or `verb:argument`; `acts.py` carries them out. The first act is for the
first attempt of a request, the second for the second, and so on; after them the provider
answers well, whichever account asks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

#: Acts that end a connection: of themselves, or because they break the rules of HTTP/2.
ENDING = re.compile(
    r"reset|fin|garbage|tls-garbage|cut(-head)?:(reset|fin)|length|chunks-bad|status|twice"
    r"|close-after|goaway:error|frame:[bo]|no-status"
)
BOTH = ("h1", "h2")
H1, H2 = ("h1",), ("h2",)


class Must(Enum):
    """What a client may see of a row. Whatever comes must come in time, and be its own."""

    #: The good answer, whole: the fault stays unseen.
    SERVED = "served"
    #: The request may have run, and is not sent twice: served, or told that it broke.
    BROKEN = "served or broken"
    #: The fault comes after the first byte: the beginning of the answer, visibly cut. Or as above.
    CUT = "served, broken or cut"
    #: The provider's own answer, whole: the fault is the request's, or everybody's.
    DELIVERED = "delivered"
    #: The client does not wait for the end.
    LEFT = "left"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault.

    Attributes:
        acts: what the provider does at the first attempts.
        always: the last act goes for all further attempts too.
        shape: of the good answer, where the row needs a certain one.
        upload: bytes of the request's body at least.
        lane: needs a port of its own, whose connections fail.
        late_hello: its client begins TLS a while after its tunnel is open.
        weight: how often it is drawn.
    """

    name: str
    acts: tuple[str, ...]
    must: Must = Must.SERVED
    over: tuple[str, ...] = BOTH
    always: bool = False
    shape: str | None = None
    upload: int = 0
    lane: bool = False
    late_hello: bool = False
    weight: int = 4

    @property
    def ends_connection(self) -> bool:
        """Whatever else is on the connection to the provider breaks with this."""
        return any(ENDING.match(act) for act in self.acts)

    def act(self, attempt: int) -> str:
        """Return what the provider does at an attempt, numbered from 1."""
        if self.lane:
            return "good"
        if attempt <= len(self.acts):
            return self.acts[attempt - 1]
        return self.acts[-1] if self.always else "good"


def _row(name: str, *acts: str, **more: object) -> Row:
    return Row(name=name, acts=acts, **more)  # type: ignore[arg-type]


#: Refusals that another account makes good; what they say is in `replies`.
REFUSED = (
    "429-bare", "429-retry-after", "429-retry-after-ms", "429-date", "429-window", "429-prose",
    "429-quota", "429-window-spent", "429-gzip", "429-deflate", "429-br", "429-zstd", "429-large",
    "429-close-delimited", "429-html", "429-bomb-gzip", "429-bomb-br", "200-limit-in-json",
    "200-limit-in-stream", "400-credit", "402-payment", "403-quota", "401-key", "401-words",
    "403-words", "403-suspended",
)  # fmt: skip
#: Refusals that stay the same wherever they are asked.
FINAL = (
    "400-request",
    "400-echo",
    "404-path",
    "413-size",
    "422-gzip",
    "422-large",
    "307-elsewhere",
)
#: Codes of RST_STREAM (RFC 9113, section 7), and one that nobody has defined.
CODES = (*range(14), 0xBEEF)
REFUSED_STREAM = 7

ROWS: tuple[Row, ...] = (
    _row("good", "good", weight=30),
    _row("good-large", "good", shape="large"),
    _row("good-gzip", "good", shape="gzip"),
    _row("good-upload", "good", upload=300_000),
    _row("trickle", "trickle", shape="sse"),
    # -- refusals
    *(_row(name, f"refuse:{name}", weight=4 if name[:3] == "429" else 2) for name in REFUSED),
    _row("three-refusals", "refuse:429-retry-after", "refuse:401-key", "refuse:403-quota"),
    _row("refused-in-pieces", "pieces:429-window"),
    *(_row(name, f"refuse:{name}", must=Must.DELIVERED, always=True, weight=2) for name in FINAL),
    *(_row(f"{n}-once", f"refuse:{n}", weight=2) for n in ("500", "502-html", "503", "529")),
    _row("500-always", "refuse:500", must=Must.DELIVERED, always=True, weight=1),
    # -- connections that break before the answer
    _row("reset-before-head", "reset", must=Must.BROKEN),
    _row("fin-before-head", "fin", must=Must.BROKEN),
    _row("garbage", "garbage", must=Must.BROKEN),
    _row("tls-garbage", "tls-garbage:fin", must=Must.BROKEN, weight=2),
    # The connection stays open: who goes on with it waits for ever.
    _row("tls-garbage-open", "tls-garbage:open", must=Must.BROKEN, weight=2),
    _row("tls-garbage-after", "tls-garbage-after", weight=2),
    _row("silence", "silence", must=Must.LEFT, weight=3),
    _row("connect-reset", "reset", lane=True, weight=1),
    _row("connect-fin", "fin", lane=True, weight=1),
    _row("connect-alert", "alert", lane=True, weight=1),
    _row("connect-garbage", "garbage", lane=True, weight=1),
    _row("connect-lapse", "lapse", lane=True, late_hello=True, weight=1),
    _row("connect-refused", "refused", lane=True, must=Must.BROKEN, always=True, weight=1),
    # -- heads
    *(_row(f"interim-{n}", f"interim:{n}") for n in (100, 102, 103)),
    _row("interim-twice", "interim:103", "interim:100", shape="sse"),
    _row("switching-unasked", "status:101", must=Must.BROKEN, over=H1, weight=2),
    _row("status-999", "status:999", must=Must.BROKEN, weight=2),
    _row("status-42", "status:42", must=Must.BROKEN, weight=2),
    # -- answers that break off
    _row("reset-after-head", "cut-head:reset", must=Must.CUT),
    _row("cut-json-reset", "cut:reset", must=Must.CUT, shape="large"),
    _row("cut-json-fin", "cut:fin", must=Must.CUT, shape="large"),
    _row("cut-stream-reset", "cut:reset", must=Must.CUT, shape="sse"),
    _row("cut-stream-fin", "cut:fin", must=Must.CUT, shape="sse"),
    _row("content-length-short", "length:-7", must=Must.CUT, shape="json", over=H1),
    _row("content-length-long", "length:7", must=Must.CUT, shape="json"),
    _row("chunks-bad", "chunks-bad", must=Must.CUT, over=H1),
    _row("answered-twice", "twice", over=H1),
    _row("closed-after", "close-after:fin", over=H1),
    # A reset takes with it what is still on its way.
    _row("reset-after", "close-after:reset", must=Must.CUT, over=H1),
    _row("refused-early", "early:429-retry-after", over=H1, upload=400_000),
    _row("late-error", "late-error", must=Must.DELIVERED, always=True, shape="sse"),
    # -- HTTP/2
    *(
        _row(
            f"rst-{code}",
            f"rst:{code}",
            must=Must.SERVED if code == REFUSED_STREAM else Must.BROKEN,
            over=H2,
            weight=4 if code == REFUSED_STREAM else 1,
        )
        for code in CODES
    ),
    _row("refused-stream-thrice", "rst:7", "rst:7", "rst:7", over=H2),
    # More than mitmproxy opens connections to one address; the next try is the last.
    _row("refused-stream-five", *["rst:7"] * 5, over=H2),
    _row("rst-after-head", "cut-head:rst", must=Must.CUT, over=H2),
    _row("rst-in-body", "cut:rst", must=Must.CUT, shape="sse", over=H2),
    _row("rst-after-end", "rst-after-end", over=H2, upload=200_000),
    _row("goaway-graceful", "goaway:graceful", over=H2),
    _row("goaway-in-two-steps", "goaway:two-steps", over=H2),
    _row("goaway-not-run", "goaway:not-run", over=H2),
    _row("goaway-error", "goaway:error", over=H2),
    _row("settings-shrink", "settings:shrink", over=H2, shape="sse"),
    _row("upload-starved", "starve", over=H2, upload=200_000),
    _row("pings", "pings", over=H2),
    _row("trailers", "trailers", over=H2),
    _row("frame-unknown", "frame:unknown", over=H2),
    _row("frame-broken", "frame:broken", must=Must.BROKEN, over=H2, weight=2),
    _row("window-overflow", "frame:overflow", must=Must.BROKEN, over=H2, weight=2),
    _row("no-status", "no-status", must=Must.BROKEN, over=H2, weight=2),
)  # fmt: skip

BY_NAME = {row.name: row for row in ROWS}
