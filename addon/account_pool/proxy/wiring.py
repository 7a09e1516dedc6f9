"""Connects the service with what the configuration names, and again when that changes.

Accounts, providers and options; what keeps their credentials and what was learnt; how the
proxy itself reaches token servers: what it trusts, which upstream proxy it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import ssl
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from mitmproxy import ctx, exceptions
from mitmproxy.addons.upstream_auth import parse_upstream_auth
from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ProxyMode, UpstreamMode
from msgspec import Struct
from msgspec.structs import replace

from account_pool.admin.auth import Rules
from account_pool.config.configuration import Config
from account_pool.config.options import OptionValue
from account_pool.config.options import settings as merged
from account_pool.config.review import Notices, ending_logins
from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential, identity
from account_pool.core.errors import UnknownAccount
from account_pool.core.pool import Pool
from account_pool.core.usage import Counted
from account_pool.credentials.acquire import AcquireContext, CodeAssist
from account_pool.credentials.copilot import CopilotExchange
from account_pool.credentials.http import Http, ProxyGate
from account_pool.credentials.keeper import Keeper, Publish
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.refreshable_token import Refresher, make_refresher
from account_pool.credentials.sources import AccountEntry
from account_pool.filesystem import expanded
from account_pool.providers.base import LocalResponse, Provider
from account_pool.proxy import draining, options, persistence
from account_pool.proxy.fast.steps import Steps
from account_pool.proxy.late_parts import LateParts, Needs
from account_pool.proxy.persistence import Persistence
from account_pool.proxy.process import without_collections
from account_pool.proxy.service import Service
from account_pool.proxy.store_access import make_store, open_tokens
from account_pool.store.sqlite import MemoryStore
from account_pool.store.store import StateStore, Store, TokenStore

if TYPE_CHECKING:
    from account_pool.proxy.fleet import SharedNotices
    from account_pool.proxy.tracing import Tracing

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

#: How long a client's own exchange waits for the first one of ours, right after start.
FIRST_TRY_S = 15.0
_ANOTHER = (
    "its credential is of another account now; cooldowns, headroom and pins of the former are "
    "dropped"
)


class Wiring:
    """The parts of a pool, connected as the configuration says, and again when it changes.

    Attributes:
        service: what requests are served by.
        at_start: names of the options that were given when the proxy started.
        concealed: values of options that are secrets.
        late: notifications, look-ups and costs.
        tracing: sends spans about requests to a collector; None where none is named.
        known: the providers accounts may be of.
        keeper: what keeps the credentials; None before `start`.
        persistence: what keeps what was learnt; None while there never was an account.
        fast: the shorter ways through mitmproxy; None before `start`.
        on_persistence: called with it once there is one.
        workers: how many workers this proxy is one of.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        service.warnings = self._warnings
        service.state_problem = self._state_problem
        self.at_start: frozenset[str] = frozenset()
        self.concealed = options.Concealed()
        self.late = LateParts(
            service,
            Needs(
                http_of=own_http,
                ask_store=self.ask_store,
                notices=self._shared_notices,
                login_ends=self._login_ends,
                is_vendors=self._is_vendors,
            ),
        )
        self.tracing: Tracing | None = None
        self.known: Mapping[str, Provider] = {}
        self.keeper: Keeper | None = None
        self.persistence: Persistence | None = None
        self.fast: Steps | None = None
        self.workers = 1
        self.on_persistence: Callable[[Persistence], object] = lambda _persistence: None
        self._store: Store = MemoryStore()
        self._entries: Mapping[AccountKey, AccountEntry] = {}
        self._notices = Notices()
        self._file_warnings: tuple[str, ...] = ()
        self._in_file: Mapping[str, OptionValue] = {}

    # -- options

    def values(self, in_file: Mapping[str, OptionValue] | None = None) -> dict[str, OptionValue]:
        """Return the value of each option of the pool. Raises OptionsError.

        *in_file* are those of accounts.yaml; None: of the one that serves.
        """
        if getattr(ctx.options, "proxy_debug", False):
            raise exceptions.OptionsError(
                "proxy_debug: prints every byte sent, credentials included; "
                "leave it off while the account pool runs"
            )
        in_file = self._in_file if in_file is None else in_file
        return merged(in_file, options.given(ctx.options, self.at_start, self.concealed))

    def apply(self) -> None:
        """Take over options that were changed while the proxy runs. Raises OptionsError."""
        self._apply(self.values())

    def _apply(self, values: Mapping[str, OptionValue]) -> None:
        pool = self.service.pool
        pool.health.default_cooldown_s = float(values["cooldown"])
        pool.accounts.set_strategy(str(values["strategy"]), now=self.service.now())
        self.service.settings = options.settings(values, ctx.options)
        self.service.ended.kept_days = int(values["requests_kept"])
        if self.fast is not None:
            self.fast.use(self.service.settings.fast)
        self.late.use(values, ctx.options)

    def rules(self) -> Rules:
        """Return who may do what through the admin API."""
        return Rules(
            remote=self.service.settings.remote,
            guarded=bool(getattr(ctx.options, "proxyauth", None)),
            reveal=bool(self.values()["show_tokens"]),
        )

    # -- accounts and their credentials

    @without_collections()
    def start(self, loaded: Config) -> None:
        """Connect everything for the first time. Raises OptionsError or StoreError."""
        values = self.values(loaded.options)
        pool = Pool(chance=self.service.chance)
        self.service.set_pool(pool)
        # Now: mitmproxy accepts clients before it is running.
        self.fast = Steps(ctx.master.addons)
        self._store = make_store(str(values["state"]), ctx.options)
        self.keeper = make_keeper(
            loaded,
            self.publish,
            store=self._store,
            editor_version=str(values["editor_version"]),
            options=ctx.options,
        )
        self._connect(loaded, values, self.keeper)
        self.service.refresh = self.keeper.refresh
        pool.seek = self.keeper.seek
        self._persist()

    @without_collections()
    def run(self) -> None:
        """Begin to renew credentials and to write. Needs a running event loop."""
        if self.keeper is not None:
            self.keeper.start()
        if self.persistence is not None:
            self.persistence.start()
        self.late.start()
        if any(name.startswith("OTEL_EXPORTER_") for name in os.environ):
            from account_pool.proxy.tracing import Tracing  # noqa: PLC0415 - rarely wanted

            self.tracing = Tracing()
            self.tracing.start(os.environ, self.service.ended)

    def sharing_known(self, loaded: Config) -> Config:
        """Return *loaded*, which shares what is the same with the accounts that serve now.

        Call it where the file was read: the loop stands still while accounts are compared.
        """
        known = self._entries
        accounts = tuple(
            entry if (served := known.get(entry.account.key)) is None else entry.sharing(served)
            for entry in loaded.accounts
        )
        return replace(loaded, accounts=accounts) if known else loaded

    @without_collections()
    def take_over(self, loaded: Config) -> Changes:
        """Replace accounts, providers and options by those of *loaded*.

        Raises OptionsError or StoreError; nothing is changed then.
        """
        if self.keeper is None:
            raise exceptions.OptionsError("the pool has not started")
        values = self.values(loaded.options)
        known = self.keeper.context
        context = make_acquire_context(
            loaded, known.exchange, known.refresher, self._store, ctx.options
        )
        changes = self._connect(loaded, values, self.keeper)
        self.keeper.update(loaded.accounts, context, anew=changes.added)
        if self.persistence is None:
            self._persist()
            if self.persistence is not None:
                self.persistence.start()
        return changes

    def remove(self, key: AccountKey) -> None:
        """Take an account out of the running pool. Raises UnknownAccount."""
        self.service.pool.accounts.remove(key, now=self.service.now())
        self.service.forget(key)
        self._notices.forget(key)

    def stop(self, over_at: float) -> None:
        """Stop all of it; monotonic seconds: what *over_at* leaves time for is waited for."""
        if self.fast is not None:
            self.fast.use(())
        self.late.stop()
        if self.tracing is not None:
            self.tracing.stop()
        if self.keeper is not None:
            self.keeper.stop(over_at + draining.ANSWER_S)
        if self.persistence is not None:
            self.persistence.stop(over_at + draining.WRITE_S)

    def publish(
        self,
        key: AccountKey,
        credentials: Mapping[str, Credential],
        problem: str | None,
        again_in_s: float | None,
    ) -> None:
        """Put the credentials of an account into the pool, as the keeper has them now."""
        pool, now = self.service.pool, self.service.now()
        # Removed by hand: its loop still runs, and must not end in an error.
        with contextlib.suppress(UnknownAccount):
            if pool.accounts.identified(key, identity(credentials), now=now):
                self.service.forget(key)
                logger.info(f"account-pool: {key}: {_ANOTHER}")
            waits = again_in_s is not None and again_in_s <= self.service.settings.limits.max_wait_s
            pool.accounts.set_credentials(
                key,
                credentials,
                now=now,
                problem=problem,
                pending=waits,
                passing=again_in_s is not None,
            )
        self.service.learn_holder(key, credentials)
        if (entry := self._entries.get(key)) is not None:
            for notice in self._notices.take(entry, credentials):
                logger.warning(f"account-pool: {notice}")

    # -- what the end and the admin API ask

    def is_refreshing(self) -> bool:
        return self.keeper is not None and self.keeper.is_refreshing

    async def write(self) -> None:
        """Have what the pool has learnt written."""
        if self.persistence is not None:
            await self.persistence.write()

    async def read_counts(self, name: str) -> Counted:
        """Return the sums of a counter, of all proxies. Raises StoreError."""
        return {} if self.persistence is None else await self.persistence.read_counts(name)

    async def ask_store(self, question: Callable[[StateStore], Value]) -> Value | None:
        """Return what the store answers; None where it cannot be used. Raises StoreError."""
        return None if self.persistence is None else await self.persistence.ask(question)

    # -- inside

    def _connect(
        self, loaded: Config, values: Mapping[str, OptionValue], keeper: Keeper
    ) -> Changes:
        self._note(loaded)
        changes = update_pool(self.service, loaded.accounts, keeper.renewed(loaded.accounts))
        self.service.set_providers(loaded.providers)
        self._apply(values)
        serve(self.service, keeper, loaded)
        return changes

    def _persist(self) -> None:
        """Once there are accounts, restore what was learnt of them, and keep it."""
        if self.persistence is None and self.service.pool.accounts.providers():
            self.persistence = persistence.begin(self._store, self.service, workers=self.workers)
            self.on_persistence(self.persistence)

    def _note(self, loaded: Config) -> None:
        """Note what *loaded* says, and log what looks wrong with it, once."""
        self._in_file = loaded.options
        self.known = loaded.described
        self._entries = {entry.account.key: entry for entry in loaded.accounts}
        self._notices.keep(self._entries)
        for warning in loaded.warnings:
            if warning not in self._file_warnings:
                logger.warning(f"account-pool: {warning}")
        self._file_warnings = loaded.warnings

    def _login_ends(self) -> dict[AccountKey, float]:
        """Return when logins end, however often they are refreshed, seconds since the epoch."""
        return {
            key: ends_at
            for key, entry in self._entries.items()
            if entry.account.enabled and (ends_at := entry.source.login_ends_at) is not None
        }

    def _is_vendors(self, provider: str) -> bool:
        """Say whether accounts of *provider* are at the vendor's own hosts."""
        exchange = None if self.keeper is None else self.keeper.context.exchange
        return exchange is None or exchange.is_github(provider)

    def _shared_notices(self) -> SharedNotices | None:
        return None if self.persistence is None else self.persistence.notices

    def _state_problem(self) -> str | None:
        return None if self.persistence is None else self.persistence.access.problem

    def _warnings(self) -> list[str]:
        """Return what looks wrong with accounts and stops nothing, for people."""
        clock = self.service.observer.wrong_clock
        ending = ending_logins(self._entries.values(), time.time())
        notices = map(str, (*self._notices, *ending))
        return [*self._file_warnings, *notices, *([clock] if clock else ())]


