"""How far a response is read before it is known what it is.

A refusal (status 400 and up) is read to its end, so that it can be understood and, if
need be, delivered. A success is read up to its first committing event. Both are bounded
in bytes; the stream bounds them in time. What was read is held as it came, byte for
byte, and goes to the client if the response turns out to be the one to deliver. What is not
there to its end is never delivered as if it were.

`ResponseObserver` learns meanwhile what it says of the account that gave it: what that has
left, whose limits it shares, what it made that only it knows, how many tokens it served, and by
the way what this machine's clock is worth. Looking on must not fail a request: `head`, `body`
and `end` raise nothing. `Refusals` keeps the last ones of each account.
"""

from __future__ import annotations

import json
import logging
import re
from functools import cached_property, lru_cache
from math import inf
from typing import Any

import msgspec
from mitmproxy import http
from msgspec import Struct
from msgspec.structs import replace

from account_pool.core import headroom_parsing, reactions, reset_hints
from account_pool.core.account import AccountKey
from account_pool.core.attempts import Attempts
from account_pool.core.credential import Credential, Secrets, mask, mask_fields
from account_pool.core.decision_text import duration
from account_pool.core.decisions import HasClocks
from account_pool.core.headroom_parsing import ResponseContext
from account_pool.core.instruments import NOT_COUNTED, ServedAs
from account_pool.core.json_values import NOT_READ
from account_pool.core.lease import Lease
from account_pool.core.outcome import UpstreamResponse
from account_pool.core.pool import Pool
from account_pool.core.sessions import Pins
from account_pool.core.sse import EventParser, Gate, StreamVerdict, Verdict, gate_shape
from account_pool.core.usage import END_BYTES, CountKey, Usage, Usages, of_answer
from account_pool.providers.base import (
    Origin,
    Provider,
    RequestHead,
    body_model,
    expects_data,
)
from account_pool.providers.registry import HostIndex
from account_pool.proxy import decoding
from account_pool.proxy.decoding import Decoder, End
from account_pool.proxy.headers import IndexedHeaders
from account_pool.proxy.pooled_request import PooledRequest, fields_by_name
from account_pool.supervision import log_and_continue

logger = logging.getLogger(__name__)

#: Longest refusal that is kept. The longest recorded one is under 3 KiB; some repeat the
#: whole request.
MAX_REFUSAL_BYTES = 8 * 1024 * 1024
#: How much more of a refusal is read before the attempt is cut off: beyond that a new
#: connection costs less than its rest.
MAX_DRAIN_BYTES = 1024 * 1024
#: Bound of the first-event gate, bytes.
MAX_GATE_BYTES = 65536

#: Longest body a refusal may unpack to.
MAX_PLAIN_BYTES = 16 * 1024 * 1024
#: How much of the beginning of a response is looked at for ids and the like.
MAX_HELD_PLAIN_BYTES = 4 * 1024 * 1024
#: How much of a refusal is looked at as a text.
MAX_TEXT_BYTES = 65536
#: How much of the beginning of a compressed response is unpacked to find what it took.
MAX_OPENING_BYTES = 64 * 1024
#: Longest refusal that is repeated to requests its account cannot serve.
MAX_REMEMBERED_BYTES = 65536

#: How often a response's `date` is compared with our clock, and how far they may differ: what
#: is further apart is a clock that was never set, not a slow response. Seconds.
CHECK_CLOCK_S, CLOCK_TOLERANCE_S = 60.0, 120.0
#: How many of the last events of a stream may tell that it failed.
LATE_EVENTS = 16
#: An item of an array that is an error.
_FAILED_ITEM = re.compile(rb'\{\s*"error"\s*:\s*\{')
#: How the streams of vendors say that nothing follows.
_SAYS_END = re.compile(
    rb'data: ?\[DONE\]|"message_stop"|"(?:response|interaction)\.(?:completed|incomplete|failed)"|'
    rb'"(?:finish_?[rR]eason|stop_reason)"\s*:\s*"'
)
_GOOD = StreamVerdict(Verdict.COMMIT)
#: Where data is waited for, these may be a refusal.
_NOT_DATA = frozenset({"html", "text"})
#: Responses of few types come; each is looked at once.
_shape_of = lru_cache(maxsize=256)(gate_shape)


