"""Reads what GitHub answers to a Copilot token exchange. Values in, values out.

The facts are in providers.md, section 1.3. Nothing of the answer is trusted further
than needed: the host of an account only inside GitHub's own domains or the ones the
user configured, times only when they are plausible, texts only in one short line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from account_pool.core.credential import Secret
from account_pool.core.wrong import without_secrets
from account_pool.credentials.placeholder import shown_to_clients
from account_pool.providers.base import HostRule

#: GitHub's own homes of the Copilot API: providers.md, section 1.1.
GITHUB_HOSTS = tuple(HostRule(name, subdomains=True) for name in ("githubcopilot.com", "ghe.com"))

#: Seconds until the refresh when the answer names none; what GitHub usually names.
USUAL_REFRESH_IN_S = 1500.0
#: Beyond a day a time in the answer is a mistake or a broken clock.
LONGEST_LIFE_S = 86400.0
#: Refresh so long before the named time, and never sooner than the second value.
REFRESH_EARLY_S, SHORTEST_REFRESH_S = 60.0, 30.0
#: How long to wait after a 429 that does not say, in seconds.
LIMITED_S = 30.0
#: A wait we were asked for is believed up to here: a token cannot do without for longer.
LONGEST_RETRY_AFTER_S = 3600.0
MAX_MESSAGE_CHARS = 300

_NOT_A_TOKEN = re.compile(r"[^\x21-\x7e]")


class ExchangeRefused(Exception):
    """GitHub will not exchange this token; trying again soon changes nothing."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class ExchangeFailed(Exception):
    """The exchange did not work this time.

    Attributes:
        retry_after_s: seconds GitHub asked to wait; None if it named none.
        is_wait: nothing was tried: that is exactly how long to wait.
        passes: it may work the next time; False: only the owner can cure it.
    """

    passes = True

    def __init__(
        self, text: str, retry_after_s: float | None = None, *, is_wait: bool = False
    ) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
        self.is_wait = is_wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """A Copilot token and what came with it.

    Attributes:
        token: the Copilot token.
        expires_at: wall clock, seconds since the epoch, by our own clock.
        renew_in_s: seconds from now after which to exchange again.
        host: host[:port] of this account's API, None when the answer names none that
            can be trusted.
        completions_host: the same for completions, which live beside it.
        distrusted: the API endpoint that was ignored, for a warning.
        for_clients: the parts of the answer that a client may see.
    """

    token: Secret
    expires_at: float
    renew_in_s: float
    host: str | None
    completions_host: str | None = None
    distrusted: str | None = None
    for_clients: Mapping[str, Any] = field(default_factory=dict, repr=False)


def read_token(payload: Any, wall_now: float, hosts: tuple[HostRule, ...]) -> Exchanged:
    """Read a successful answer. Raises ExchangeFailed when it has no token in it."""
    token = payload.get("token") if isinstance(payload, dict) else None
    if not isinstance(token, str) or not token or _NOT_A_TOKEN.search(token):
        raise ExchangeFailed("the exchange answered 200 without a Copilot token")
    refresh_in_s = _seconds(payload.get("refresh_in")) or USUAL_REFRESH_IN_S
    trusted = (*GITHUB_HOSTS, *hosts)
    host, distrusted = _host(payload.get("endpoints"), "api", trusted)
    completions_host, _ = _host(payload.get("endpoints"), "proxy", trusted)
    return Exchanged(
        token=Secret(token),
        expires_at=_expiry(payload.get("expires_at"), refresh_in_s, wall_now),
        renew_in_s=max(SHORTEST_REFRESH_S, refresh_in_s - REFRESH_EARLY_S),
        host=host,
        completions_host=completions_host,
        distrusted=distrusted,
        for_clients=shown_to_clients(payload, token, api_is_trusted=host is not None),
    )