class Changes(Struct, frozen=True):
    """How taking over a configuration changed the pool. Prints as a line for the log."""

    added: tuple[AccountKey, ...] = ()
    removed: tuple[AccountKey, ...] = ()
    changed: tuple[AccountKey, ...] = ()
    renewed: tuple[AccountKey, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{verb} {', '.join(map(str, keys))}"
            for verb, keys in (
                ("added", self.added),
                ("removed", self.removed),
                ("changed", self.changed),
                ("new credential for", self.renewed),
            )
            if keys
        ]
        return "; ".join(parts) or "no account changed"


def update_pool(
    service: Service, entries: Iterable[AccountEntry], renewed: Collection[AccountKey] = ()
) -> Changes:
    """Make the accounts of *service* those of *entries*.

    *renewed* are those that have another credential now.
    """
    pool, now = service.pool, service.now()
    find, written = pool.accounts.find, dict[AccountKey, AccountEntry]()
    added, changed = [], []
    # One pass, in which most accounts are the objects they were: the loop stands still meanwhile.
    for entry in entries:
        account = entry.account
        written[account.key] = entry
        state = find(account.key)
        if state is None:
            added.append(account.key)
        elif state.account is not account and state.account != account:
            changed.append(account.key)
    removed = [state.key for state in pool.accounts if state.key not in written]
    others = [key for key in renewed if key in written and find(key) is not None]
    for key in removed:
        pool.accounts.remove(key, now=now)
        service.forget(key)
    for key in changed:
        pool.accounts.replace(written[key].account, now=now)
    for key in others:
        pool.accounts.renewed(key, now=now, source=written[key].fingerprint())
        service.forget(key)
    for key in added:
        entry = written[key]
        pool.accounts.add(
            entry.account, now=now, pending=entry.account.enabled, source=entry.fingerprint()
        )
    return Changes(tuple(added), tuple(removed), tuple(changed), tuple(others))


