"""Who may send requests to the proxy itself: values in, `ApiError` out; and the admin token.

Any page in a browser can send requests to this machine. So the Host header must be one of
our own names (anything else is DNS rebinding: a foreign name bound to our address), and the
request must not come from a foreign page: browsers say where it comes from in
Sec-Fetch-Site (W3C Fetch Metadata) and Origin (RFC 6454). Requests that change something,
and all requests from other machines, need the admin token, which no foreign page has; CORS
headers are never sent.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections import deque
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from msgspec import Struct, field

from account_pool.admin.http import ADMIN_HOST, MAX_BODY_BYTES, AdminRequest, ApiError
from account_pool.core import browser
from account_pool.core.credential import Secret
from account_pool.filesystem import read_file, require_file, write_beside

#: Methods that only read (RFC 9110, section 9.2.1).
SAFE_METHODS = frozenset({"GET", "HEAD"})
#: Holds nothing of the pool: the page that asks for the token, its description, a probe.
OPEN_PATHS = frozenset({"/", "/openapi.json", "/health"})
#: Exchanges the code of a link for the admin token.
REDEEM_PATH = "/link/redeem"
#: Shows a credential.
REVEAL_PATH = "/account-pool/reveal"
#: Wrong tokens accepted from one address within a window; and how long that is, in seconds.
MAX_FAILURES = 10
FAILURE_WINDOW_S = 60.0
#: How long the code of a link is valid, seconds, and how many are at once.
CODE_S = 60.0
MAX_CODES = 16
#: How many addresses have their failures remembered.
MAX_PEERS = 1024


class Rules(Struct, frozen=True):
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


def check_place(request: AdminRequest, rules: Rules) -> None:
    """Raise ApiError unless *request* comes from an allowed place and names one of our hosts."""
    if not (rules.remote or is_this_machine(request.peer)):
        raise ApiError(403, "not_local", "only this machine may use the admin pages")
    own = own_names(request)
    hosts = request.values(b"host")
    named = [*hosts, *([request.authority] if request.authority else [])]
    if not named or len(hosts) > 1 or any(name.lower() not in own for name in named):
        address, port = request.address
        own_url = f"{_in_url(address)}:{port}"
        raise ApiError(
            421, "wrong_host", f"the Host header names another host; use {own_url} or {ADMIN_HOST}"
        )
    _check_page(request, named[0].lower())


def _check_page(request: AdminRequest, name: str) -> None:
    """Raise ApiError if a foreign page has sent *request*."""
    own = browser.origin_of(f"{'https' if request.tls else 'http'}://{name}")
    if any(browser.origin_of(origin) != own for origin in request.values(b"origin")):
        raise ApiError(403, "wrong_origin", "requests from other pages are refused")
    sites = request.values(b"sec-fetch-site")
    if not _is_opened(request) and browser.sender_of((), sites, own) is browser.Sender.PAGE:
        raise ApiError(403, "cross_site", "requests from other pages are refused")


def _is_opened(request: AdminRequest) -> bool:
    """Return whether a person follows a link to the dashboard, from whichever page."""
    return (
        request.method in SAFE_METHODS
        and request.target == "/"
        and request.values(b"sec-fetch-mode") == ["navigate"]
        and request.values(b"sec-fetch-dest") == ["document"]
    )


def needs_token(request: AdminRequest, rules: Rules) -> bool:
    """Return whether only the administrator may send *request*."""
    if request.path == REDEEM_PATH:
        return False
    if request.method not in SAFE_METHODS:
        return True
    if request.target.partition("?")[0] in OPEN_PATHS:
        return False
    return rules.guarded or not is_this_machine(request.peer)


def check_reveal(request: AdminRequest, rules: Rules) -> None:
    """Raise ApiError for a request to reveal a credential, unless enabled and local."""
    if request.path != REVEAL_PATH:
        return
    if not rules.reveal:
        raise ApiError(403, "not_shown", "set pool_show_tokens to show credentials")
    if not is_this_machine(request.peer):
        raise ApiError(403, "not_local", "credentials are shown on this machine only")


def check_body(request: AdminRequest) -> None:
    """Raise ApiError unless the body, if the method has one, is JSON within the size limit."""
    if request.too_long:
        raise ApiError(413, "too_long", f"the body is longer than {MAX_BODY_BYTES} bytes")
    if request.method in SAFE_METHODS:
        return
    # A form of a foreign page can have three types, and this is none of them.
    types = [value.partition(";")[0].strip().lower() for value in request.values(b"content-type")]
    if types != ["application/json"]:
        raise ApiError(415, "not_json", "send JSON with content-type: application/json")
    if request.values(b"content-encoding"):
        raise ApiError(415, "encoded", "send the body without content-encoding")


class TokenGuard(Struct, eq=False):
    """Checks the admin token, and limits guesses at it.

    *failures* are times of wrong tokens by address, monotonic seconds.
    """

    token: Secret
    failures: dict[str, deque[float]] = field(default_factory=dict)

    def check(self, request: AdminRequest, now: float) -> None:
        """Raise ApiError unless *request* carries the token.

        After too many wrong tokens an address is refused for a while, with the right one
        too: otherwise it could go on guessing.
        """
        self.check_failures(request.peer, now)
        given = request.values(b"authorization")
        if not given:
            raise _unauthorised(
                "no_token", "this needs the admin token, which account-pool status shows"
            )
        scheme, _, token = given[0].partition(" ")
        is_right = hmac.compare_digest(
            token.strip().encode("latin-1", "replace"), self.token.reveal().encode()
        )
        if len(given) == 1 and scheme.lower() == "bearer" and is_right:
            self.failures.pop(request.peer, None)
            return
        self.note_failure(request.peer, now)
        raise _unauthorised(
            "wrong_token", "this is not the admin token, which account-pool status shows"
        )

    def check_failures(self, peer: str, now: float) -> None:
        """Raise ApiError while *peer* has guessed wrongly too often."""
        times = self.failures.get(peer)
        while times and now - times[0] >= FAILURE_WINDOW_S:
            times.popleft()
        if times is not None and len(times) >= MAX_FAILURES:
            wait_s = int(times[0] + FAILURE_WINDOW_S - now) + 1
            raise ApiError(
                429,
                "too_many_failures",
                f"too many wrong tokens; try again in {wait_s} s",
                {"retry-after": str(wait_s)},
            )

    def note_failure(self, peer: str, now: float) -> None:
        """Note that *peer* has sent a wrong token, or a wrong code."""
        if peer not in self.failures and len(self.failures) >= MAX_PEERS:
            del self.failures[next(iter(self.failures))]
        self.failures.setdefault(peer, deque(maxlen=MAX_FAILURES)).append(now)


class OneTimeCodes(Struct, eq=False):
    """Codes that are exchanged for the admin token, once: links to the dashboard carry them."""

    _valid_until: dict[str, float] = field(default_factory=dict)

    def make(self, now: float) -> str:
        """Return a new code, valid for CODE_S. The oldest go where there are too many."""
        self._expire(now)
        while len(self._valid_until) >= MAX_CODES:
            del self._valid_until[next(iter(self._valid_until))]
        code = new_token().reveal()
        self._valid_until[code] = now + CODE_S
        return code

    def redeem(self, code: str, now: float) -> bool:
        """Return whether *code* is valid. It is not from then on."""
        self._expire(now)
        return self._valid_until.pop(code, None) is not None

    def _expire(self, now: float) -> None:
        for code in [code for code, until in self._valid_until.items() if now >= until]:
            del self._valid_until[code]


def own_names(request: AdminRequest) -> frozenset[str]:
    """Return the accepted values of a Host header: our addresses and names, with our port."""
    address, port = request.address
    names = {"localhost", "127.0.0.1", "[::1]", _in_url(address)}
    own = {f"{name}:{port}" for name in names}
    if port == 80:
        own |= names
    usual = 443 if request.tls else 80
    return frozenset({*own, ADMIN_HOST, f"{ADMIN_HOST}:{usual}"})


def is_this_machine(address: str) -> bool:
    """Return whether *address* is a loopback address; False for anything but an address."""
    plain = _plain(address)
    return plain is not None and ip_address(plain).is_loopback


def _in_url(address: str) -> str:
    plain = _plain(address) or address
    return f"[{plain}]" if ":" in plain else plain


def _plain(address: str) -> str | None:
    """Return *address* as people write it; None if it is not an address."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped or parsed)


