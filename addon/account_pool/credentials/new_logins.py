"""Logins for accounts that are added: made at GitHub, or taken over from a vendor's tool.

Only commands use this: a proxy reads what they have written down.

A refresh token that a tool keeps belongs to the tool: refresh tokens rotate (RFC 9700, section
4.14.2), and whoever uses one first leaves the other without a login. So it is copied only for
`account-pool login --from`, which says so.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from account_pool.core.credential import Secret
from account_pool.credentials.files import read_private
from account_pool.credentials.http import HttpFailed, HttpResponse, one_line, seconds_in
from account_pool.credentials.sources import CredentialError, instant, usable
from account_pool.credentials.vendor_logins import LOGINS

# -- at GitHub, from a terminal: the device flow (RFC 8628)
#
# The user types a code into GitHub's page; meanwhile we ask whether that was done, as often as
# GitHub allows. Time and output come in from outside.
# https://docs.github.com/apps/oauth-apps/building-oauth-apps/authorizing-oauth-apps#device-flow

#: Of GitHub Copilot's editor plugins: ericc-ch/copilot-api `src/lib/api-config.ts`.
CLIENT_ID = "Iv1.b507a08c87ecfe98"
SCOPE = "read:user"
GITHUB = "https://github.com"

#: RFC 8628, 3.2 and 3.5: seconds between two questions when none are named, and how many
#: more after `slow_down`.
USUAL_INTERVAL_S = 5.0
SLOWER_BY_S = 5.0
#: Bounds on what the server may name, in seconds.
MAX_INTERVAL_S = 60.0
MAX_WAIT_S = 1800.0
REQUEST_TIMEOUT_S = 20.0
#: Of what a server says, in a terminal.
MAX_SHOWN_CHARS = 200

_AGAIN = "run account-pool login copilot again"

#: Sends one request: see `http.Http.ask`.
Ask = Callable[..., Awaitable[HttpResponse]]


@dataclass(frozen=True, slots=True)
class Code:
    """What the user is asked to do.

    Attributes:
        page: where the code is typed in.
        text: the code.
        device: names this login to the server.
        interval_s, lasts_s: seconds between questions, and until the code ends.
    """

    page: str
    text: str
    device: Secret = field(repr=False)
    interval_s: float
    lasts_s: float


async def request_code(ask: Ask, base: str = GITHUB) -> Code:
    """Return a new code. Raises CredentialError."""
    try:
        response = await _post(
            ask, f"{base}/login/device/code", {"client_id": CLIENT_ID, "scope": SCOPE}
        )
    except HttpFailed as error:
        raise CredentialError(str(error), "check the connection, then " + _AGAIN) from None
    page, text = response.get("verification_uri"), response.get("user_code")
    device = response.get("device_code")
    if not (isinstance(page, str) and isinstance(text, str) and isinstance(device, str)):
        raise CredentialError(f"{base} returned no login code", "check --host, then " + _AGAIN)
    return Code(
        page=one_line(page)[:MAX_SHOWN_CHARS],
        text=one_line(text)[:MAX_SHOWN_CHARS],
        device=usable(device, "the device code"),
        interval_s=_seconds(response.get("interval"), USUAL_INTERVAL_S, MAX_INTERVAL_S),
        lasts_s=_seconds(response.get("expires_in"), 900.0, MAX_WAIT_S),
    )


async def wait_for_token(
    ask: Ask,
    code: Code,
    *,
    base: str = GITHUB,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
) -> Secret:
    """Ask until the user has typed *code* in; return the GitHub token.

    Raises CredentialError when the code expired, was refused, or was not entered.
    """
    interval_s, ends_at = code.interval_s, clock() + code.lasts_s
    fields = {
        "client_id": CLIENT_ID,
        "device_code": code.device.reveal(),
        "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
    }
    while clock() + interval_s < ends_at:
        await sleep(interval_s)
        try:
            response = await _post(ask, f"{base}/login/oauth/access_token", fields)
        except HttpFailed:
            response = {}
        if not response:
            # RFC 8628, 3.5: less often while there is no answer, or that of a gateway.
            interval_s = min(interval_s * 2, MAX_INTERVAL_S)
            continue
        token, error = response.get("access_token"), response.get("error")
        if isinstance(token, str):
            return usable(token, "the token")
        if error == "slow_down":
            slower = interval_s + SLOWER_BY_S
            interval_s = max(slower, _seconds(response.get("interval"), slower, MAX_INTERVAL_S))
        elif error != "authorization_pending":
            raise _refused(error)
    raise CredentialError("the code was not entered in time", _AGAIN)


def _refused(error: Any) -> CredentialError:
    match error:
        case "expired_token":
            return CredentialError("the code was not entered in time", _AGAIN)
        case "access_denied":
            return CredentialError("the login was cancelled on GitHub's page", _AGAIN)
        case "device_flow_disabled" | "incorrect_client_credentials" | "unsupported_grant_type":
            return CredentialError(
                f"this server does not support this login ({error})",
                "log in with gh, then run account-pool login --from gh",
            )
        case _:
            return CredentialError("the server gave neither a token nor a known reason", _AGAIN)


async def _post(ask: Ask, url: str, fields: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the response as a mapping, {} when it is none. Raises HttpFailed."""
    response = await ask(
        "POST",
        url,
        headers={"accept": "application/json", "content-type": "application/json"},
        content=json.dumps(fields).encode(),
        timeout_s=REQUEST_TIMEOUT_S,
    )
    if response.status >= 500 or response.status == 429:
        raise HttpFailed(f"the server answered {response.status}")
    return response.fields()


