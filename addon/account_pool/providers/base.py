"""The shape of a provider: everything the pool must know about one API family.

A provider is a value. A module of this package builds one `Provider` from tables and
small pure functions; `like:` services of a user are copies of it with other hosts.
Nothing here knows mitmproxy, reads a clock or does I/O. To add a provider, copy
`openai.py`: its sections stand in the order of the fields of `Provider`.

What a provider sees of a request is a `RequestHead`; what several of them read from it fails
on no malformed input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cached_property
from typing import Any

import msgspec
from msgspec.structs import replace

from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.headroom_parsing import COUNTED_WINDOWS
from account_pool.core.json_values import NOT_READ
from account_pool.core.lease import NO_CONVERSATION, Conversation
from account_pool.core.meaning import LazyPattern
from account_pool.core.outcome import Outcome, UpstreamResponse
from account_pool.core.signals import SignalTable
from account_pool.core.sse import HAS_ERROR, Verdict


class RequestHead(msgspec.Struct, kw_only=True, dict=True):
    """A request as a provider sees it. Not to be changed by one. `repr()` shows no credential.

    Not frozen: one is made per request, a frozen one costs several times as much, and
    its body comes later than its head: whoever has it sets `body`, and `json` with it.

    Attributes:
        method: upper case.
        host, port: where the connection goes, never the Host header.
        path: without the query.
        query: without "?", "" if none.
        headers: by lower-case name, first value of each.
        body: the complete body with its content-encoding removed; b"" when there is
            none, or when it is streamed through unread.
    """

    method: str
    host: str
    port: int
    path: str
    query: str = ""
    headers: Mapping[str, str] = {}
    body: bytes = b""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.method} {self.host}:{self.port}{self.path})"

    @cached_property
    def json(self) -> Body | None:
        """The body, parsed once; None if it is not a JSON object."""
        return body_from(self.body)


_NOTHING = msgspec.Raw(b"")
#: Begins a pattern of paths: one with a step up ("..") in any spelling is another path to a
#: server. https://www.rfc-editor.org/rfc/rfc3986#section-5.2.4; many decode first.
NO_STEP = r"(?!(?is:.*(?:[/\\]|%2f|%5c)(?:\.|%2e){1,2}(?:[/\\;]|%2f|%5c|\Z)))"
#: The list of models, and one of it.
MODELS = LazyPattern(NO_STEP + r"/v1/models(?:/[^/]+)?")


class Body(msgspec.Struct):
    """The members of a JSON body that are used; long ones are located, not parsed.

    Each belongs to one API or several (`sessions.py` says which). A member of the wrong type
    is accepted, so that malformed input fails no request.
    """

    model: str | None = None
    agent: Any = None
    store: Any = None
    prompt_cache_key: Any = None
    session_id: Any = None
    previous_response_id: Any = None
    previous_interaction_id: Any = None
    environment: Any = None
    conversation: Any = None
    container: Any = None
    metadata: msgspec.Raw = _NOTHING
    cachedContent: Any = None  # noqa: N815 - the names of Google
    cached_content: Any = None
    systemInstruction: msgspec.Raw = _NOTHING  # noqa: N815
    system_instruction: msgspec.Raw = _NOTHING
    contents: msgspec.Raw = _NOTHING
    system: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    tools: msgspec.Raw = _NOTHING
    request: msgspec.Raw = _NOTHING


#: Parses a body. Raises one of NOT_READ if it is not a JSON object.
decoded_body = msgspec.json.Decoder(Body).decode


def body_from(text: bytes | msgspec.Raw) -> Body | None:
    """Return *text* parsed; None if it is not a JSON object."""
    try:
        return decoded_body(text)
    except NOT_READ:
        return None


def body_model(head: RequestHead) -> str | None:
    """Return `model` of a JSON body without building the rest of it."""
    return (head.json.model or None) if head.json is not None else None


def expects_data(head: RequestHead, model: Callable[[RequestHead], str | None]) -> bool:
    """Say whether a client waits for JSON or events: an HTML page is from something in between.

    It says so, or would take anything from a *model*; what is only fetched may be a page.
    """
    accepted = head.headers.get("accept", "").lower()
    if head.method != "POST" or "html" in accepted:
        return False
    return "json" in accepted or "event-stream" in accepted or model(head) is not None


def bearer(head: RequestHead) -> str:
    """Return the token of `Authorization`, whatever the scheme; "" if none."""
    _scheme, _, token = head.headers.get("authorization", "").strip().partition(" ")
    return token.strip()


def is_websocket(head: RequestHead) -> bool:
    """Return whether the request asks for a WebSocket (RFC 6455 4.2.1)."""
    return head.headers.get("upgrade", "").strip().lower() == "websocket"


class Route(StrEnum):
    """Who serves a request."""

    #: an account of the pool serves it
    POOL = "pool"
    #: it passes as the client sent it: login, telemetry, state of the client's account
    PASS = "pass"  # noqa: S105 - the word, not a password
    #: the pool answers it itself: a client's own token exchange
    LOCAL = "local"


#: Of a host that is written without a port.
HTTPS_PORT = 443


class HostRule(msgspec.Struct, frozen=True):
    """A host of a provider.

    Attributes:
        host: lower case, without port. With *subdomains*, a suffix matched at a dot:
            `githubcopilot.com` matches `api.githubcopilot.com`, never
            `githubcopilot.com.example` nor `xgithubcopilot.com`.
        port: what stands behind another port of the host is somebody else.
        subdomains: match sub-domains instead of the name itself.
    """

    host: str
    port: int = HTTPS_PORT
    subdomains: bool = False

    def matches(self, host: str, port: int) -> bool:
        if self.port != port:
            return False
        return host.endswith("." + self.host) if self.subdomains else host == self.host

    @classmethod
    def parse(cls, text: str) -> HostRule:
        """Read `host`, `host:port`, `*.host` or `[::1]:port`; ValueError says why not."""
        rest, port = text.strip().lower(), HTTPS_PORT
        subdomains = rest.startswith("*.")
        rest = rest.removeprefix("*.")
        if rest.startswith("["):
            rest, bracket, tail = rest[1:].partition("]")
            if not bracket or (tail and not tail.startswith(":")):
                raise ValueError(f"{text!r}: write an IPv6 address as [::1]:9443")
            port_text = tail[1:]
        elif rest.count(":") > 1:
            raise ValueError(f"{text!r}: write an IPv6 address as [::1]:9443")
        else:
            rest, _, port_text = rest.partition(":")
        if port_text:
            if not port_text.isascii() or not port_text.isdigit() or not 0 < int(port_text) < 65536:
                raise ValueError(f"{text!r}: the port must be a number from 1 to 65535")
            port = int(port_text)
        if not rest or any(c in rest for c in "/ @?#*"):
            raise ValueError(f"{text!r}: write host or host:port, without a scheme or a path")
        return cls(rest, port, subdomains)


class Origin(msgspec.Struct, frozen=True):
    """Where a request is sent, always by TLS unless the host is loopback."""

    host: str
    port: int = 443

    @classmethod
    def parse(cls, text: str) -> Origin:
        """Read `host` or `host:port`. Raises ValueError."""
        rule = HostRule.parse(text)
        return cls(rule.host, rule.port)


class CannotSwap(ValueError):
    """A request that cannot be made the account's own; the text says why, without secrets."""


