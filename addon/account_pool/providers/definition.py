"""Providers made of others: with more hosts, behind a gateway, as somebody described them.

`definition_reader.py` reads and checks what was written, in accounts.yaml or `builtin.yaml`;
here it becomes a `Provider`. Pure: values in, a provider out. docs/providers.md explains the
keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import tzinfo
from fnmatch import fnmatchcase
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from account_pool.core import json_values, reset_hints, signals
from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.meaning import LazyPattern
from account_pool.core.outcome import (
    ErrorFacts,
    Outcome,
    OutcomeClass,
    Scope,
    UpstreamResponse,
    read_facts,
)
from account_pool.core.signals import Rule, SignalTable, Wait
from account_pool.core.sse import HAS_ERROR, HAS_FAILURE, Judge, Verdict
from account_pool.providers.base import (
    NO_STEP,
    HostRule,
    Provider,
    RequestHead,
    Route,
    Swap,
    behind_gateway,
)


def add_hosts(provider: Provider, hosts: Iterable[HostRule]) -> Provider:
    """Return *provider* with more hosts, for `providers: {openai: {hosts: [...]}}`."""
    more = [rule for rule in hosts if rule not in provider.hosts]
    return replace(
        provider,
        hosts=tuple(dict.fromkeys((*provider.hosts, *more))),
        added_hosts=provider.added_hosts.union(more),
    )


def like(base: Provider, name: str, hosts: Iterable[HostRule]) -> Provider:
    """Return a service of one's own that speaks the API of *base* on other hosts.

    Its paths may stand under any prefix: `/chat/completions`, `/api/v1/chat/completions`
    and `/team/openai/v1/chat/completions` are one. It has no hosts of *base* and none
    of its environment variables: a key of one must not be sent to the other.
    """

    def route(head: RequestHead) -> Route:
        return _route_under_any_prefix(base, head)

    # Services may fail without an `error`.
    marks = HAS_FAILURE if base.error_marks is HAS_ERROR else base.error_marks
    changed = replace(base, name=name, hosts=tuple(hosts), env=(), route=route, error_marks=marks)
    if base.signals is not None:
        # How far the limits of its plans reach is not known: as far as they say.
        signals = replace(base.signals, plan_scope=Scope.ACCOUNT)
        changed = replace(changed, signals=signals, classify=signals.classify)
    return behind_gateway(changed)


#: Deepest prefix that is looked for.
_MAX_SEGMENTS = 12


def _route_under_any_prefix(base: Provider, head: RequestHead) -> Route:
    """Return the first route other than PASS among the tails of the path."""
    segments = head.path.split("/")[1:]
    if len(segments) > _MAX_SEGMENTS:
        return Route.PASS
    for start in range(len(segments)):
        tail = "/" + "/".join(segments[start:])
        for path in (tail, "/v1" + tail):
            found = base.route(replace(head, path=path))
            if found is not Route.PASS:
                return found
    return Route.PASS


#: The value of a header or field -> seconds from now; given the wall clock, and the time
#: zone of dates that name none.
ResetReader = Callable[[object, float | None, tzinfo | None], float | None]

#: How a reset is spelled: the values of `as`.
SPELLINGS: Mapping[str, ResetReader] = {
    "seconds": lambda value, _now, _zone: reset_hints.seconds(value),
    "milliseconds": lambda value, _now, _zone: reset_hints.milliseconds(value),
    "epoch": reset_hints.instant,
    "epoch_ms": reset_hints.instant,
    "duration": lambda value, _now, _zone: reset_hints.duration(value),
    "rfc3339": reset_hints.instant,
    "auto": reset_hints.reset,
}
#: What a limit rule may conclude. Not `ok` nor `transport`, which need no rule.
CLASSES = (
    OutcomeClass.RATE_LIMIT,
    OutcomeClass.QUOTA,
    OutcomeClass.OVERLOADED,
    OutcomeClass.REQUEST_ERROR,
    OutcomeClass.AUTH_EXPIRED,
    OutcomeClass.AUTH_INVALID,
    OutcomeClass.FORBIDDEN_ACCOUNT,
    OutcomeClass.SERVER_ERROR,
)

#: How much of a message or header is searched.
MAX_TEXT_CHARS = 1024

Pointer = tuple[str, ...]
_STAYS = LazyPattern(NO_STEP)


def search(pattern: re.Pattern[str], text: str) -> bool:
    """Say whether *pattern* occurs in the beginning of *text*."""
    return pattern.search(text[:MAX_TEXT_CHARS]) is not None


class PathRule(Struct, frozen=True):
    """Requests that accounts of the pool serve: `GET /v1/models*`.

    `*` is any text that does not lead elsewhere: `/v1/models/../keys` is none of these.
    """

    method: str
    glob: str

    def matches(self, head: RequestHead) -> bool:
        return (
            head.method == self.method
            and fnmatchcase(head.path, self.glob)
            and _STAYS.match(head.path) is not None
        )


class Placement(Struct, frozen=True):
    """Where the credential goes: behind *prefix* in a header, or in a query parameter.

    Attributes:
        by_path: for a path that contains the text, that placement in place of this one.
    """

    header: str | None = None
    prefix: str = ""
    query: str | None = None
    by_path: tuple[tuple[str, Placement], ...] = ()


class Reset(Struct, frozen=True):
    """Where a response names its reset, and in which of `SPELLINGS`.

    Neither *header* nor *pointer*: in the sentence.
    """

    header: str | None = None
    pointer: Pointer | None = None
    spelling: str = "auto"


class OwnerPlace(Struct, frozen=True):
    """Where a response names whose limits it speaks of: one of three.

    Attributes:
        header: lower-case name.
        pointer: into the JSON body or event.
        pattern: in the sentence; the first group is the owner.
    """

    header: str | None = None
    pointer: Pointer | None = None
    pattern: re.Pattern[str] | None = None

    def find(self, facts: ErrorFacts) -> str | None:
        """Return the owner a refusal names, None if it does not say."""
        if self.header is not None:
            return facts.headers.get(self.header) or None
        if self.pointer is not None:
            return _named(facts, self.pointer)
        found = self.pattern.search(facts.message[:MAX_TEXT_CHARS]) if self.pattern else None
        return found[1] if found else None


class LimitRule(Struct, frozen=True, kw_only=True):
    """One row of `limits:`. Every condition that is given must hold.

    Attributes:
        cls: what it means.
        source: where it is written, e.g. accounts.yaml:12.
        why: what the log says of it; "": *source*.
        scope: how far it reaches; None: what is usual for the class.
        status: HTTP statuses; 200 stands for an error inside a response that began well.
        headers: lower-case name and pattern of each that must match.
        codes: one of which must be a code of the error, wherever that stands; lower case,
            `*` is any text.
        pointer: into the JSON body or event; what is there must not be null.
        equals: texts one of which the value at *pointer* must be; empty: any.
        regex: must occur in the value at *pointer*.
        message: must occur in what the envelope says in prose.
        resets: None: wherever resets usually stand; (): no wait cures it.
        model: pointer to the model the response names.
        missing_model: a request error that says that this account does not have the model.
        shared: whether the limit is that of the account's owner; None: what is usual.
    """

    cls: OutcomeClass
    source: str
    why: str = ""
    scope: Scope | None = None
    status: frozenset[int] = frozenset()
    headers: tuple[tuple[str, re.Pattern[str]], ...] = ()
    codes: frozenset[str] = frozenset()
    pointer: Pointer | None = None
    equals: frozenset[str] = frozenset()
    regex: re.Pattern[str] | None = None
    message: re.Pattern[str] | None = None
    resets: tuple[Reset, ...] | None = None
    model: Pointer | None = None
    missing_model: bool = False
    shared: bool | None = None

    @property
    def in_success(self) -> bool:
        """Say whether it finds errors in a response that began well."""
        if self.pointer is None and not self.codes:
            return False
        # A code is one in any status, unless some are named.
        return any(status < 400 for status in self.status) or bool(self.codes and not self.status)

    def refuses(self, payload: Mapping[str, Any]) -> bool:
        """Say whether *payload*, of a response that began well, is what the rule asks for."""
        if not self.finds(payload):
            return False
        if not self.codes:
            return True
        if not payload.keys() & _CODED or payload.get("choices"):
            return False
        return self.has_code(read_facts(UpstreamResponse(status=200, payload=payload)).words)

    def has_code(self, words: frozenset[str]) -> bool:
        """Say whether one of *words* is a code the rule asks for."""
        if not self.codes or not self.codes.isdisjoint(words):
            return True
        globs = [code for code in self.codes if "*" in code]
        return any(fnmatchcase(word, glob) for glob in globs for word in words)

    def finds(self, payload: Any) -> bool:
        """Say whether what is at the pointer of *payload* is what the rule asks for."""
        if self.pointer is None:
            return True
        value = json_values.find(payload, self.pointer)
        if value is None:
            return False
        text = _text(value)
        if self.equals and text not in self.equals:
            return False
        return self.regex is None or (text is not None and search(self.regex, text))

    def matches(self, facts: ErrorFacts) -> bool:
        """Say whether every condition but the status holds."""
        return (
            self.has_code(facts.words)
            and self.finds(facts.payload)
            and (self.message is None or search(self.message, facts.message))
            and all(search(pattern, facts.headers.get(name, "")) for name, pattern in self.headers)
        )

    def row(self) -> Rule:
        """Return the rule as a row for the engine of `core.signals`."""
        pointer = self.model
        return Rule(
            why=self.why or self.source,
            cls=self.cls,
            scope=self.scope,
            # Where no status is named an event inside a success has 0.
            status=frozenset(0 if status < 400 else status for status in self.status),
            when=self.matches,
            waits=None if self.resets is None else tuple(map(_wait, self.resets)),
            model=None if pointer is None else lambda facts: _named(facts, pointer),
            missing_model=self.missing_model,
            names_credential=self.cls is OutcomeClass.AUTH_INVALID
            and bool(self.codes or self.equals),
            shared=self.shared,
            # A rule that somebody wrote for it is as explicit as a code.
            explicit=True,
            source=self.source,
        )


#: One of them stands in every object that is an error with a code.
_CODED = frozenset(
    [
        "base_resp",
        "code",
        "err_code",
        "errcode",
        "error",
        "error_code",
        "errors",
        "response",
        "status_code",
        "type",
    ]
)


class Definition(Struct, frozen=True, kw_only=True):
    """What is written about a provider beside `like` and `hosts`.

    Attributes:
        paths: requests that are pooled, in place of those of the built-in provider.
        credential: where the credential goes, in place of where that one has it.
        drop: lower-case names of further headers that belong to the client's account.
        companions: key of accounts.yaml -> lower-case name of the header it goes into.
        owner: where responses name whose limits they are about.
        zone: the time zone of dates that name none; None: UTC.
        limits: rules that stand before those of the built-in provider.
    """

    paths: tuple[PathRule, ...] = ()
    credential: Placement | None = None
    drop: tuple[str, ...] = ()
    companions: Mapping[str, str] = field(default_factory=dict)
    owner: OwnerPlace | None = None
    zone: tzinfo | None = None
    limits: tuple[LimitRule, ...] = ()


def build(base: Provider, name: str, hosts: Iterable[HostRule], definition: Definition) -> Provider:
    """Return the provider *name*: *base* on other *hosts*, but for what *definition* says."""
    return with_limits(_placed(like(base, name, hosts), definition), definition)


def with_limits(provider: Provider, definition: Definition) -> Provider:
    """Return *provider* with the rules, owner and time zone of *definition* before its own."""
    limits, zone, owner = definition.limits, definition.zone, definition.owner
    if not limits and zone is None and owner is None:
        return provider
    judge = _judge(provider.judge, limits)
    table = SignalTable(rules=tuple(limit.row() for limit in limits), judge=judge)

    def classify(response: UpstreamResponse) -> Outcome:
        if zone is not None:
            response = replace(response, zone=zone)
        outcome = table.recognise(response) or provider.classify(response)
        if owner is None or not outcome.is_limit or outcome.owner is not None:
            return outcome
        named = owner.find(read_facts(response))
        return replace(outcome, owner=named, shared=True) if named else outcome

    marks = _error_marks(provider.error_marks, limits)
    return replace(provider, judge=judge, error_marks=marks, classify=classify, signals=None)


def _error_marks(marks: re.Pattern[bytes], limits: tuple[LimitRule, ...]) -> re.Pattern[bytes]:
    """Return *marks*, and the names that *limits* look for in a success."""
    in_success = [limit for limit in limits if limit.in_success]
    ends = {limit.pointer[-1] for limit in in_success if limit.pointer}
    names = sorted(end for end in ends if not end.isdecimal())
    keys = [b'"' + re.escape(name.encode()) + rb'"\s*:' for name in names]
    patterns = [HAS_FAILURE.pattern] if any(limit.codes for limit in in_success) else []
    if not keys and not patterns:
        return marks
    return re.compile(b"|".join(dict.fromkeys([marks.pattern, *patterns, *keys])))


def _judge(judge: Judge, limits: tuple[LimitRule, ...]) -> Judge:
    """Return *judge*, for which what *limits* find in a success is a refusal as well."""
    in_success = [limit for limit in limits if limit.in_success]
    if not in_success:
        return judge

    def judged(name: str | None, value: Any) -> Verdict:
        found = isinstance(value, dict) and any(limit.refuses(value) for limit in in_success)
        return Verdict.REFUSE if found else judge(name, value)

    return judged


def _placed(provider: Provider, definition: Definition) -> Provider:
    """Return *provider* with the paths, headers and parameters of *definition*."""
    placement = definition.credential
    placements = (placement, *(other for _, other in placement.by_path)) if placement else ()
    headers = [one.header for one in placements if one.header]
    names = {*definition.drop, *definition.companions.values(), *headers}
    masked = provider.credential_headers.union(name.encode() for name in names)
    query = tuple(one.query for one in placements if one.query)
    changed = replace(
        provider,
        credential_headers=masked,
        credential_query=(*provider.credential_query, *query),
        companions=provider.companions | definition.companions.keys(),
    )
    if names or query:
        changed = replace(changed, swap=_swap(changed, definition))
    if definition.paths:
        changed = replace(changed, route=_route(definition.paths), posts=frozenset())
    if definition.owner is not None and (owner := definition.owner.header) is not None:
        changed = replace(changed, owner=lambda headers: headers.get(owner) or None)
    return changed


def _route(paths: tuple[PathRule, ...]) -> Callable[[RequestHead], Route]:
    def route(head: RequestHead) -> Route:
        return Route.POOL if any(path.matches(head) for path in paths) else Route.PASS

    return route


def _swap(provider: Provider, definition: Definition) -> Callable[[Account, Credential], Swap]:
    usual, placement = provider.swap, definition.credential

    def swap(account: Account, credential: Credential) -> Swap:
        companions = {**account.companions, **credential.companions}
        named = [
            (header.encode(), companions[key].encode())
            for key, header in definition.companions.items()
            if key in companions
        ]

        def placed(made: Swap, place: Placement | None) -> Swap:
            if place is not None:
                made = _put(made, place, credential.secret.reveal())
            return replace(
                made,
                headers=(*made.headers, *named),
                drop=made.drop | provider.credential_headers,
                drop_query=provider.credential_query,
                by_path=(),
            )

        made = usual(account, credential)
        own = placement.by_path if placement is not None else ()
        by_path = [(part, placed(made, place)) for part, place in own]
        by_path += [(part, placed(other, placement)) for part, other in made.by_path]
        return replace(placed(made, placement), by_path=tuple(by_path))

    return swap


def _put(swap: Swap, placement: Placement, secret: str) -> Swap:
    """Return *swap* with the credential where *placement* says, and nowhere else."""
    if placement.query:
        return replace(swap, headers=(), query=((placement.query, secret),))
    header = (placement.header or "authorization").encode()
    return replace(swap, headers=((header, f"{placement.prefix}{secret}".encode()),), query=())


def _wait(reset: Reset) -> Wait:
    """Return the function that reads *reset* from the facts."""
    read = SPELLINGS[reset.spelling]
    if (header := reset.header) is not None:
        return lambda facts: read(facts.headers.get(header), facts.now, facts.answer.zone)
    if (pointer := reset.pointer) is not None:
        return lambda facts: read(
            json_values.find(facts.payload, pointer), facts.now, facts.answer.zone
        )
    return signals.prose


def _named(facts: ErrorFacts, pointer: Pointer) -> str | None:
    return json_values.text_in(json_values.find(facts.payload, pointer))


def _text(value: Any) -> str | None:
    """Return a value of JSON as a rule spells it; None for what is no single value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None
