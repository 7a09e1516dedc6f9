"""How the credentials of one account are acquired: a strategy for each kind of source.

A strategy returns credentials and says when to call it again, or raises. It publishes nothing
and runs no timer: `keeper.py` does. Here is also what is asked of Code Assist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from account_pool.core.credential import Credential, Secret
from account_pool.core.decision_text import duration
from account_pool.core.json_values import members
from account_pool.core.meaning import LazyPattern
from account_pool.credentials.copilot import CopilotExchange
from account_pool.credentials.http import (
    OWN_NAME,
    ExchangeFailed,
    ExchangeRefused,
    Http,
    HttpFailed,
    HttpResponse,
    check_token_url,
    quoted,
    retry_after,
)
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.refreshable_token import RefreshableToken, Refresher
from account_pool.credentials.sources import AccountEntry, CredentialError, Reading, moment
from account_pool.store.store import Tokens

#: How often an exchange that was not possible is tried again, in seconds.
NO_EXCHANGE_LOOK_S = 600.0

Credentials = Mapping[str, Credential]


class AcquireContext(Struct, frozen=True, kw_only=True):
    """What the strategies of all accounts share.

    Attributes:
        exchange: turns GitHub tokens into Copilot tokens.
        refresher: refreshes logins; None: their tokens are used as configured.
        assist: looks up the project of an account that needs one.
    """

    exchange: CopilotExchange
    refresher: Refresher | None = None
    assist: CodeAssist | None = None


class Acquired(Struct, frozen=True, kw_only=True):
    """What a strategy returns.

    Attributes:
        credentials: by kind.
        again_in_s: seconds until the next call; None: once the server refuses them.
        for_clients: the part of an exchange that clients may see.
        log_text: what the log says of new credentials; "" for nothing.
    """

    credentials: Credentials
    again_in_s: float | None = None
    for_clients: Mapping[str, Any] = field(default_factory=dict)
    log_text: str = ""


class FromSource:
    """Reads a source that holds the credential itself; the base of the other strategies.

    Attributes:
        expired: the problem to report when the credentials have expired.
        renews: gets new ones itself before they expire.
    """

    renews = False

    def __init__(self, entry: AccountEntry) -> None:
        self._entry = entry
        self._source = entry.source
        self.expired = "its token has expired"
        if entry.source.look_s is not None:
            self.expired = (
                f"{entry.source.describe()}: the token in it has expired; its tool renews it when "
                "it is used, or give this account a login of its own"
            )

    def acquire_now(self) -> Acquired | None:
        """Return what is available at once; None if it takes time. Raises CredentialError."""
        reading = self._source.read_now()
        return None if reading is None else self._acquired(reading)

    async def acquire(self) -> Acquired:
        """Return new credentials.

        Raises CredentialError, ExchangeRefused, ExchangeFailed or RefreshPending.
        """
        return self._acquired(await self._source.read())

    def refuse(self, secret: Secret) -> None:
        """Note that the provider refused *secret*: another one is wanted."""
        self._source.refused(secret)

    def fallback(self, current: Credentials) -> Credentials:
        """Return what can be used after a failure; *current* was used before it."""
        return current

    def _acquired(self, reading: Reading) -> Acquired:
        credentials = credential_of(self._entry, reading)
        return Acquired(credentials=credentials, again_in_s=self._source.look_s)


class FromLogin(FromSource):
    """Returns the newest tokens of a login, refreshed before they expire."""

    renews = True

    def __init__(
        self, entry: AccountEntry, token: RefreshableToken, wall_clock: Callable[[], float]
    ) -> None:
        super().__init__(entry)
        self._token = token
        self._wall_clock = wall_clock

    def acquire_now(self) -> None:
        """It takes time: the newest tokens are in the store."""

    async def acquire(self) -> Acquired:
        tokens = await self._token.tokens()
        credentials = self._credentials(tokens)
        renew_at = self._token.renew_at(tokens)
        wait_s = None if renew_at is None else max(renew_at - self._wall_clock(), 1.0)
        refreshed = "when it is refused" if wait_s is None else f"in {duration(wait_s)}"
        ends = [c.expires_at for c in credentials.values() if c.expires_at is not None]
        until = f" (valid until {moment(min(ends)):%Y-%m-%d %H:%M:%S} UTC)" if ends else ""
        return Acquired(
            credentials=credentials,
            again_in_s=wait_s,
            log_text=f"has an access token, refreshed {refreshed}{until}",
        )

    def refuse(self, secret: Secret) -> None:
        self._token.refuse(secret)

    def fallback(self, _current: Credentials) -> Credentials:
        tokens = self._token.still_good()
        try:
            return {} if tokens is None else self._credentials(tokens)
        except CredentialError:
            return {}

    def _credentials(self, tokens: Tokens) -> Credentials:
        assert tokens.access is not None  # a login gives out no others
        reading = Reading(
            secret=tokens.access, expires_at=tokens.expires_at, companions=tokens.companions
        )
        return credential_of(self._entry, reading)


class FromExchange(FromSource):
    """Exchanges the GitHub token of the source for a Copilot token."""

    renews = True

    def __init__(self, entry: AccountEntry, exchange: CopilotExchange) -> None:
        super().__init__(entry)
        self._exchange = exchange
        self.expired = "its token has expired"

    def acquire_now(self) -> None:
        """It takes time: GitHub is asked."""

    async def acquire(self) -> Acquired:
        account = self._entry.account
        secret = (await self._source.read()).secret
        try:
            exchanged = await self._exchange.exchange(account, secret)
        except ExchangeRefused as error:
            # The owner may have logged in again since the source was read.
            self._source.refused(secret)
            newer = (await self._source.read()).secret if error.status == 401 else secret
            if newer == secret and error.status == 404:
                return self._unexchanged(secret)
            if newer == secret:
                raise
            secret = newer
            exchanged = await self._exchange.exchange(account, secret)
        credentials = self._exchange.credentials(account, secret, exchanged)
        token = credentials["copilot"]
        return Acquired(
            credentials=credentials,
            again_in_s=exchanged.renew_in_s,
            for_clients=exchanged.for_clients,
            log_text=f"has a Copilot token, refreshed in {duration(exchanged.renew_in_s)} "
            f"(valid until {moment(token.expires_at or 0):%H:%M:%S} UTC, "
            f"host {token.companions.get('host', 'as the client names it')})",
        )

    def _unexchanged(self, secret: Secret) -> Acquired:
        """Use a token of another app, or a PAT, as it is: the Copilot CLI sends those itself."""
        return Acquired(
            credentials=self._exchange.credentials(self._entry.account, secret, None),
            again_in_s=NO_EXCHANGE_LOOK_S,
            log_text="its token cannot be exchanged (404): it serves only tools that send a GitHub "
            "token, as the Copilot CLI does; log in with an app that has Copilot access to "
            "serve editors too",
        )


class WithProject(FromSource):
    """Adds the account's project, looked up once, to what another strategy returns."""

    def __init__(self, entry: AccountEntry, strategy: FromSource, assist: CodeAssist) -> None:
        super().__init__(entry)
        self._strategy = strategy
        self._assist = assist
        self._project: str | None = None
        self.expired, self.renews = strategy.expired, strategy.renews

    def acquire_now(self) -> None:
        """It takes time: Code Assist is asked."""

    async def acquire(self) -> Acquired:
        acquired = await self._strategy.acquire()
        if self._project is None:
            for credential in acquired.credentials.values():
                self._project = await self._assist.project(
                    self._entry.account.provider, credential.secret
                )
        return replace(acquired, credentials=self._with_project(acquired.credentials))

    def refuse(self, secret: Secret) -> None:
        self._strategy.refuse(secret)

    def fallback(self, current: Credentials) -> Credentials:
        return self._with_project(self._strategy.fallback(current))

    def _with_project(self, credentials: Credentials) -> Credentials:
        """Return *credentials* with the project; {} while it is unknown: they would be refused."""
        if self._project is None:
            return {}
        added = {"project": self._project}
        return {
            kind: replace(one, companions={**added, **one.companions})
            for kind, one in credentials.items()
        }