class Swap(msgspec.Struct, frozen=True, kw_only=True):
    """How a request is made the account's own. Whole or not at all.

    Built once per credential, applied to every copy that is sent. `repr()` shows the
    header names only.

    Attributes:
        headers: put in place of what is dropped: lower-case name, value.
        drop: lower-case names removed from the client's request: its own credential
            and its companions, whatever header they came in.
        drop_query: query parameters removed, e.g. Gemini's `key`.
        query: query parameters put in their place.
        origin: send it there; None: where the client sent it.
        by_path: for a path that contains the text, that swap in place of this one: the
            same credential in another header, or another host of the same account.
        edit: headers whose value follows from the client's: lower-case name, and a
            function of that value (None: it sent none) that gives the new one (None: it
            goes). Not for names in *headers* or *drop*.
        path: the path without its query -> that of the account, e.g. its deployment.
        body: (path, complete body without its content-encoding) -> the account's, e.g.
            with its project. The same object when nothing is to change. Raises
            CannotSwap. Such a request cannot be streamed through unread.
    """

    headers: tuple[tuple[bytes, bytes], ...]
    drop: frozenset[bytes] = frozenset()
    drop_query: tuple[str, ...] = ()
    query: tuple[tuple[str, str], ...] = ()
    origin: Origin | None = None
    by_path: tuple[tuple[str, Swap], ...] = ()
    edit: tuple[tuple[bytes, Callable[[bytes | None], bytes | None]], ...] = ()
    path: Callable[[str], str] | None = None
    body: Callable[[str, bytes], bytes] | None = None

    def __repr__(self) -> str:
        return f"Swap(drop={self.drop!r}, origin={self.origin!r})"  # no credential

    def for_path(self, path: str) -> Swap:
        """Return the swap for a request to *path* (without the query)."""
        for part, swap in self.by_path:
            if part in path:
                return swap
        return self