class ResponseReader:
    """Reads one response.

    Attributes:
        response: its head, as it came.
        held: the raw body so far.
        complete: whether *held* is the whole body.
        broken: it ended before it was complete.
        encoding: its content-encoding, "" for none.
        in_stream: whether a refusal came inside a response that began as a success.
        first: what the head alone tells.
    """

    def __init__(
        self, response: http.Response, provider: Provider, asked: RequestHead | None = None
    ) -> None:
        self.response = response
        self.held: list[bytes] = []
        self.complete = self.broken = False
        self._size = 0
        self._drained = 0
        self._decision: StreamVerdict | None = None
        self._refusal = response.status_code >= 400
        self.in_stream = not self._refusal
        self._judge = provider.judge
        self._marks = provider.error_marks
        self._decoder: Decoder | None = None
        headers = response.headers
        if not isinstance(headers, IndexedHeaders):
            # mitmproxy asks the head for its framing a dozen times from here on.
            response.data.headers = headers = IndexedHeaders.of(headers.fields)
        content_type = (headers.last(b"content-type") or b"").decode("latin-1")
        length = headers.last(b"content-length") or b""
        self.encoding = ""
        if headers.last(b"content-encoding") is not None:
            self.encoding = headers.get("content-encoding", "").strip()
        if self.encoding and decoding.is_none(self.encoding):
            self.encoding = ""
        self._announced = int(length) if length.isdigit() else -1
        shape = _shape_of(content_type)
        self._streams = shape == "sse"
        if shape in _NOT_DATA and not (asked and expects_data(asked, provider.model or body_model)):
            shape = None
        self._gated = shape if 200 <= response.status_code < 300 else None
        if self.encoding and (self._gated or self._refusal):
            most = MAX_PLAIN_BYTES if self._refusal else 2 * MAX_GATE_BYTES
            try:
                self._decoder = Decoder(self.encoding, max_bytes=most, streams=not self._refusal)
            except ValueError:
                # An encoding the client asked for and we cannot read: nothing can be
                # told from the body, so a success is taken for one.
                self._gated = None
        self._text = bytearray()
        self.first = Verdict.CONTINUE if self._refusal or self._gated else Verdict.COMMIT

    @cached_property
    def _gate(self) -> Gate:
        assert self._gated is not None
        return Gate(self._judge, self._gated, max_bytes=MAX_GATE_BYTES, marks=self._marks)

    def feed(self, data: bytes) -> Verdict:
        """Take in the next piece of the body."""
        self.held.append(data)
        self._size += len(data)
        if self._gated:
            if self._decision is None:
                decoded = self._decode(data)
                self._decision = (
                    self._gate.expired() if decoded is None else self._gate.feed(decoded)
                )
            # All of it is here, and its end comes with it: a response in one piece costs
            # less to hand on than one that streams.
            if self._decision is None or self._size == self._announced:
                return Verdict.CONTINUE
            return self._decision.verdict
        self._unpack(data)
        return Verdict.REFUSE if self._size > MAX_REFUSAL_BYTES else Verdict.CONTINUE

    def drain(self, data: bytes) -> bool:
        """Take in a piece of what is refused already; say whether to go on reading."""
        self.held.append(data)
        self._drained += len(data)
        self._unpack(data)
        return self._drained <= MAX_DRAIN_BYTES

    def end(self, last: bytes = b"") -> Verdict:
        """The body has ended, with *last*."""
        self.complete = True
        if self._is_surely_good(last):
            self.held, self._decision = [last], _GOOD
        elif last:
            self.feed(last)
        if not self._gated:
            return Verdict.REFUSE
        self._decision = self._decision or self._gate.end()
        return self._decision.verdict

    def _is_surely_good(self, body: bytes) -> bool:
        """Say whether *body*, if it is all there is, holds no error: mostly no gate is needed."""
        in_one_piece = self._gated == "json" and not (self.held or self.encoding)
        return in_one_piece and body[:1] == b"{" and not self._marks.search(body)

    def expired(self) -> Verdict:
        """The time bound has come. What was decided before it stays."""
        if not self._gated:
            return Verdict.REFUSE
        self._decision = self._decision or self._gate.expired()
        return self._decision.verdict

    @property
    def may_follow(self) -> bool:
        """Whether the body may be handed on as it comes, and what still comes of it."""
        return not (self.complete or self.broken) and (not self.encoding or self.is_left_alone)

    @property
    def is_left_alone(self) -> bool:
        """Whether the body is handed on although it cannot be searched for a credential.

        Not what refuses a credential: that may quote it.
        """
        refuses_key = self.response.status_code in (401, 403)
        return decoding.is_left_alone(self.encoding) and not refuses_key

    def upstream_response(self, model: str | None, wall_now: float) -> UpstreamResponse:
        """Return what was read, as values for `Provider.classify`."""
        headers: dict[str, str] = {}
        for raw_name, raw_value in self.response.headers.fields:
            lower, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[lower] = f"{headers[lower]}, {value}" if lower in headers else value
        decision = self._decision
        body = bytes(self._text) if self.encoding else self._joined()
        text = body[:MAX_TEXT_BYTES].decode("utf-8", "replace")
        return UpstreamResponse(
            status=self.response.status_code,
            headers=headers,
            text=text,
            payload=decision.payload if decision else _json(body),
            in_stream=self.in_stream,
            event=decision.event if decision else None,
            model=model,
            wall_now=wall_now,
        )

    def _joined(self) -> bytes:
        if len(self.held) > 1:
            self.held = [b"".join(self.held)]
        return self.held[0] if self.held else b""

    def opening(self) -> bytes:
        """Return what is held of the body, decoded as far as it can be."""
        held = self._joined()
        if not self.encoding:
            return held
        try:
            return Decoder(self.encoding, max_bytes=MAX_HELD_PLAIN_BYTES).feed(held)
        except ValueError:
            return b""

    def plain(self) -> bytes:
        """Return the whole body decoded. Raises ValueError if it cannot be, or is a bomb."""
        held = self._joined()
        if not self.encoding:
            return held
        decoder, plain = self._decoder, bytes(self._text)
        if self.in_stream:
            decoder = Decoder(self.encoding, max_bytes=MAX_PLAIN_BYTES)
            plain = decoder.feed(held)
        if decoder is None or decoder.is_full:
            raise ValueError("the body cannot be unpacked, or is too large then")
        return plain

    def ended(
        self, body: bytes | bytearray, tail: bytes | bytearray
    ) -> tuple[Usage | None, StreamVerdict | None]:
        """Return what a good response took, and the error it ended with, where it says so.

        Args:
            body: from its beginning on, as it came.
            tail: its end without the content-encoding, where *body* is not all.
        """
        if not self._gated:
            return None, None
        if self.encoding:
            body, tail = self._unpacked(body, tail)
        refused = self._refused_at_its_end(body, tail)
        return of_answer(body, tail), refused

    def is_whole(self, body: bytes | bytearray, tail: bytes | bytearray) -> bool:
        """Say whether a response that was cut off had said that it ends; see `ended`."""
        if self.encoding:
            body, tail = self._unpacked(body, tail)
        return _SAYS_END.search(bytes((tail or body)[-END_BYTES:])) is not None

    def _unpacked(
        self, body: bytes | bytearray, tail: bytes | bytearray
    ) -> tuple[bytes, bytes | bytearray]:
        """Return beginning and end of a body without its content-encoding."""
        if not tail:
            end = End(self.encoding, keep_bytes=END_BYTES)
            end.feed(body)
            tail = end.kept
        try:
            opening = Decoder(self.encoding, max_bytes=MAX_OPENING_BYTES)
            return opening.feed(bytes(body[:MAX_OPENING_BYTES])), tail
        except ValueError:
            return b"", tail

    def _refused_at_its_end(
        self, body: bytes | bytearray, tail: bytes | bytearray
    ) -> StreamVerdict | None:
        """Return the error that a stream which began well has ended with, if any."""
        end = bytes((tail or body)[-END_BYTES:])
        if self._streams:
            return self._last_event(_last_events(end))
        # Gemini streams an array where no events are asked for.
        array = body[:16].lstrip()[:1] == b"["
        return self._last_item(end) if array else None

    def _last_event(self, end: bytes) -> StreamVerdict | None:
        if not self._marks.search(end):
            return None
        parser = EventParser()
        for event in reversed([*parser.feed(end), *parser.end()]):
            value = _json(event.data.encode("utf-8", "replace"))
            if isinstance(value, dict) and self._judge(event.name, value) is Verdict.REFUSE:
                return StreamVerdict(Verdict.REFUSE, value, event.name)
        return None

    def _last_item(self, end: bytes) -> StreamVerdict | None:
        found = [*_FAILED_ITEM.finditer(end)]
        text = end[found[-1].start() :] if found else b""
        value = _json(text.rstrip(b"], \t\r\n"))
        if isinstance(value, dict) and self._judge(None, value) is Verdict.REFUSE:
            return StreamVerdict(Verdict.REFUSE, value)
        return None

    def late_response(
        self, decision: StreamVerdict, model: str | None, wall_now: float
    ) -> UpstreamResponse:
        """Return what *decision* refused with, as values for `Provider.classify`."""
        told = self.upstream_response(model, wall_now)
        return replace(told, payload=decision.payload, event=decision.event, in_stream=True)

    def _unpack(self, data: bytes) -> None:
        """Take the next piece of a refusal without its encoding, once: it is long work."""
        if self.encoding and self._refusal:
            self._text += self._decode(data) or b""
            if self._decoder is None or self._decoder.is_full:
                # It will not be read as a whole: many at once shall not fill the memory.
                self._text = self._text[:MAX_TEXT_BYTES]

    def _decode(self, data: bytes) -> bytes | None:
        """Return the decoded piece, None when the body cannot be read."""
        if not self.encoding:
            return data
        if self._decoder is None:
            return None
        try:
            return self._decoder.feed(data)
        except ValueError:
            self._decoder = None
            return None


