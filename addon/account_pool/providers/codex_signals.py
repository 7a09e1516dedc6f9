"""What chatgpt.com says to Codex when it refuses.

Windows of a plan come in headers on every answer (`x-codex-primary-*`, `-secondary-*`),
in frames of a socket and, when one is spent, as `usage_limit_reached` with the moment it
ends. `x-codex-active-limit` says which limit that is: with a header family of its own
(`x-codex-other-*`, `x-image-gen-*`) it is one of a model family or a feature.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any

import msgspec

from account_pool.core import reset_hints
from account_pool.core.error_facts import ErrorFacts
from account_pool.core.outcome import Scope
from account_pool.core.signals import (
    AUTH_EXPIRED,
    FORBIDDEN_ACCOUNT,
    MODEL,
    QUOTA,
    RATE_LIMIT,
    REQUEST_ERROR,
    SERVER_ERROR,
    Rule,
    Wait,
    body_reset,
    first_wait,
    prose,
    retry_after,
    retry_after_ms,
    rules,
)
from account_pool.providers.compatible_signals import COMPATIBLE_RULES
from account_pool.providers.openai_signals import OPENAI_RULES

_I = re.IGNORECASE
_BRIDGE = "just-every/code codex-api/src/api_bridge.rs, api_bridge_tests.rs"
_LB = "Soju06/codex-lb app/core/balancer/logic.py"

# -- windows

_USED = re.compile(r"(?P<window>x-.+-(?:primary|secondary))-used-percent")
_MAIN = "x-codex"


def _limit_name(facts: ErrorFacts) -> str | None:
    """Return the limit that is spent if it is not the account's own.

    The value names the limit in force, on an ordinary account something like `premium`;
    one with headers of its own, or a part of Codex, is narrower than the account.
    """
    name = facts.headers.get("x-codex-active-limit", "").strip().lower()
    if name in ("", "codex"):
        return None
    family = _family(name)
    named = any(header.startswith(family + "-") for header in facts.headers)
    return name if named or name.startswith("codex_") or _FEATURE.search(name) else None


def _family(name: str) -> str:
    """Return how the headers of a limit begin: `image_gen` -> `x-image-gen`."""
    return "x-" + name.replace("_", "-")


# What a request uses besides its model. Other limits are of the model that was asked for.
_FEATURE = re.compile(r"image|video|audio|voice|realtime|review|search|browser|cloud_task", _I)


def _feature(facts: ErrorFacts) -> str | None:
    name = _limit_name(facts)
    return name if name and _FEATURE.search(name) else None


def _spent_windows(facts: ErrorFacts) -> list[str]:
    """Return how the headers of the spent windows begin, of the limit in force only."""
    name = _limit_name(facts)
    family = _family(name) if name else _MAIN
    return [
        found["window"]
        for header, value in facts.headers.items()
        if (found := _USED.fullmatch(header))
        and found["window"].rpartition("-")[0] == family
        and (reset_hints.seconds(value) or 0.0) >= 100.0
    ]


def _windows_end(facts: ErrorFacts) -> float | None:
    """The latest reset among the spent windows."""
    waits = []
    for window in _spent_windows(facts):
        wait = reset_hints.instant(facts.headers.get(f"{window}-reset-at"), facts.now)
        if not wait:
            after = reset_hints.seconds(facts.headers.get(f"{window}-reset-after-seconds"))
            wait = wait if after is None else after
        waits.append(wait)
    return max((wait for wait in waits if wait is not None), default=None)


def _latest(facts: ErrorFacts) -> float | None:
    """The end of what is spent: the body's window and those of the headers, the latest."""
    waits = (body_reset(facts), _windows_end(facts))
    return max((wait for wait in waits if wait), default=None)


WAITS: tuple[Wait, ...] = (_latest, body_reset, retry_after_ms, retry_after, prose)


def _reached(facts: ErrorFacts, *types: str) -> bool:
    """Say whether `x-codex-rate-limit-reached-type` is one of *types*."""
    return facts.headers.get("x-codex-rate-limit-reached-type", "").strip().lower() in types


# -- errors of the login, in headers


def _header_error(*codes: str) -> Callable[[ErrorFacts], bool]:
    """Return a condition on the code in `x-error-json` or `x-openai-authorization-error`."""
    return lambda facts: not _header_codes(facts).isdisjoint(codes)