def _unauthorised(code: str, message: str) -> ApiError:
    return ApiError(401, code, message, {"www-authenticate": 'Bearer realm="account-pool"'})


# -- the admin token: made once, kept in a file that only its owner may read

#: The file, beside the state database.
TOKEN_FILE = "account-pool-admin-token"  # noqa: S105 - the name of the file
_BYTES = 32
MAX_TOKEN_BYTES = 4 * 1024
#: Shorter ones were cut off while they were written, or made up.
_MIN_CHARS = 32


class NoToken(Exception):
    """The token can be neither read nor made; the text says why and what to do."""


def admin_token(path: Path) -> Secret:
    """Return the token in *path*, made if it is not there. Raises NoToken. Blocks."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
        if require_file(path).st_mode & 0o077 and os.name == "posix":
            path.chmod(0o600)
        token = read_file(path, MAX_TOKEN_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise NoToken(f"the admin token {path} cannot be read or created ({why})") from None
    if len(token) < _MIN_CHARS or not token.isprintable():
        raise NoToken(f"{path} holds no admin token; remove it, and a new one is created")
    return Secret(token)


def new_token() -> Secret:
    """Return a token that is kept nowhere."""
    return Secret(secrets.token_urlsafe(_BYTES))


def _make(path: Path) -> None:
    """Write a new token unless there is one. Of two proxies that do, one wins."""
    if path.exists():
        return
    beside = write_beside(path, new_token().reveal() + "\n")
    try:
        _put(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _put(beside: Path, path: Path) -> None:
    """Let *path* be what is in *beside*, whole, unless it is there by now."""
    try:
        # A link is not made over what is there. Not every file system has links.
        os.link(beside, path)
    except FileExistsError:
        return
    except OSError:
        beside.replace(path)