def _last_events(end: bytes) -> bytes:
    """Return the last events of a stream, roughly `LATE_EVENTS` of them."""
    blank = b"\n\r\n" if b"\n\r\n" in end else b"\n\n"
    at = len(end)
    for _ in range(LATE_EVENTS):
        at = end.rfind(blank, 0, at)
        if at < 0:
            return end
    return end[at:]


def _json(body: bytes) -> Any:
    """Parse a body that looks like JSON; None otherwise."""
    if body.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        return msgspec.json.decode(body)
    except NOT_READ:
        pass
    if len(body) > MAX_TEXT_BYTES:
        return None
    try:
        # NaN and broken characters are no JSON, but occur.
        return json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


# -- what it says of the account that gave it


class ResponseObserver:
    """Observes the responses of one proxy.

    Attributes:
        pool: learns limits and owners.
        hosts: of the providers that have accounts.
        wrong_clock: what is wrong with this machine's clock, for people; "" if nothing is.
    """

    def __init__(self, pool: Pool, pins: Pins, usages: Usages, clock: HasClocks) -> None:
        self.pool = pool
        self.hosts = HostIndex([])
        self._pins, self._usages = pins, usages
        self._clock = clock
        self.wrong_clock, self._clock_said = "", False
        self._check_clock_at = -inf
        #: the credential with which an account's responses have named its owner, or not
        self._owned: dict[AccountKey, Credential] = {}

    def head(self, provider: Provider, lease: Lease, response: http.Response) -> None:
        """Learn what the head of a response says of the account of *lease*."""
        try:
            now, wall_now = self._clock.now(), self._clock.wall_now()
            if now >= self._check_clock_at:
                self._check_clock_at = now + CHECK_CLOCK_S
                self._check_clock(provider, response, wall_now)
            is_held = lease.epoch == lease.state.epoch
            if is_held and self._owned.get(lease.key) is not lease.credential:
                self._learn_owner(provider, lease, response)
            if provider.issued_headers:
                self._learn_tokens(provider, lease, response, wall_now)
            context = ResponseContext(lease.facts.model, now, wall_now)
            if windows := headroom_parsing.from_headers(response.headers.fields, context):
                self.pool.observe_headroom(lease.key, windows, now=now, lease=lease)
        except Exception as e:
            log_and_continue.log(e)

    def body(self, call: PooledRequest, lease: Lease, reader: ResponseReader) -> None:
        """Learn what the beginning of a good response says, and what was made on the account."""
        try:
            provider = call.provider
            if provider.headroom_marks:
                self.events(provider, lease, reader.opening(), lease.facts.model)
            for made in provider.created_ids(call.head, reader.opening, reader.response.headers):
                self._pins.remember(lease.key, made, self._clock.wall_now())
        except Exception as e:
            log_and_continue.log(e)

    def events(self, provider: Provider, lease: Lease, content: bytes, model: str | None) -> None:
        """Learn limits from *content*, a frame or some events, of a turn with *model*."""
        marks = provider.headroom_marks
        if any(mark in content for mark in marks):
            context = ResponseContext(model, self._clock.now(), self._clock.wall_now())
            if windows := headroom_parsing.from_events(content, marks, context):
                self.pool.observe_headroom(lease.key, windows, now=context.now, lease=lease)

    def end(
        self,
        provider: Provider,
        attempts: Attempts,
        reader: ResponseReader,
        body: bytes | bytearray,
        tail: bytearray,
        *,
        cut_off: bool = False,
    ) -> ServedAs:
        """Count what a good response took, and learn from an error it ended with.

        The client has that error, too. Of one that was *cut_off* counts what it had told: its
        client may have left because it had all. *body* and *tail* are as in
        `ResponseReader.ended`.
        """
        served_as = NOT_COUNTED
        try:
            model = attempts.facts.model
            usage, refused = reader.ended(body, tail)
            key, wall_now = attempts.history[-1].key, self._clock.wall_now()
            counted = self._usages.count(key, model, usage, wall_now)
            whole = refused is None and not (cut_off and not reader.is_whole(body, tail))
            served_as = ServedAs(whole, usage, counted)
            if refused is not None:
                response = reader.late_response(refused, model, wall_now)
                reactions.refused_late(attempts, provider.classify(response), self._clock.now())
        except Exception as e:
            log_and_continue.log(e)
        return served_as

    def served(
        self, attempts: Attempts, model: str | None, usage: Usage | None, *, requests: int = 1
    ) -> CountKey:
        """Count what the account of the committed attempt has served; return as what."""
        key, wall_now = attempts.history[-1].key, self._clock.wall_now()
        return self._usages.count(key, model, usage, wall_now, requests=requests)

    def forget(self, key: AccountKey) -> None:
        """*key* is gone: nothing of it is kept."""
        self._owned.pop(key, None)

    def _check_clock(self, provider: Provider, response: http.Response, wall_now: float) -> None:
        """Note whether this machine's clock is minutes away from the providers'; say so once."""
        date = reset_hints.http_date(response.headers.get("date", ""))
        if date is None:
            return
        ahead_s = wall_now - date
        if abs(ahead_s) <= CLOCK_TOLERANCE_S:
            self.wrong_clock = ""
            return
        side = "ahead of" if ahead_s > 0 else "behind"
        self.wrong_clock = (
            f"this machine's clock is {duration(abs(ahead_s))} {side} that of {provider.name}; "
            "synchronise it: until then resets and logins end at the wrong time"
        )
        if not self._clock_said:
            self._clock_said = True
            logger.warning(self.wrong_clock)

    def _learn_owner(self, provider: Provider, lease: Lease, response: http.Response) -> None:
        """Learn whose limits the account of *lease* shares."""
        if response.status_code < 400:
            self._owned[lease.key] = lease.credential
        if host := lease.account.companions.get("host"):
            # Sent elsewhere than the client sent it: perhaps to a gateway.
            origin = Origin.parse(host)
            found = self.hosts.find(origin.host, origin.port)
            provider = next((p for p in found if p.name == provider.name), provider)
        if provider.owner is not None and (
            owner := provider.owner(fields_by_name(response.headers.fields))
        ):
            self.pool.health.learn_owner(lease.key, owner)

    def _learn_tokens(
        self, provider: Provider, lease: Lease, response: http.Response, wall_now: float
    ) -> None:
        """Learn which tokens the account of *lease* issued."""
        # Mostly none of them is there: that much is seen without a look at every value.
        if any(name in response.headers for name in provider.issued_headers):
            headers = fields_by_name(response.headers.fields)
            for name in provider.issued_headers:
                if token := headers.get(name):
                    self._pins.remember(lease.key, token, wall_now)