class LocalResponse(msgspec.Struct, frozen=True):
    """A response the pool gives itself, in the provider's envelope."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """One API family.

    Attributes:
        name: as written in accounts.yaml.
        hosts: where its API lives.
        env: environment variables that hold a credential when there is no
            accounts.yaml, in order of preference.
        route: who serves a request.
        posts: paths of which it says that an account serves a POST, whatever else that says:
            mostly it need not be asked.
        kind: which kind of credential the request takes (`Credential.kind`), judged
            by the client that sent it; None: *token_kind*.
        model: the model a request asks for, None if it names none; None: `body_model` tells.
        credential_headers: lower-case names that may carry the client's credential or
            companions of it; masked on everything that is shown or written to disk.
        credential_query: query parameters that may.
        conversation: what a request is a part of, by the ids its client gave it.
        issued_headers: lower-case names of headers in which an account hands out tokens that
            its client returns: they go back to that account, or not at all.
        created_ids: the ids in a good response that only its account knows: (request, the
            beginning of the body, read when it is asked for, the headers).
        unknown_login_response: what a client gets for a request that passes, when the
            provider does not know the client's own login (401); None: that response.
        swap: how an account's credential goes on the wire.
        judge: what one event says: (name of the event or None, its JSON value or None
            when the data is not JSON, such as "[DONE]"). A whole JSON body is judged
            the same way, with the name None.
        error_marks: what occurs in every JSON object that is an error inside a success.
        windows: names of the windows that its responses report; empty: it reports none.
        headroom_marks: what occurs in every event that reports what the account has left
            (`core/headroom_parsing.py`); nothing is looked for where there are none.
        classify: what a response means. Total: never raises.
        signals: the table *classify* reads, where a service that is like this provider, or a
            gateway to it, may read it otherwise.
        refusal: an error of the pool's own in the provider's envelope:
            (status, message, seconds until it is worth trying again or None).
        delay: the headers that tell the vendor's clients to wait so many seconds,
            in place of those named in *delay_headers*.
        delay_headers: lower-case names of the wait headers a refusal may carry.
        avoids_websocket: whether a client that asks for a WebSocket is better served by
            HTTP, where every request can be replayed: it falls back at once on a 426.
        delay_body: the same inside a JSON error body, for providers that spell it
            there: (text, seconds, wall clock in seconds since the epoch) -> text.
        instants: headers of a refusal that name the moment of return, set anew where
            they are present: lower-case name, and its value for seconds since the epoch.
        token_kind: the `Credential.kind` of the accounts' tokens.
        misplaced: why a token cannot be one of this provider, and where it belongs; None
            if it can. Never quotes it.
        token_companions: what a token says of itself: account ids, host.
        token_expiry: when a token ends by its own word, seconds since the epoch.
        owner: whose limits a response speaks of: an organisation, team or project that
            several accounts may share; None if it does not say. Given the headers. None: no
            response says it.
        holder: the same, where the credential says it and no response does.
        lacking: why a credential cannot be used although its token is a good one: what
            the owner must write beside it; None if it can.
        added_hosts: those of its hosts that a user added: a response there does not say whose
            limits it speaks of.
        host_per_account: its hosts are those its accounts name, and no others.
        companions: keys of accounts.yaml that its accounts may set beside the token.
    """

    name: str
    hosts: tuple[HostRule, ...]
    env: tuple[str, ...]
    route: Callable[[RequestHead], Route]
    posts: frozenset[str] = frozenset()
    kind: Callable[[RequestHead], str] | None = None
    model: Callable[[RequestHead], str | None] | None = None
    credential_headers: frozenset[bytes]
    credential_query: tuple[str, ...] = ()
    conversation: Callable[[RequestHead], Conversation] = lambda _head: NO_CONVERSATION
    issued_headers: frozenset[str] = frozenset()
    created_ids: Callable[
        [RequestHead, Callable[[], bytes], Mapping[str, str]], tuple[str, ...]
    ] = lambda _head, _read, _headers: ()
    unknown_login_response: Callable[[RequestHead], LocalResponse | None] = lambda _head: None
    swap: Callable[[Account, Credential], Swap]
    judge: Callable[[str | None, Any], Verdict]
    error_marks: re.Pattern[bytes] = HAS_ERROR
    headroom_marks: tuple[bytes, ...] = ()
    windows: tuple[str, ...] = COUNTED_WINDOWS
    classify: Callable[[UpstreamResponse], Outcome]
    signals: SignalTable | None = None
    refusal: Callable[[int, str, float | None], LocalResponse]
    delay: Callable[[float], tuple[tuple[str, str], ...]]
    delay_headers: frozenset[str] = frozenset({"retry-after"})
    avoids_websocket: Callable[[RequestHead], bool] = lambda _head: False
    delay_body: Callable[[str, float, float], str] = lambda text, _seconds, _wall_now: text
    instants: Mapping[str, Callable[[float], str]] = msgspec.field(default_factory=dict)
    token_kind: str = "key"  # noqa: S105 - the word
    misplaced: Callable[[str], str | None] = lambda _token: None
    token_companions: Callable[[str], Mapping[str, str]] = lambda _token: {}
    token_expiry: Callable[[str], float | None] = lambda _token: None
    owner: Callable[[Mapping[str, str]], str | None] | None = None
    holder: Callable[[Credential], str | None] = lambda _credential: None
    lacking: Callable[[Credential], str | None] = lambda _credential: None
    added_hosts: frozenset[HostRule] = frozenset()
    host_per_account: bool = False
    companions: frozenset[str] = frozenset({"host"})


def behind_gateway(provider: Provider) -> Provider:
    """Return *provider*, whose responses do not say whose limits they speak of.

    An organisation or project that is named there may be that of all of a gateway's keys,
    while each key has its own limits.
    """
    if provider.signals is not None:
        signals = replace(provider.signals, names_owner=False)
        return replace(provider, owner=None, classify=signals.classify, signals=signals)

    def classify(response: UpstreamResponse) -> Outcome:
        outcome = provider.classify(response)
        return outcome if outcome.owner is None else replace(outcome, owner=None)

    return replace(provider, owner=None, classify=classify)