def strategy_of(
    entry: AccountEntry, context: AcquireContext, wall_clock: Callable[[], float], chance: float
) -> FromSource:
    """Return the strategy for *entry*. *chance*, 0 to 1, spreads refreshes over time."""
    provider, source, assist = entry.account.provider, entry.source, context.assist
    if context.exchange.handles(provider):
        return FromExchange(entry, context.exchange)
    strategy = FromSource(entry)
    if isinstance(source, OAuthSource) and context.refresher is not None:
        expiry = entry.provider.token_expiry
        token = RefreshableToken(source, context.refresher, expiry=expiry, chance=chance)
        strategy = FromLogin(entry, token, wall_clock)
    if assist and assist.handles(provider) and "project" not in entry.account.companions:
        strategy = WithProject(entry, strategy, assist)
    return strategy


def credential_of(entry: AccountEntry, reading: Reading) -> Credentials:
    """Return *reading* as credentials of the account, by kind. Raises CredentialError."""
    provider, token = entry.provider, reading.secret.reveal()
    if where := provider.misplaced(token):
        raise CredentialError(f"this token is not one for {provider.name}", where)
    expires_at = reading.expires_at
    credential = Credential(
        kind=provider.token_kind,
        secret=reading.secret,
        # What the owner configured takes precedence over the claims of the token.
        companions={
            **provider.token_companions(token),
            **reading.companions,
            **entry.account.companions,
        },
        expires_at=provider.token_expiry(token) if expires_at is None else expires_at,
    )
    if why := provider.lacking(credential):
        raise CredentialError("this token alone is not enough", why)
    return {credential.kind: credential}


