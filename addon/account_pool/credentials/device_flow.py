"""Logs in to GitHub from a terminal: the device flow (RFC 8628).

The user types a code into GitHub's page; meanwhile we ask whether it was done, as often
as GitHub allows. Time and output come in from outside.
https://docs.github.com/apps/oauth-apps/building-oauth-apps/authorizing-oauth-apps#device-flow
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from account_pool.core.credential import Secret
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.http import HttpFailed, HttpResponse, seconds_in
from account_pool.credentials.sources import usable

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
        page=_printable(page),
        text=_printable(text),
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
            # RFC 8628, 3.5: less often while there is no response.
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


def _printable(text: str) -> str:
    """Return *text* of a server as it may be shown in a terminal."""
    return "".join(char for char in text if char.isprintable())[:200]