# -- credentials


def make_keeper(
    loaded: Config, publish: Publish, *, store: Store, editor_version: str, options: Options
) -> Keeper:
    """Return what keeps the credentials of *loaded*; nothing is sent or read yet.

    *store* keeps the tokens of logins that are refreshed. Raises StoreError.
    """
    copilot = CopilotExchange(
        {}, editor_version=editor_version, wall_clock=time.time, http=own_http(options)
    )
    context = make_acquire_context(loaded, copilot, None, store, options)
    return Keeper(loaded.accounts, publish, context, wall_clock=time.time)


def make_acquire_context(
    loaded: Config,
    copilot: CopilotExchange,
    refresher: Refresher | None,
    store: Store,
    options: Options,
) -> AcquireContext:
    """Return how the accounts of *loaded* get their credentials. Raises StoreError.

    *refresher* is the present one, if any: it stays while the proxy runs.
    """
    http = own_http(options)
    used = {e.account.provider: e.provider for e in loaded.accounts if e.account.enabled}
    if refresher is None:
        refreshed = [
            e.account.key
            for e in loaded.accounts
            if e.account.enabled and isinstance(e.source, OAuthSource)
        ]
        if refreshed:
            refresher = make_refresher(_tokens(store, refreshed), http, time.time)
    copilot.use({name: e for name, e in loaded.exchanges.items() if name in used})
    assist = CodeAssist(
        {one.name: _api_url(one) for one in used.values() if "project" in one.companions},
        wall_clock=time.time,
        http=http,
    )
    return AcquireContext(exchange=copilot, refresher=refresher, assist=assist)


