"""Who may ask the proxy itself for something. Pure: values in, `Refused` out.

Any page that a browser shows can send requests to this machine. So a request must name us
as we are named (else somebody bound his own name to our address: DNS rebinding), and must
not come from a page that is not ours: browsers say so in Sec-Fetch-Site (W3C Fetch
Metadata) and Origin (RFC 6454). What changes something, and everything asked from
elsewhere, needs the admin token, which no other page has; there are no CORS headers at all.
"""

from __future__ import annotations

import hmac
from collections import deque
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address

from account_pool.admin.refused import Refused
from account_pool.admin.visit import ADMIN_HOST, MAX_BODY_BYTES, Visit
from account_pool.core import browser
from account_pool.core.credential import Secret

#: What only reads (RFC 9110, section 9.2.1).
READING = frozenset({"GET", "HEAD"})
#: Holds nothing of the pool: the page that asks for the token, its description, a probe.
OPEN_PATHS = frozenset({"/", "/openapi.json", "/health"})
#: Shows a credential.
REVEAL_PATH = "/account-pool/reveal"
#: Wrong tokens that are heard within a window, from one address; and how long it is, seconds.
MAX_FAILURES = 10
FAILURE_WINDOW_S = 60.0
#: Addresses whose failures are remembered.
MAX_PEERS = 1024


@dataclass(frozen=True, slots=True)
class Rules:
    """What the owner of the proxy allows.

    Attributes:
        remote: other machines may use the proxy at all (`pool_allow_remote`, `proxyauth`).
        guarded: the proxy asks its users for a password (`proxyauth`): the admin pages are
            no way round it.
        reveal: credentials may be shown to the administrator (`pool_show_tokens`).
    """

    remote: bool = False
    guarded: bool = False
    reveal: bool = False


def check_place(visit: Visit, rules: Rules) -> None:
    """Raise Refused unless the visitor came from where one may, and calls us by our name."""
    if not (rules.remote or is_this_machine(visit.peer)):
        raise Refused(403, "not_local", "only this machine may use the admin pages")
    own = own_names(visit)
    hosts = visit.values(b"host")
    named = [*hosts, *([visit.authority] if visit.authority else [])]
    if not named or len(hosts) > 1 or any(name.lower() not in own for name in named):
        raise Refused(
            421,
            "wrong_host",
            (f"the Host header names another host; use {_url(visit)} or {ADMIN_HOST}"),
        )
    _check_page(visit, named[0].lower())


def _check_page(visit: Visit, name: str) -> None:
    """Raise Refused if a page that is not ours has sent *visit*."""
    own = browser.origin_of(f"{'https' if visit.tls else 'http'}://{name}")
    if any(browser.origin_of(origin) != own for origin in visit.values(b"origin")):
        raise Refused(403, "wrong_origin", "requests from other pages are refused")
    sites = visit.values(b"sec-fetch-site")
    if not _is_opened(visit) and browser.sender_of((), sites, own) is browser.Sender.PAGE:
        raise Refused(403, "cross_site", "requests from other pages are refused")


def _is_opened(visit: Visit) -> bool:
    """Say whether a person follows a link to the dashboard, which may stand anywhere."""
    return (
        visit.method in READING
        and visit.target == "/"
        and visit.values(b"sec-fetch-mode") == ["navigate"]
        and visit.values(b"sec-fetch-dest") == ["document"]
    )


def needs_token(visit: Visit, rules: Rules) -> bool:
    """Say whether only the administrator may ask this."""
    if visit.method not in READING:
        return True
    if visit.target.partition("?")[0] in OPEN_PATHS:
        return False
    return rules.guarded or not is_this_machine(visit.peer)


def check_reveal(visit: Visit, rules: Rules) -> None:
    """Raise Refused unless credentials may be shown: the owner has said so, and asks here."""
    if visit.path != REVEAL_PATH:
        return
    if not rules.reveal:
        raise Refused(403, "not_shown", "set pool_show_tokens to show credentials")
    if not is_this_machine(visit.peer):
        raise Refused(403, "not_local", "credentials are shown on this machine only")