def read_refusal(
    status: int, headers: Mapping[str, str], payload: Any, github: Secret, wall_now: float
) -> ExchangeRefused | ExchangeFailed:
    """Say what an answer other than 200 means. Header names in lower case."""
    message, notification = _reason(payload, github)
    described = f": {message}" if message else ""
    if notification:
        described += f" ({notification})"
    retry_after_s = retry_after(headers, wall_now, status)
    if status == 404:
        return ExchangeRefused(
            "404: this token cannot be exchanged: it is a PAT or of another app; "
            "log in with an app that has Copilot access",
            status,
        )
    if status == 401:
        return ExchangeRefused(f"401: GitHub does not accept this token{described}", status)
    # A REST limit of GitHub has the status of a refusal and says nothing about Copilot.
    limited = status == 403 and not notification and "rate limit" in message.lower()
    passing = status in (408, 425, 429) or status >= 500 or notification == "server_error"
    if limited or passing:
        return ExchangeFailed(f"{status}{described}", retry_after_s)
    if status == 403:
        return ExchangeRefused(f"403: no Copilot access{described}", status)
    return ExchangeRefused(f"{status}: the exchange refused{described}", status)


def _expiry(named: Any, refresh_in_s: float, wall_now: float) -> float:
    """Return when the token ends by our clock.

    The server's clock may differ from ours, so the end is reckoned from the time to
    refresh; its own `expires_at` only shortens that, and only while it is plausible.
    """
    reckoned = wall_now + refresh_in_s + 60
    if isinstance(named, int | float) and SHORTEST_REFRESH_S <= named - wall_now <= LONGEST_LIFE_S:
        return min(reckoned, float(named))
    return reckoned


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value) if 0 < value <= LONGEST_LIFE_S else None


def _host(
    endpoints: Any, name: str, trusted: tuple[HostRule, ...]
) -> tuple[str | None, str | None]:
    """Return (host[:port], None), (None, what was distrusted) or (None, None)."""
    address = endpoints.get(name) if isinstance(endpoints, dict) else None
    if address is None:
        return None, None
    distrusted = one_line(str(address))[:100]
    try:
        url = urlsplit(address)
        host, port = url.hostname or "", url.port
    except (ValueError, TypeError, AttributeError):
        return None, distrusted
    plain = url.scheme == "https" and url.path in ("", "/") and not (url.query or url.fragment)
    usual_name = re.fullmatch(r"[a-z0-9.:-]+", host) is not None
    if not (plain and usual_name and url.username is None):
        return None, distrusted
    if not any(rule.matches(host, port or 443) for rule in trusted):
        return None, distrusted
    shown = f"[{host}]" if ":" in host else host
    return (shown if port in (None, 443) else f"{shown}:{port}"), None


def _reason(payload: Any, github: Secret) -> tuple[str, str]:
    """Return the message and the notification id of an error body, "" for none."""
    if not isinstance(payload, dict):
        return "", ""
    details = payload.get("error_details")
    details = details if isinstance(details, dict) else {}
    message = details.get("message") or payload.get("message") or ""
    notification = details.get("notification_id") or ""
    if not isinstance(message, str) or not isinstance(notification, str):
        return "", ""
    return quoted(message, [github]), quoted(notification, [github], 60)


def quoted(text: str, secrets: Iterable[Secret | None], max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """Return what a server says as one short line, without *secrets* and what looks like one."""
    for secret in secrets:
        if secret is not None:
            text = secret.masked(text)
    return one_line(without_secrets(text))[:max_chars]


def one_line(text: str) -> str:
    """Return *text* without line breaks and other characters that do not print."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def retry_after(headers: Mapping[str, str], wall_now: float, status: int) -> float | None:
    """Return the seconds to wait that the answer names, None if there are none.

    Retry-After (RFC 9110, section 10.2.3) first, then GitHub's own
    `x-ratelimit-reset`, seconds since the epoch, when nothing remains. A 429 is to be
    waited after whatever it names.
    """
    value = headers.get("retry-after", "").strip()
    wait_s: float | None = None
    if value.isascii() and value.isdigit():
        wait_s = float(value)
    elif value:
        try:
            wait_s = parsedate_to_datetime(value).timestamp() - wall_now
        except (ValueError, OverflowError):
            wait_s = None
    elif headers.get("x-ratelimit-remaining") == "0":
        reset = headers.get("x-ratelimit-reset", "")
        wait_s = float(reset) - wall_now if reset.isascii() and reset.isdigit() else None
    if wait_s is None:
        return LIMITED_S if status == 429 else None
    return min(max(wait_s, 0.0), LONGEST_RETRY_AFTER_S)
