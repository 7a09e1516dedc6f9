"""Learns the project of a gemini-cli account, as its own tool does when it starts.

`POST {base}/v1internal:loadCodeAssist` with the account's token names
`cloudaicompanionProject`; each request carries it (google-gemini/gemini-cli
`packages/core/src/code_assist/server.ts`). An account that names its `project` in
accounts.yaml is never asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from account_pool.core.credential import Secret
from account_pool.credentials.errors import ExchangeFailed, ExchangeRefused
from account_pool.credentials.http import (
    OWN_NAME,
    Http,
    HttpFailed,
    HttpResponse,
    check_token_url,
    quoted,
    retry_after,
)

#: Seconds for the question, from the connection to the end of the body.
TIMEOUT_S = 15.0
MAX_MESSAGE_CHARS = 200
#: Project ids and numbers of Google Cloud, and the managed ones of Code Assist.
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}\Z")
#: No editor and no plugin asks.
_QUESTION = json.dumps(
    {
        "metadata": {
            "ideType": "IDE_UNSPECIFIED",
            "platform": "PLATFORM_UNSPECIFIED",
            "pluginType": "PLUGIN_UNSPECIFIED",
        }
    }
).encode()
_HOW = "write project: ... at the account in accounts.yaml"


class CodeAssist:
    """Asks for the projects of all accounts that need one."""

    def __init__(
        self,
        api_urls: Mapping[str, str],
        *,
        wall_clock: Callable[[], float],
        http: Http,
    ) -> None:
        """Take the address of the API by provider name, without a path.

        Raises ValueError for one that is neither https nor http to this machine.
        """
        for url in api_urls.values():
            check_token_url(url)
        self._api_urls = api_urls
        self._wall_clock = wall_clock
        self._http = http

    def handles(self, provider: str) -> bool:
        """Say whether the accounts of *provider* need a project."""
        return provider in self._api_urls

    async def project(self, provider: str, token: Secret) -> str:
        """Return the project of the account with *token*.

        Raises ExchangeRefused or ExchangeFailed, whose text is for the account's owner.
        """
        url = f"{self._api_urls[provider]}/v1internal:loadCodeAssist"
        headers = {
            "authorization": f"Bearer {token.reveal()}",
            "content-type": "application/json",
            "accept": "application/json",
            "user-agent": OWN_NAME,
        }
        try:
            response = await self._http.ask(
                "POST", url, headers=headers, content=_QUESTION, timeout_s=TIMEOUT_S
            )
        except HttpFailed as error:
            raise ExchangeFailed(f"asking for its project: {error}", error.retry_after_s) from None
        return read_project(response, token, self._wall_clock())


def read_project(response: HttpResponse, token: Secret, wall_now: float) -> str:
    """Return the project the response names. Raises ExchangeRefused or ExchangeFailed."""
    fields = response.fields()
    if response.status != 200:
        raise _refusal(response, fields, token, wall_now)
    project = fields.get("cloudaicompanionProject")
    if isinstance(project, dict):
        project = project.get("id")
    if isinstance(project, str) and _PROJECT.match(project):
        return project
    if tiers := fields.get("ineligibleTiers"):
        why = _why(tiers, token)
        raise ExchangeRefused(f"Code Assist does not serve this account{why}; {_HOW}")
    raise ExchangeRefused(f"Code Assist names no project: use gemini once with it, or {_HOW}")


def _refusal(
    response: HttpResponse, fields: Mapping[str, Any], token: Secret, wall_now: float
) -> ExchangeRefused | ExchangeFailed:
    error = fields.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    reason = quoted(message, [token], MAX_MESSAGE_CHARS) if isinstance(message, str) else ""
    described = f": {reason}" if reason else ""
    text = f"the request for its project was answered with {response.status}{described}"
    # 401 included: the token is renewed by then, or its account says why not.
    if response.status in (401, 408, 425, 429) or response.status >= 500:
        return ExchangeFailed(text, retry_after(response.headers, wall_now, response.status))
    return ExchangeRefused(f"{text}; {_HOW}", response.status)


def _why(tiers: Any, token: Secret) -> str:
    """Return ": " and the first reason of Google's, "" if there is none."""
    first = tiers[0] if isinstance(tiers, list) and isinstance(tiers[0], dict) else {}
    why = first.get("reasonMessage") or first.get("reasonCode")
    return f": {quoted(why, [token], MAX_MESSAGE_CHARS)}" if isinstance(why, str) else ""