def check_body(visit: Visit) -> None:
    """Raise Refused unless the body, if there may be one, is JSON of bearable length."""
    if visit.too_long:
        raise Refused(413, "too_long", f"the body is longer than {MAX_BODY_BYTES} bytes")
    if visit.method in READING:
        return
    # A form of a foreign page can have three types, and this is none of them.
    types = [value.partition(";")[0].strip().lower() for value in visit.values(b"content-type")]
    if types != ["application/json"]:
        raise Refused(415, "not_json", "send JSON with content-type: application/json")
    if visit.values(b"content-encoding"):
        raise Refused(415, "encoded", "send the body without content-encoding")


@dataclass(slots=True, eq=False)
class Door:
    """Knows the admin token, and who has guessed wrong.

    Attributes:
        token: what opens it.
        failures: times of wrong tokens by address, monotonic seconds.
    """

    token: Secret
    failures: dict[str, deque[float]] = field(default_factory=dict)

    def check(self, visit: Visit, now: float) -> None:
        """Raise Refused unless *visit* carries the token.

        Who has guessed wrong too often is not heard for a while, not even with the right
        one: otherwise it could go on guessing.
        """
        self._check_failures(visit.peer, now)
        given = visit.values(b"authorization")
        if not given:
            raise _unauthorised(
                "no_token", ("this needs the admin token, which account-pool status shows")
            )
        scheme, _, token = given[0].partition(" ")
        is_right = hmac.compare_digest(
            token.strip().encode("latin-1", "replace"), self.token.reveal().encode()
        )
        if len(given) == 1 and scheme.lower() == "bearer" and is_right:
            self.failures.pop(visit.peer, None)
            return
        self._note_failure(visit.peer, now)
        raise _unauthorised(
            "wrong_token", ("this is not the admin token, which account-pool status shows")
        )

    def _check_failures(self, peer: str, now: float) -> None:
        times = self.failures.get(peer)
        while times and now - times[0] >= FAILURE_WINDOW_S:
            times.popleft()
        if times is not None and len(times) >= MAX_FAILURES:
            wait_s = int(times[0] + FAILURE_WINDOW_S - now) + 1
            raise Refused(
                429,
                "too_many_failures",
                f"too many wrong tokens; try again in {wait_s} s",
                {"retry-after": str(wait_s)},
            )

    def _note_failure(self, peer: str, now: float) -> None:
        if peer not in self.failures and len(self.failures) >= MAX_PEERS:
            del self.failures[next(iter(self.failures))]
        self.failures.setdefault(peer, deque(maxlen=MAX_FAILURES)).append(now)


def own_names(visit: Visit) -> frozenset[str]:
    """Return what a Host header may say: our address, our names, our port."""
    address, port = visit.address
    names = {"localhost", "127.0.0.1", "[::1]", _in_url(address)}
    own = {f"{name}:{port}" for name in names}
    if port == 80:
        own |= names
    usual = 443 if visit.tls else 80
    return frozenset({*own, ADMIN_HOST, f"{ADMIN_HOST}:{usual}"})


def is_this_machine(address: str) -> bool:
    """Say whether *address* is a loopback address. What is no address is not."""
    plain = _plain(address)
    return plain is not None and ip_address(plain).is_loopback


def _url(visit: Visit) -> str:
    address, port = visit.address
    return f"{_in_url(address)}:{port}"


def _in_url(address: str) -> str:
    plain = _plain(address) or address
    return f"[{plain}]" if ":" in plain else plain


def _plain(address: str) -> str | None:
    """Return *address* as people write it; None when it is none."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped or parsed)


def _unauthorised(code: str, message: str) -> Refused:
    return Refused(401, code, message, {"www-authenticate": 'Bearer realm="account-pool"'})
