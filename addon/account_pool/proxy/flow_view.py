"""What mitmweb, mitmproxy and dumps show of requests, and what a view keeps of them.

The comment of the flow that the client got its response from begins with the account that
served it, and those that refused before: `openai/private <- work 429, old 429`. Each refused
attempt is a flow of its own, marked and commented. Nothing of that is built unless something
was refused and somebody looks at flows, and then after the replay was sent.

mitmproxy's own view keeps all. Here only flows of the pool that ended are removed from it,
oldest first; never one that a person has marked, intercepted or in focus, nor flows of other
hosts or of a file that was opened.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from mitmproxy import ctx, http
from mitmproxy.connection import Server
from mitmproxy.hooks import UpdateHook
from msgspec import Struct

from account_pool.core import decision_text
from account_pool.core.account import AccountKey
from account_pool.core.attempts import Attempts
from account_pool.core.credential import Secrets
from account_pool.core.outcome import OutcomeClass
from account_pool.core.steps import Attempt
from account_pool.core.usage import END_BYTES
from account_pool.proxy import decoding, error_response
from account_pool.proxy.fast.known import is_our_script
from account_pool.proxy.headers import Fields
from account_pool.proxy.response_reader import ResponseReader
from account_pool.supervision import log_and_continue, tasks

if TYPE_CHECKING:
    from account_pool.proxy.service import Service

#: The marker of a refused attempt (`~marker no_entry`).
MARK = ":no_entry:"
#: Metadata of a refused attempt, so that it is known again in a dump.
REFUSED = "pool.refused"
#: In the comment of a flow, in the place of the account that served it.
NOBODY = "refused"
#: Metadata: what we last wrote into the comment of a flow.
COMMENT = "pool.comment"
#: Metadata: a body on the flow is not all of it.
TRUNCATED = "pool.truncated"
#: Bound of what is copied of a body, in bytes.
MAX_COPY_BYTES = 1024 * 1024

Make = Callable[[], http.HTTPFlow]
#: Takes what makes a flow, and shows it a little later.
Show = Callable[[Make], None]


def comment(flow: http.HTTPFlow, text: str) -> None:
    """Let *text* stand in the place of our last comment; what a person wrote stays."""
    theirs = flow.comment.removesuffix(flow.metadata.get(COMMENT, "")).removesuffix("; ")
    flow.comment = "; ".join(filter(None, (theirs, text)))
    flow.metadata[COMMENT] = text


def mark_truncated(flow: http.HTTPFlow, what: str, kept: str = "") -> None:
    """Say that what *flow* has is not all of it; *kept*: how much is, of a body if not given."""
    flow.metadata[TRUNCATED] = True
    note = f"{what} ({kept or f'{MAX_COPY_BYTES // 1024} KiB'})"
    comment(flow, "; ".join(filter(None, (flow.metadata.get(COMMENT), note))))


class BodyCopy:
    """The bounded copy of a body while it streams.

    Attributes:
        head: its beginning, as it came.
        tail: the end of a body that is longer than that, without its content-encoding.
        framed_by: the fields of its head, if they say that it comes in chunks.
    """

    def __init__(self, encoding: str, framed_by: Fields | None = None) -> None:
        self.head, self.tail, self.framed_by = bytearray(), bytearray(), framed_by
        self._encoding = encoding
        self._end: decoding.End | None = None

    def add(self, data: bytes) -> None:
        """Copy what follows; beyond the bound only its end."""
        if len(self.head) < MAX_COPY_BYTES:
            self.head += data
        else:
            self._keep_tail(data)

    def _keep_tail(self, data: bytes) -> None:
        """Keep the end of a long body: it tells what the response took, and how it ended."""
        if self._end is None:
            self._end = decoding.End(self._encoding, keep_bytes=END_BYTES)
            self.tail = self._end.kept
            self._end.feed(self.head)
        self._end.feed(data)

    def put_on(self, flow: http.HTTPFlow, *, ended: bool) -> None:
        """Let *flow* have the copy for its body; *ended* tells if that has an end."""
        # Of a replay by hand the whole body is kept (`replay.py`).
        if flow.response is None or flow.is_replay:
            return
        cut_off = len(self.head) >= MAX_COPY_BYTES
        body = bytes(self.head)
        if cut_off or not ended:
            body = decoding.as_whole(body, self._encoding, max_bytes=MAX_COPY_BYTES)
        flow.response.data.content = body
        if cut_off:
            mark_truncated(flow, "only the beginning of the answer is kept")


class _Refused(Struct, frozen=True):
    """An attempt as it was when it was refused; the rest of it is on the flow.

    Attributes:
        reader: of its response.
        key: of its account.
        number: of the attempt, from 1.
        server: the connection it went over.
        fields, path: of the request, with placeholders that name its account.
        sent_at, ended_at: seconds since the epoch.
    """

    reader: ResponseReader
    key: AccountKey
    number: int
    server: Server
    fields: Fields
    path: bytes
    sent_at: float
    ended_at: float


class AttemptTrail:
    """How one request went, once something was refused.

    Args:
        flow: the client's, which is served in the end.
        show: takes the flows of refused attempts; None where only the comment is wanted.
    """

    def __init__(self, flow: http.HTTPFlow, show: Show | None) -> None:
        self._flow, self._show = flow, show
        self._verdicts: list[str] = []
        self._refused: _Refused | None = None

    def refused(
        self, reader: ResponseReader, attempts: Attempts, took_s: float, wall_now: float
    ) -> None:
        """The running attempt was refused, *took_s* seconds after it was sent."""
        flow, request = self._flow, self._flow.request
        self._refused = _Refused(
            reader,
            attempts.history[-1].key,
            len(attempts.history),
            flow.server_conn,
            request.headers.fields,
            request.data.path,
            wall_now - took_s,
            wall_now,
        )

    def replayed(self, attempts: Attempts, secrets: Callable[[], Secrets], now: float) -> None:
        """The next attempt is on its way."""
        *before, last = attempts.history
        self._judge(attempts, len(before), now)
        self._tell(str(last.key), before)
        self.ended(attempts, secrets, now)

    def delivered(self, attempts: Attempts, now: float) -> None:
        """The client gets the refusal: it is on the flow itself."""
        self._refused = None
        *before, last = attempts.history
        if (
            last.outcome is not None
            and last.outcome.cls is OutcomeClass.REQUEST_ERROR
            and not before
        ):
            return  # its own fault, which its body says
        self._judge(attempts, len(attempts.history), now)
        self._tell(decision_text.in_brief(last, whole=True) if before else "", before)

    def answered(self, attempts: Attempts, message: str, now: float) -> None:
        """The client gets a response of our own, which *message* explains."""
        self._judge(attempts, len(attempts.history), now)
        self._tell(NOBODY, attempts.history, message)

    def _tell(self, who: str, before: Sequence[Attempt], message: str = "") -> None:
        """Let the comment say *who* served, and who was asked *before*, then what became of them.

        The beginning is what a column of a list has room for.
        """
        refused = ", ".join(decision_text.in_brief(attempt, whole=False) for attempt in before)
        parts = [f"{who} <- {refused}" if refused else "", message, *self._verdicts]
        comment(self._flow, "; ".join(filter(None, parts)))

    def ended(self, attempts: Attempts, secrets: Callable[[], Secrets], now: float) -> None:
        """Nothing more will become of the refused attempt: show it, if that is to be done."""
        refused, self._refused = self._refused, None
        if refused is None or self._show is None:
            return
        self._judge(attempts, refused.number, now)
        text, later = self._verdicts[refused.number - 1], attempts.history[refused.number :]
        if later:
            text += f" -> {later[0].key}"
        self._show(partial(_flow_of, self._flow, refused, text, secrets))

    def _judge(self, attempts: Attempts, until: int, now: float) -> None:
        """Note the verdicts on the attempts before number *until* + 1: later they change."""
        for attempt in attempts.history[len(self._verdicts) : until]:
            self._verdicts.append(decision_text.verdict(attempt, attempts, now))


def _flow_of(
    served: http.HTTPFlow, refused: _Refused, text: str, secrets: Callable[[], Secrets]
) -> http.HTTPFlow:
    """Return the flow of a refused attempt at what *served* asks for."""
    flow = http.HTTPFlow(served.client_conn, refused.server)
    flow.is_replay, flow.marked, flow.comment = served.is_replay, MARK, text
    flow.request = request = served.request.copy()
    request.headers.fields, request.data.path = refused.fields, refused.path
    request.timestamp_start = request.timestamp_end = refused.sent_at
    flow.response = response = error_response.as_refused(refused.reader, secrets())
    response.timestamp_end = refused.ended_at
    flow.metadata.update(
        {
            REFUSED: True,
            COMMENT: text,
            "pool.account": str(refused.key),
            "pool.attempt": refused.number,
            "pool.flow": served.id,
        }
    )
    if len(request.raw_content or b"") > MAX_COPY_BYTES:
        # A part of it would pass for the whole when it is replayed.
        request.data.content = None
        mark_truncated(flow, "a request this long is kept only on the flow that was served")
    if len(response.raw_content or b"") > MAX_COPY_BYTES:
        response.data.content = (response.raw_content or b"")[:MAX_COPY_BYTES]
        mark_truncated(flow, "only the beginning of the answer is kept")
    return flow


def load(make: Make) -> None:
    """Give a flow to every front end and dump, once whatever is going on is over."""
    tasks.once("showing a refused attempt", lambda: _load(make))


#: Addons of mitmproxy that neither show nor keep a flow, by module; others may.
_BLIND = frozenset(
    {
        "anticache",
        "anticomp",
        "block",
        "blocklist",
        "browser",
        "clientplayback",
        "command_history",
        "comment",
        "core",
        "cut",
        "disable_h2c",
        "dns_resolver",
        "errorcheck",
        "export",
        "keepserving",
        "maplocal",
        "mapremote",
        "modifybody",
        "modifyheaders",
        "next_layer",
        "onboarding",
        "proxyauth",
        "proxyserver",
        "readfile",
        "script",
        "serverplayback",
        "strip_dns_https_records",
        "termlog",
        "tlsconfig",
        "update_alt_svc",
        "upstream_auth",
    }
)
#: Those that do so only with an option.
_LOOKS_WITH = {
    "dumper": "flow_detail",
    "save": "save_stream_file",
    "savehar": "hardump",
    "stickyauth": "stickyauth",
    "stickycookie": "stickycookie",
}
_ALWAYS = "(always)"


def is_looked_at() -> bool:
    """Say whether an addon may show, keep or use a flow; one that is not known to us may."""
    addons = list(ctx.master.addons.chain)
    for addon in addons:
        option = _looks_with(type(addon).__module__)
        if option == _ALWAYS and not is_our_script(addon):
            return True
        if option and option != _ALWAYS and getattr(ctx.options, option):
            return True
        addons += getattr(addon, "addons", ())
    return False


@cache
def _looks_with(module: str) -> str:
    """Return the option with which an addon of *module* looks at flows, "" if it never does."""
    package, _, name = module.rpartition(".")
    if package == "mitmproxy.addons":
        return "" if name in _BLIND else _LOOKS_WITH.get(name, _ALWAYS)
    return "" if package.partition(".")[0] == "account_pool" else _ALWAYS


async def _load(make: Make) -> None:
    # mitmproxy's tasks may begin at once: let what is being sent go out first.
    await asyncio.sleep(0)
    flow = make()
    response = flow.response
    await ctx.master.load_flow(flow)
    if flow.intercepted or flow.response is not response:
        # Taken for a live request by what looks at those; nobody waits for this one.
        flow.resume()
        flow.response = response
        await ctx.master.addons.trigger_event(UpdateHook([flow]))


def hold_for_approval(flow: http.HTTPFlow) -> None:
    """Let the hook that follows wait for a person (`pool_manual_approve`).

    No account is chosen before.
    """
    flow.intercept()

    def kill() -> None:
        # mitmproxy's own (12.2) leaves whoever waits for the flow waiting: its client
        # would hang for good.
        if flow.killable:
            flow.resume()
        http.HTTPFlow.kill(flow)

    flow.kill = kill  # type: ignore[method-assign]  # of this flow only


# -- what a view keeps

#: The bodies and messages of the flows that are kept, together, in bytes.
MAX_BYTES = 64 * 1024 * 1024
#: The messages of an open WebSocket, in bytes; the last two are always kept.
MAX_SOCKET_BYTES = 8 * 1024 * 1024
#: How many old flows that must stay are skipped for each flow that ends.
_MAX_LOOKS = 64


class ViewRetention:
    """Removes old flows of the pool from *view*, that of mitmweb or mitmproxy. An addon.

    Keeps `Settings.view_kept` of them, and `MAX_BYTES`. There is none in mitmdump.
    """

    name = "account_pool_view"

    def __init__(self, service: Service, view: Any) -> None:
        self._service = service
        self._view = view
        #: bytes of those that ended, by id, oldest first
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._bytes = 0

    def response(self, flow: http.HTTPFlow) -> None:
        """*flow* has ended, or is a refused attempt: count it, and remove others."""
        # A flow of a file that was opened is neither.
        if not flow.live and REFUSED not in flow.metadata:
            return
        if self._service.settings.view_kept and is_of_pool(flow):
            with log_and_continue:
                self._forget(flow.id)
                self._sizes[flow.id] = size = size_of(flow)
                self._bytes += size
                self._drop(self._service.settings.view_kept)

    error = websocket_end = response

    def _drop(self, kept: int) -> None:
        looks = 0
        while len(self._sizes) > kept or self._bytes > MAX_BYTES:
            oldest = next(iter(self._sizes))
            if len(self._sizes) == 1 or looks == _MAX_LOOKS:
                return
            flow = self._view.get_by_id(oldest)
            if flow is not None and must_stay(flow, self._view):
                self._sizes.move_to_end(oldest)
                looks += 1
                continue
            self._forget(oldest)
            if flow is not None:
                self._view.remove([flow])

    def _forget(self, flow_id: str) -> None:
        self._bytes -= self._sizes.pop(flow_id, 0)


def is_of_pool(flow: http.HTTPFlow) -> bool:
    """Return whether *flow* was served by the pool, or is an attempt that was refused."""
    return "pool.account" in flow.metadata or REFUSED in flow.metadata


def must_stay(flow: http.HTTPFlow, view: Any) -> bool:
    """Return whether a person works with *flow*, or it has not ended."""
    if flow.live or flow.intercepted or getattr(view.focus, "flow", None) is flow:
        return True
    return bool(flow.marked) and flow.marked != MARK


def size_of(flow: http.HTTPFlow) -> int:
    """Return the bytes of the bodies and messages of *flow*."""
    size = len(flow.request.raw_content or b"")
    if flow.response is not None:
        size += len(flow.response.raw_content or b"")
    if flow.websocket is not None:
        size += sum(len(message.content) for message in flow.websocket.messages)
    return size


class MessageRetention:
    """Bounds the messages that the flow of an open WebSocket keeps."""

    def __init__(self) -> None:
        self._bytes = 0

    def added(self, flow: http.HTTPFlow) -> None:
        """Count the last message of *flow*, and remove the oldest if there are too many."""
        assert flow.websocket is not None
        messages = flow.websocket.messages
        self._bytes += len(messages[-1].content)
        gone = 0
        while self._bytes > MAX_SOCKET_BYTES and len(messages) - gone > 2:
            self._bytes -= len(messages[gone].content)
            gone += 1
        if gone:
            del messages[:gone]
            if not flow.metadata.get(TRUNCATED):
                kept = f"{MAX_SOCKET_BYTES // 1024**2} MiB"
                mark_truncated(flow, "only the last messages are kept", kept)
