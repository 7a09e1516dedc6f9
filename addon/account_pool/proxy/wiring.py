"""Wires exchanges and refreshes of tokens into the proxy.

What they trust, which upstream proxy they take, where tokens are kept, and the client's
own exchange.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import ssl
import time
from collections.abc import Iterable
from pathlib import Path

from mitmproxy.addons.upstream_auth import parse_upstream_auth
from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ProxyMode, UpstreamMode

from account_pool.config import Config
from account_pool.core.account import AccountKey
from account_pool.credentials.account_credential import Publish
from account_pool.credentials.acquire import AcquireContext
from account_pool.credentials.code_assist import CodeAssist, CodeAssistSettings
from account_pool.credentials.copilot import CopilotExchange, EditorHeaders
from account_pool.credentials.http import Http, Way
from account_pool.credentials.keeper import Keeper
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.refreshable_token import Refresher, make_refresher
from account_pool.credentials.sources import AccountEntry
from account_pool.providers.base import LocalAnswer, Provider
from account_pool.proxy.service import Service
from account_pool.store.sqlite import MemoryStore, SqliteStore
from account_pool.store.store import Store, TokenStore

logger = logging.getLogger(__name__)

#: How long a client's own exchange waits for the first one of ours, right after start.
FIRST_TRY_S = 15.0
#: The file of `pool_state` when none is named, in mitmproxy's own directory.
STATE_FILE = "account-pool.sqlite"
IN_MEMORY = "memory:"


def make_keeper(
    loaded: Config, publish: Publish, *, store: Store, editor_version: str, options: Options
) -> tuple[Keeper, CopilotExchange]:
    """Return what keeps the credentials of *loaded*; nothing is sent or read yet.

    *store* keeps the tokens of logins that are refreshed. Raises StoreError.
    """
    copilot = CopilotExchange(
        {}, EditorHeaders(editor_version), wall_clock=time.time, http=own_http(options)
    )
    context = make_acquire_context(loaded, copilot, None, store, options)
    keeper = Keeper(
        loaded.accounts,
        publish,
        copilot,
        refresher=context.refresher,
        assist=context.assist,
        wall_clock=time.time,
    )
    return keeper, copilot


def make_acquire_context(
    loaded: Config,
    copilot: CopilotExchange,
    refresher: Refresher | None,
    store: Store,
    options: Options,
) -> AcquireContext:
    """Return how the accounts of *loaded* have their credentials. Raises StoreError.

    *refresher* is the one there is, if any: it stays while the proxy runs.
    """
    http = own_http(options)
    entries = [entry for entry in loaded.accounts if entry.account.enabled]
    refreshed = [e.account.key for e in entries if isinstance(e.source, OAuthSource)]
    if refreshed and refresher is None:
        refresher = make_refresher(_tokens(store, refreshed), http, time.time)
    used = {entry.account.provider for entry in entries}
    copilot.use({name: e for name, e in loaded.exchanges.items() if name in used})
    assist = CodeAssist(
        {e.provider.name: _code_assist(e.provider) for e in entries if _has_projects(e)},
        wall_clock=time.time,
        http=http,
    )
    return AcquireContext(exchange=copilot, refresher=refresher, assist=assist)


def serve(service: Service, keeper: Keeper, exchange: CopilotExchange, loaded: Config) -> None:
    """Let *service* answer clients that exchange a token, and learn their editor."""
    for name in loaded.exchanges:
        service.local[name] = functools.partial(_answer, keeper, name)
        service.seen[name] = exchange.client_seen


async def _answer(keeper: Keeper, provider: str) -> LocalAnswer:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(keeper.first_try(provider), FIRST_TRY_S)
    return keeper.exchange_response(time.time(), provider)


def make_store(state: str, options: Options) -> Store:
    """Return the store that `pool_state` (*state*) names; nothing is opened yet."""
    path = database_path(state, options)
    return MemoryStore() if path is None else SqliteStore(path)


def database_path(state: str, options: Options) -> Path | None:
    """Return the file that `pool_state` (*state*) names, None for none."""
    if state == IN_MEMORY:
        return None
    directory = Path(options.confdir).expanduser()
    return Path(state).expanduser() if state else directory / STATE_FILE


def _tokens(store: Store, refreshed: Iterable[AccountKey]) -> TokenStore:
    """Open where the tokens of the accounts *refreshed* are kept. Raises StoreError."""
    if not store.durable:
        logger.warning(
            "account-pool: pool_state is memory:, so refreshed logins are lost when "
            "the proxy stops: %s. Set pool_state to a file, or remove it",
            ", ".join(str(key) for key in refreshed),
        )
    return store.tokens()


def _has_projects(entry: AccountEntry) -> bool:
    return "project" in entry.provider.companions


def _code_assist(provider: Provider) -> CodeAssistSettings:
    """Return where the projects are asked for: at the API itself."""
    rule = provider.hosts[0]
    host = f"[{rule.host}]" if ":" in rule.host else rule.host
    return CodeAssistSettings(api_url=f"https://{host}:{rule.port}")


@functools.lru_cache(maxsize=1)
def _way_of(_proxy: str | None, _auth: str | None) -> Way:
    """Return what is known of the upstream proxy; another password begins anew."""
    return Way()


def own_http(options: Options) -> Http:
    """Return how this process reaches others by itself: as mitmproxy does for requests."""
    proxy, auth = _upstream_proxy(options), getattr(options, "upstream_auth", None)
    return Http(
        trust=functools.cache(lambda: _trust(options)),
        trust_for=functools.cache(lambda host: _trust_for(options, host)),
        proxy=proxy,
        # Made as mitmproxy makes it: whatever characters a password has.
        proxy_auth=parse_upstream_auth(auth).decode("ascii") if auth else None,
        way=_way_of(proxy, auth),
    )


def _trust(options: Options) -> ssl.SSLContext:
    """Return what mitmproxy itself trusts upstream, verification always on."""
    import certifi  # noqa: PLC0415 - only where there is an exchange

    context = ssl.create_default_context(
        cafile=options.ssl_verify_upstream_trusted_ca
        or (None if options.ssl_verify_upstream_trusted_confdir else certifi.where()),
        capath=options.ssl_verify_upstream_trusted_confdir,
    )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _trust_for(options: Options, host: str) -> ssl.SSLContext | None:
    """Return the same with the certificate that `client_certs` has for *host*, if it has one."""
    if not options.client_certs:
        return None
    path = Path(options.client_certs).expanduser()
    if not path.is_file():
        path /= f"{host}.pem"
        # A name of a host holds no slash; what does must not lead elsewhere.
        if "/" in host or not path.is_file():
            return None
    context = _trust(options)
    context.load_cert_chain(path)
    return context


def _upstream_proxy(options: Options) -> str | None:
    """Return the user's upstream proxy (`--mode upstream:URL`), if there is one."""
    for mode in options.mode:
        spec = ProxyMode.parse(mode)
        if isinstance(spec, UpstreamMode):
            host, port = spec.address
            return f"{spec.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    return None