def _seconds(value: Any, usual: float, most: float) -> float:
    return min(seconds_in(value, 1e6) or usual, most)


# -- what a vendor's tool has in its file


class VendorLogin(msgspec.Struct, frozen=True, kw_only=True):
    """A login of a vendor's tool.

    Attributes:
        provider: whose accounts it can serve.
        access: what goes on the wire, or what is exchanged for it.
        refresh: gets new ones; it belongs to the tool.
        expires_at: when *access* ends, seconds since the epoch; None if not said.
        companions: what moves with it, e.g. account_id.
        login_ends_at: when it ends however often it is refreshed, seconds since the epoch;
            None if not said.
        client_id: the application that was logged in with; None if not said.
        owner: the address of who logged in, for people; None if not said.
    """

    provider: str
    access: Secret
    refresh: Secret | None = None
    expires_at: float | None = None
    companions: dict[str, str] = msgspec.field(default_factory=dict)
    login_ends_at: float | None = None
    client_id: str | None = None
    owner: str | None = None


def read_vendor_login(tool: str, path: Path) -> VendorLogin:
    """Return the login that *tool*, of WITH_FILE, keeps at *path*.

    Raises CredentialError, also when the tool keeps it in the system's keychain.
    """
    name = str(path)
    return login_in(tool, read_private(path, name, _otherwise(tool)), name)


def login_in(tool: str, text: str, name: str) -> VendorLogin:
    """Return the login of *tool* in *text*, called *name* in messages. Raises CredentialError."""
    shape = LOGINS[tool].read(_document(text, name))
    if shape is None or not isinstance(shape.access, str) or not shape.access:
        raise CredentialError(f"the file {name} holds no login of {tool}", _otherwise(tool))
    refresh = shape.refresh if isinstance(shape.refresh, str) and shape.refresh else None
    return VendorLogin(
        provider=shape.provider,
        access=usable(shape.access, f"the token in {name}"),
        refresh=None if refresh is None else usable(refresh, f"the refresh token in {name}"),
        expires_at=instant(shape.expires_at),
        companions=dict(shape.companions),
        login_ends_at=instant(shape.login_ends_at),
        client_id=shape.client_id,
        owner=shape.owner,
    )