# -- the project of a gemini-cli account, which its own tool learns when it starts
#
# `POST {base}/v1internal:loadCodeAssist` with the account's token names
# `cloudaicompanionProject`; each request carries it (google-gemini/gemini-cli
# `packages/core/src/code_assist/server.ts`). An account that names its `project` in
# accounts.yaml is never asked for.

#: Seconds for the question, from the connection to the end of the body.
ASSIST_TIMEOUT_S = 15.0
MAX_MESSAGE_CHARS = 200
#: Project ids and numbers of Google Cloud, and the managed ones of Code Assist.
_PROJECT = LazyPattern(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}\Z")
#: No editor and no plugin asks.
_QUESTION = (
    b'{"metadata": {"ideType": "IDE_UNSPECIFIED", "platform": "PLATFORM_UNSPECIFIED", '
    b'"pluginType": "PLUGIN_UNSPECIFIED"}}'
)
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
                "POST", url, headers=headers, content=_QUESTION, timeout_s=ASSIST_TIMEOUT_S
            )
        except HttpFailed as error:
            raise ExchangeFailed(f"asking for its project: {error}", error.retry_after_s) from None
        return read_project(response, token, self._wall_clock())


def read_project(response: HttpResponse, token: Secret, wall_now: float) -> str:
    """Return the project the response names. Raises ExchangeRefused or ExchangeFailed."""
    fields = response.fields()
    if response.status != 200:
        raise _refusal(response, fields, token, wall_now)
    if not fields:  # of a gateway, such as one that wants its user to log in
        raise ExchangeFailed("the request for its project was answered with 200, and no JSON")
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
    message = members(fields.get("error")).get("message")
    reason = quoted(message, [token], MAX_MESSAGE_CHARS) if isinstance(message, str) else ""
    described = f": {reason}" if reason else ""
    text = f"the request for its project was answered with {response.status}{described}"
    # 401 included: the token is renewed by then, or its account says why not.
    if response.status in (401, 408, 425, 429) or not 400 <= response.status < 500:
        return ExchangeFailed(text, retry_after(response.headers, wall_now, response.status))
    return ExchangeRefused(f"{text}; {_HOW}", response.status)


def _why(tiers: Any, token: Secret) -> str:
    """Return ": " and the first reason of Google's, "" if there is none."""
    first = tiers[0] if isinstance(tiers, list) and isinstance(tiers[0], dict) else {}
    why = first.get("reasonMessage") or first.get("reasonCode")
    return f": {quoted(why, [token], MAX_MESSAGE_CHARS)}" if isinstance(why, str) else ""