def serve(service: Service, keeper: Keeper, loaded: Config) -> None:
    """Let *service* answer the token exchanges of clients, and learn their editor."""
    for name in loaded.exchanges:
        service.local[name] = functools.partial(_answer, keeper, name)
        service.recognizer.seen[name] = keeper.context.exchange.client_seen


async def _answer(keeper: Keeper, provider: str) -> LocalResponse:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_TRY_S):
            await keeper.first_try(provider)
    return keeper.exchange_response(time.time(), provider)


def _tokens(store: Store, refreshed: Iterable[AccountKey]) -> TokenStore:
    """Open where the tokens of the accounts *refreshed* are kept. Raises StoreError."""
    if not store.durable:
        logger.warning(
            "account-pool: pool_state is memory:, so refreshed logins are lost when "
            "the proxy stops: %s. Set pool_state to a file, or remove it",
            ", ".join(str(key) for key in refreshed),
        )
    return open_tokens(store)


def _api_url(provider: Provider) -> str:
    """Return where projects are looked up: at the API itself."""
    rule = provider.hosts[0]
    host = f"[{rule.host}]" if ":" in rule.host else rule.host
    return f"https://{host}:{rule.port}"


@functools.lru_cache(maxsize=1)
def _gate_of(_proxy: str | None, _auth: str | None) -> ProxyGate:
    """Return what is known of the upstream proxy, with this password."""
    return ProxyGate()


def own_http(options: Options) -> Http:
    """Return how the proxy itself reaches servers: as mitmproxy does for requests."""
    proxy, auth = _upstream_proxy(options), getattr(options, "upstream_auth", None)
    return Http(
        trust=functools.cache(lambda: _trust(options)),
        trust_for=functools.cache(lambda host: _trust_for(options, host)),
        proxy=proxy,
        # Made as mitmproxy makes it: whatever characters a password has.
        proxy_auth=parse_upstream_auth(auth).decode("ascii") if auth else None,
        gate=_gate_of(proxy, auth),
    )


def _trust(options: Options) -> ssl.SSLContext:
    """Return the trust of mitmproxy upstream; verification is always on."""
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
    path = expanded(options.client_certs)
    if not path.is_file():
        path /= f"{host}.pem"
        # A host name has no slash; one that has must not lead to another folder.
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