def _header_codes(facts: ErrorFacts) -> frozenset[str]:
    error = _decoded(facts.headers.get("x-error-json", ""))
    inner = error.get("error") if isinstance(error, dict) else None
    named = [inner.get("code"), inner.get("type")] if isinstance(inner, dict) else [inner]
    named.append(facts.headers.get("x-openai-authorization-error"))
    return frozenset(name.strip().lower() for name in named if isinstance(name, str))


def _decoded(text: str) -> Any:
    """Read JSON in base64."""
    try:
        return msgspec.json.decode(base64.b64decode(text[:4096] + "==", validate=False))
    except (ValueError, binascii.Error, msgspec.MsgspecError, RecursionError):
        return None


# -- the rules

_SPENT = frozenset({"usage_limit_reached", "usage_limit_exceeded"})
_NAMED_MODEL = re.compile(r"\bthe ['\"`]?([\w./:-]{1,80}?)['\"`]? model is not supported\b", _I)


def _refused_model(facts: ErrorFacts) -> str | None:
    found = _NAMED_MODEL.search(facts.message)
    return found[1] if found else None


def _is_limit(facts: ErrorFacts) -> bool:
    return facts.status == 429 or not _SPENT.isdisjoint(facts.words)


def _credits_spent(facts: ErrorFacts) -> bool:
    return _is_limit(facts) and _reached(
        facts, "workspace_owner_credits_depleted", "workspace_member_credits_depleted"
    )


def _window_spent(facts: ErrorFacts) -> bool:
    return bool(_spent_windows(facts)) or _reached(
        facts,
        *("rate_limit_reached", "workspace_owner_usage_limit_reached"),
        "workspace_member_usage_limit_reached",
    )


def _gives_no_reason(facts: ErrorFacts) -> bool:
    return not facts.words and facts.meaning is None and first_wait(facts, WAITS) is None


CODEX_RULES = rules(
    _BRIDGE,
    Rule("a page of the edge: about the address or the client", SERVER_ERROR,
        status={401, 403, 429}, when=lambda facts: facts.html),
    Rule("flagged content", REQUEST_ERROR, words={"cyber_policy", "bio_policy"},
        source="router-for-me/CLIProxyAPI codex_executor_retry_test.go"),
    Rule("the plan has no Codex", FORBIDDEN_ACCOUNT, words={"usage_not_included"}),
    Rule("the workspace or account is closed", FORBIDDEN_ACCOUNT,
        words={"deactivated_workspace", "workspace_deactivated"},
        source="Codex 402 detail.code, reported"),
    Rule("the account is closed", FORBIDDEN_ACCOUNT,
        when=_header_error("account_deactivated", "account_suspended"), source=_LB),
    Rule("a limit of a feature or a model family", QUOTA, MODEL,
        when=lambda facts: _is_limit(facts) and _limit_name(facts) is not None, model=_limit_name,
        feature=_feature),
    Rule("the credits of the workspace are spent", QUOTA, when=_credits_spent, shared=True),
    # Also as a 400.
    Rule("a window of the plan is spent", QUOTA, words=_SPENT,
        source=f"{_BRIDGE}; router-for-me/CLIProxyAPI codex_executor_retry_test.go"),
    Rule("a window of the plan is spent", QUOTA, status={429}, when=_window_spent),
    # The windows are told on every answer: they are no evidence by themselves.
    Rule("no window is spent and no reason given", RATE_LIMIT, Scope.NONE, status={429},
        when=_gives_no_reason, source="just-every/code codex-api/src/api_bridge.rs"),
    Rule("not a model of this plan", FORBIDDEN_ACCOUNT, MODEL, status={0, 400, 403, 404},
        phrase=r"\bmodel is not supported when using codex with a chatgpt account\b",
        model=_refused_model, source="Soju06/codex-lb"),
    Rule("the token has expired", AUTH_EXPIRED, status={401},
        when=_header_error("token_expired", "expired_token"), source=_LB),
)  # fmt: skip

RULES: tuple[Rule, ...] = (*CODEX_RULES, *OPENAI_RULES, *COMPATIBLE_RULES)