class StoredRefusal(Struct, frozen=True):
    """The last refusal of an account, for requests that arrive while it is on cooldown."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Refusals:
    """The last refusals of accounts: a limit, and one that was the account's own fault."""

    def __init__(self) -> None:
        self._stored: dict[tuple[AccountKey, bool], StoredRefusal] = {}

    def remember(
        self, key: AccountKey, reader: ResponseReader, secrets: Secrets, *, blamed: bool = False
    ) -> None:
        """Keep a refusal, to be repeated to requests that *key* cannot serve.

        *blamed*: it was its own fault, and no limit.
        """
        try:
            text = mask(reader.plain(), secrets)
        except ValueError:
            return
        if len(text) > MAX_REMEMBERED_BYTES or not (reader.complete or reader.in_stream):
            return
        head = reader.response
        fields = mask_fields(head.headers.fields, secrets)
        self._stored[key, blamed] = StoredRefusal(head.status_code, fields, text)

    def find(self, key: AccountKey | None, *, blamed: bool = False) -> StoredRefusal | None:
        """Return the last refusal of *key*, if there is one."""
        return self._stored.get((key, blamed)) if key is not None else None

    def forget(self, key: AccountKey) -> None:
        """*key* is gone: nothing of it is kept."""
        for blamed in (False, True):
            self._stored.pop((key, blamed), None)