def _otherwise(tool: str) -> str:
    return (
        f"log in with {tool} first, or name its file; where it uses the keychain: "
        + LOGINS[tool].otherwise
    )


def _document(text: str, name: str) -> Any:
    """Return *text* as JSON, or as the YAML of gh. Raises CredentialError."""
    import yaml  # noqa: PLC0415 - only where a login is taken over

    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        # All of it as text: nothing in it is a number or a date.
        return yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - makes text, lists, mappings
    except (yaml.YAMLError, RecursionError):
        # `from None`: the error quotes the document, which is a secret.
        raise CredentialError(
            f"the file {name} is neither JSON nor YAML", "name the file of the login"
        ) from None


# -- the application that Gemini CLI logs in with
#
# Google refreshes a login only for the application that it was made with, by id and secret. That
# secret is the vendor's and is in every copy of the tool: it is read there, not repeated here.

_GEMINI_PACKAGE = "@google/gemini-cli"
_CLIENT = re.compile(rb"\d{6,20}-[0-9a-z]{10,60}\.apps\.googleusercontent\.com")
_CLIENT_SECRET = re.compile(rb"GOCSPX-[\w-]{20,60}")
#: How far behind the id the secret may stand, bytes.
_NEAR = 400
#: Where a program of that name is not npm's package, its folder may be a home directory. The
#: package has fewer than 1,000 folders and scripts; its largest script has 30 MB.
MAX_FOLDERS = MAX_SCRIPTS = 5000
MAX_SCRIPT_BYTES = 128 * 1024 * 1024


def gemini_client(program: str, client_id: str | None) -> dict[str, str]:
    """Return client_id and client_secret of the Gemini CLI at *program*.

    *client_id* is the one that the login names; None if it names none. Raises CredentialError.
    """
    for text in _gemini_scripts(program):
        for found in _CLIENT.finditer(text):
            secret = _CLIENT_SECRET.search(text, found.end(), found.end() + _NEAR)
            name = found.group().decode()
            if secret is not None and client_id in (None, name):
                return {"client_id": name, "client_secret": secret.group().decode()}
    raise CredentialError(
        "the application that gemini logs in with is not found in it, and Google refreshes a "
        "login for that alone",
        "let gemini keep its login fresh: account-pool login --from gemini",
    )


def gemini_has_own_home(program: str) -> bool:
    """Say whether the Gemini CLI at *program* heeds GEMINI_CLI_HOME, as newer ones do."""
    return any(b"GEMINI_CLI_HOME" in text for text in _gemini_scripts(program))


def _gemini_scripts(program: str) -> Iterator[bytes]:
    """Yield the scripts of the Gemini CLI at *program*."""
    scripts = (
        Path(folder, name)
        for folder, names in islice(_folders(_gemini_package(program)), MAX_FOLDERS)
        for name in names
        if name.endswith(".js")
    )
    for script in islice(scripts, MAX_SCRIPTS):
        # What vanishes or may not be read holds nothing; a pipe would hold us.
        with suppress(OSError):
            if script.is_file():
                with script.open("rb") as file:
                    yield file.read(MAX_SCRIPT_BYTES)


def _gemini_package(program: str) -> Path:
    """Return the folder of the package that *program* is of, else that of the program."""
    start = Path(program)
    # npm makes a link into its package, on Windows a script beside its folder.
    beside = start.parent / "node_modules" / _GEMINI_PACKAGE
    if beside.is_dir():
        return beside
    above = start.resolve().parents
    return next((one for one in above if one.as_posix().endswith(f"/{_GEMINI_PACKAGE}")), above[0])


def _folders(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the folders below *top* and the files in each, in order; links are not followed."""
    for folder, inner, files in os.walk(top):
        # Of what the package needs, only Google's own may have what is looked for.
        if Path(folder).name == "node_modules":
            inner[:] = [name for name in inner if name in ("@google", ".pnpm")]
        inner.sort()
        yield folder, sorted(files)
