"""Builds the providers whose API follows OpenAI's: same bodies, their own paths and words.

`compatible_vendors.py` says what is each vendor's own (hosts, paths, variables, rules,
envelope); what all of them share stands here. Keys go as `Authorization: Bearer`, and some vendors
speak Anthropic's Messages as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.meaning import LazyPattern
from account_pool.core.outcome import ErrorFacts, Scope
from account_pool.core.signals import Rule, SignalTable
from account_pool.core.sse import Verdict
from account_pool.providers import anthropic, envelopes, openai, sessions
from account_pool.providers.base import (
    HostRule,
    LocalResponse,
    Provider,
    RequestHead,
    Route,
    Swap,
    is_websocket,
)
from account_pool.providers.common_signals import COMPATIBLE_RULES
from account_pool.providers.sessions import StoredObjects

#: What every vendor of the family serves.
CHAT = ("/chat/completions", "/completions", "/embeddings")


def compatible(
    name: str,
    *,
    hosts: Iterable[str],
    env: tuple[str, ...],
    posts: Iterable[str],
    rules: tuple[Rule, ...] = (),
    rate_scope: Scope = Scope.ACCOUNT,
    shared: bool = False,
    owner: Callable[[ErrorFacts], str | None] | None = None,
    gets: Iterable[str] = ("/models",),
    prefixes: Iterable[str] = ("/v1",),
    refusal: Callable[[int, str, float | None], LocalResponse] = openai.refusal,
    delay_body: Callable[[str, float, float], str] = envelopes.delay_sentence,
    instants: Mapping[str, Callable[[float], str]] | None = None,
    stored: StoredObjects | None = None,
) -> Provider:
    """Return the provider of one vendor.

    Args:
        hosts: names, matched whole.
        env: variables that hold a key.
        posts: pooled paths below a prefix.
        rules, rate_scope, shared, owner: what its refusals mean: the fields of
            `SignalTable`. `COMPATIBLE_RULES` follow *rules*.
        gets: pooled lists below a prefix, with what is below them.
        prefixes: what stands before the paths, "" included where that is legal.
        refusal: its envelope; default OpenAI's.
        delay_body: rewrites a wait inside its refusals; default the sentence.
        instants: its headers that name the moment of return.
        stored: what it keeps for its accounts; pooled as well.
    """
    signals = SignalTable(
        rules=(*rules, *COMPATIBLE_RULES),
        judge=judge,
        rate_scope=rate_scope,
        shared=shared,
        owner=owner,
    )
    prefixes, below = tuple(prefixes), tuple(posts)
    pooled_posts = frozenset(prefix + path for prefix in prefixes for path in below)
    return Provider(
        name=name,
        hosts=tuple(HostRule(host) for host in hosts),
        env=env,
        route=_route(prefixes, pooled_posts, tuple(gets), stored),
        posts=pooled_posts,
        credential_headers=_CREDENTIAL_HEADERS,
        conversation=partial(sessions.conversation, stored=stored),
        created_ids=partial(sessions.ids_in_response, stored=stored),
        swap=swap,
        judge=judge,
        classify=signals.classify,
        signals=signals,
        refusal=refusal,
        delay=envelopes.sdk_delay,
        delay_headers=envelopes.SDK_DELAY_HEADERS,
        delay_body=delay_body,
        instants=instants or {},
    )


# -- who serves a request

# Names of models have slashes and colons: `deepseek/deepseek-v4:free`.
_BELOW = r"(?:/(?!\.)(?:[\w@:~.-]|%2[fF]|%3[aA])+)*"


def _route(
    prefixes: tuple[str, ...],
    pooled_posts: frozenset[str],
    gets: tuple[str, ...],
    stored: StoredObjects | None,
) -> Callable[[RequestHead], Route]:
    heads = "|".join(re.escape(prefix + path) for prefix in prefixes for path in gets)
    pooled_gets = LazyPattern(rf"(?:{heads}){_BELOW}")

    def route(head: RequestHead) -> Route:
        """Pool inference, the list of models and what is stored; all else is the client's."""
        if head.method == "POST" and head.path in pooled_posts:
            return Route.POOL
        if stored is not None and stored.route(head) and not is_websocket(head):
            return Route.POOL
        if head.method != "GET" or is_websocket(head) or ".." in head.path:
            return Route.PASS
        return Route.POOL if pooled_gets.fullmatch(head.path) else Route.PASS

    return route


# -- the credential

_CREDENTIAL_HEADERS = frozenset({b"authorization", b"api-key", b"x-api-key"})


def swap(_account: Account, credential: Credential) -> Swap:
    """Put the key in `Authorization`; Anthropic's clients sent theirs in `x-api-key`."""
    key = (b"authorization", f"Bearer {credential.secret.reveal()}".encode())
    return Swap(headers=(key,), drop=_CREDENTIAL_HEADERS)


# -- what a response says


def judge(name: str | None, value: Any) -> Verdict:
    """Say what an event or a JSON body is; an error may also stand in the first choice."""
    if isinstance(value, dict):
        if _choice_failed(value.get("choices")):
            return Verdict.REFUSE
        if value.get("type") == "message-start":  # Cohere
            return Verdict.CONTINUE
    return anthropic.judge(name, value)


def _choice_failed(choices: Any) -> bool:
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return False
    # https://openrouter.ai/docs/api-reference/errors: both; rarely the reason alone.
    return bool(choices[0].get("error")) or choices[0].get("finish_reason") == "error"


def refusal_for_both(status: int, message: str, wait_s: float | None) -> LocalResponse:
    """One envelope that the SDKs of OpenAI and of Anthropic both read.

    `{"type": "error", "error": {message, type, param, code}}`; the type is Anthropic's.
    """
    error = openai.error_object(status, message, openai.ERROR_NAMES)
    error["type"] = anthropic.error_type(status)
    status = 429 if status == 402 else status  # as `openai.refusal`
    return envelopes.sdk_response(status, wait_s, {"type": "error", "error": error})


#: A service that speaks OpenAI's API, and Anthropic's Messages: many coding plans and gateways
#: do. Its limits reach the account where they do not say.
BASE = compatible(
    "compatible",
    hosts=(),
    env=(),
    posts=(
        *CHAT,
        "/images/generations",
        "/messages",
        "/messages/count_tokens",
        "/rerank",
        "/responses",
    ),
    refusal=refusal_for_both,
)
