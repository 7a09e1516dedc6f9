"""The addon: what mitmproxy calls. Wires configuration, credentials, pool and layer.

Hooks stand in the order they fire. `load`, `configure`, `running` and `done` are plain
functions: on a live reload mitmproxy calls them synchronously.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Mapping
from pathlib import Path

from mitmproxy import ctx, exceptions, http
from mitmproxy.addonmanager import Loader
from mitmproxy.connection import Client, Server
from mitmproxy.log import ALERT
from mitmproxy.proxy import layer
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from account_pool import config
from account_pool.config import accounts_file
from account_pool.config.options import OptionValue
from account_pool.config.options import settings as merged
from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential, identity
from account_pool.core.errors import UnknownAccount
from account_pool.core.pool import Pool
from account_pool.credentials.copilot import CopilotExchange
from account_pool.credentials.keeper import Keeper
from account_pool.credentials.notices import Notices
from account_pool.credentials.sources import AccountEntry
from account_pool.proxy import (
    admin_exchange,
    client_handler,
    descriptors,
    draining,
    flow_view,
    listen,
    next_layer,
    options,
    persistence,
    reload,
    replay,
    stream,  # noqa: F401 - so that the first request needs no file to be opened
    terminal,
    tunnels,
    waking,
    wiring,
)
from account_pool.proxy.admin_pages import AdminPages
from account_pool.proxy.commands import RELOAD_ERRORS
from account_pool.proxy.events import Pause
from account_pool.proxy.fast.steps import Steps
from account_pool.proxy.flow_view import REFUSED
from account_pool.proxy.reload import Changes, Watcher, update_pool
from account_pool.proxy.service import End, Service, Settings
from account_pool.proxy.view_retention import ViewRetention
from account_pool.store.sqlite import MemoryStore
from account_pool.store.store import Store, StoreError
from account_pool.supervision import log_and_continue, tasks, where

logger = logging.getLogger(__name__)

#: How often suspends and long waits are looked for, and idle conversations, seconds.
LOOK_S, SWEEP_S = 5.0, 60.0

_NOTHING = (
    "account-pool: no accounts, traffic passes untouched. Add one to accounts.yaml with "
    "`{command} add PROVIDER LABEL` or `{command} login`, or set OPENAI_API_KEY, "
    "ANTHROPIC_API_KEY, GEMINI_API_KEY or GITHUB_TOKEN"
)
_ANOTHER = (
    "its credential is of another account now; cooldowns, headroom and pins of the former are "
    "dropped"
)
_NOT_TAKEN = "has errors; the accounts stay as they were"


async def housekeeping(service: Service) -> None:
    """Notice suspends and long waits, and forget idle conversations, until cancelled."""
    sweep_at = service.now() + SWEEP_S
    while True:
        await asyncio.sleep(LOOK_S)
        service.mind_suspend()
        with log_and_continue:
            service.look()
        if service.now() >= sweep_at:
            sweep_at = service.now() + SWEEP_S
            forget_idle(service)


def forget_idle(service: Service) -> None:
    """Forget conversations that were idle for long; an error with one stops no other."""
    for failure in service.sessions.sweep(service.now()).failures:
        logger.error(f"account-pool: forgetting a conversation: {type(failure).__name__}")


def _ends(server: Server) -> tuple[End, End] | None:
    """Return where a connection to *server* comes from and goes to, once it is open."""
    if server.sockname is None or server.peername is None:
        return None
    return server.sockname[:2], server.peername[:2]


def addon() -> AccountPool:
    """Return the addon for mitmproxy: a new one, or that which a reload of pool.py dropped."""
    left = reload.carried_over(AccountPool)
    return AccountPool() if left is None else left


class AccountPool(AdminPages):
    """Pools accounts inside mitmproxy.

    The commands are inherited and not an addon of their own: mitmproxy walks over every
    addon eight times per request.
    """

    name = "account_pool"

    def __init__(self) -> None:
        super().__init__()
        self.service = Service(Pool(), Settings(), {})
        self.service.show = flow_view.Loader()
        self.service.warnings = self._warnings
        self.service.state_problem = lambda: self.persistence.problem if self.persistence else None
        self.service.connected = client_handler.keep_unread
        self.service.unsent = client_handler.is_unsent
        self.service.attend = waking.attend
        self.keeper: Keeper | None = None
        self.persistence: persistence.Persistence | None = None
        self._store: Store = MemoryStore()
        self._copilot: CopilotExchange | None = None
        self._entries: Mapping[AccountKey, AccountEntry] = {}
        self._notices = Notices()
        self._file_warnings: tuple[str, ...] = ()
        self._watching: asyncio.Task[None] | None = None
        self._housekeeping: asyncio.Task[None] | None = None
        self._in_file: Mapping[str, OptionValue] = {}
        self._at_start: frozenset[str] = frozenset()
        self._configured = False
        self._failed = False
        self._starting: asyncio.Task[object] | None = None
        self._held_back = False
        self._reading: asyncio.Task[object] | None = None
        self._unlisten: terminal.Undo = lambda _ends: None
        self._drain: draining.Drain | None = None
        self._shortage = descriptors.Shortage()
        self._terminal = terminal.Terminal()
        self._replays = replay.Replays(self.service)
        self._fast: Steps | None = None
        self._view = ViewRetention(self.service)

    def load(self, loader: Loader) -> None:
        # Again when pool.py is reloaded: nothing is waiting to be known then.
        descriptors.raise_limit()
        self._at_start |= options.add(loader)
        self._held_back |= listen.default_to_loopback()

    def configure(self, updated: set[str]) -> None:
        if not self._configured:
            self._configured = True
            try:
                self._start()
            except Exception as e:
                self._cannot_start(e)
        elif any(name.startswith("pool_") for name in updated) or updated & (
            options.WATCHED | {"proxy_debug"}
        ):
            self._apply(self._values(self._in_file))
        if self._ready and updated & options.CONFLICTING:
            self._tell_of_options()

    def running(self) -> Awaitable[None] | None:
        if self._failed:
            return None
        try:
            return self._begin()
        except Exception as e:
            self._cannot_start(e)
            return None

    def _cannot_start(self, error: Exception) -> None:
        """Say so as we do: mitmproxy would print its text, which may quote anything."""
        self._failed = True
        logger.error(f"account-pool: it cannot start: {where(error)}")

    def _begin(self) -> Awaitable[None] | None:
        self.service.later = asyncio.get_running_loop().call_soon
        if self._watching is not None:
            self._read_again()  # pool.py was reloaded: all else goes on
            return None
        self._shortage.install()
        if self.keeper is not None:
            self.keeper.start()
        if self.persistence is not None:
            self.persistence.start()
        self._open_pages()
        ctx.master.addons.add(self._replays)
        self._starting = tasks.once("start", self._announce)
        self._watcher = Watcher(self._file.stamps, self._file_written, self._file.read)
        self._watching = tasks.supervised("watching the accounts file", self._watcher.run)
        self._drain = draining.Drain(
            ctx.master, self.service, refreshing=self._is_refreshing, write=self._write
        )
        self._drain.install()
        self._unlisten = terminal.on_sighup(
            self._hung_up, self._terminal_closed, self._terminal.write_nowhere
        )
        self._terminal.watch(getattr(ctx.master, "ui", None), self._terminal_closed)
        self._housekeeping = tasks.supervised(
            "forgetting conversations", lambda: housekeeping(self.service)
        )
        # mitmproxy waits: it ends where a server cannot listen. At a reload it cannot wait.
        return self._starting if self._held_back else None

    def _hung_up(self) -> None:
        if not self.service.stopping:
            self._read_again()

    def _terminal_closed(self) -> None:
        self._terminal.let_go()
        if self._drain is not None:
            self._drain.begin()

    def _is_refreshing(self) -> bool:
        return self.keeper is not None and self.keeper.is_refreshing

    async def _write(self) -> None:
        """Have what the pool has learnt written."""
        if self.persistence is not None:
            await self.persistence.write()

    async def _announce(self) -> None:
        """Say that the pool is ready, once the proxy listens where it should."""
        if not await listen.bind(held_back=self._held_back):
            return
        self._ready = True
        states = list(self.service.pool.accounts)
        if not states:
            logger.log(ALERT, _NOTHING.format(command=accounts_file.command()))
            return
        names = ", ".join(str(state.key) for state in states)
        who = accounts_file.counted(len(states), self._file.path)
        logger.log(ALERT, f"account-pool: ready with {who}: {names}")
        self._tell_of_options()

    def _tell_of_options(self) -> None:
        """Say which options of mitmproxy requests of the pool do not follow."""
        used = {state.key.provider for state in self.service.pool.accounts}
        # Those of other providers are not even made.
        known = self.service.providers
        hosts = [rule for name in used if name in known for rule in known[name].hosts]
        for note in options.conflicts(ctx.options, hosts):
            logger.warning(f"account-pool: {note}")

    def client_connected(self, client: Client) -> None:
        self.service.mind_suspend()  # before it has connections, which will be fresh
        handler = client_handler.handler_of(client)
        if self._fast is None or not self._fast.take(handler):
            client_handler.keep_events(handler)
        client_handler.lift_connection_bound(handler)
        tunnels.answer_all_the_same(getattr(handler, "layer", None), self.service.claims)
        client_handler.watch_opening(handler)

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        next_layer.choose(nextlayer, ctx.master.addons.get("nextlayer"), self.service)

    def request(self, flow: http.HTTPFlow) -> None:
        # A live request is served in the layer; only mitmweb's Replay, which builds a
        # plain one, has to be caught, once every other addon has seen it.
        if flow.is_replay:
            self._replays.begin(flow)
        played = ctx.master.addons.get("serverplayback")
        if getattr(played, "flowmap", None):
            replay.prepare_playback(played, self.service)

    def response(self, flow: http.HTTPFlow) -> None:
        view = ctx.master.addons.get("view")  # none where nobody looks
        # Not of a file that somebody opened.
        if view is not None and (flow.live or REFUSED in flow.metadata):
            self._view.ended(flow, view)

    def error(self, flow: http.HTTPFlow) -> None:
        self.response(flow)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        self.response(flow)

    async def pool_pause(self, pause: Pause) -> None:
        pause.taken = True
        try:
            await self.service.carry_out(pause)
        except Exception as e:
            # mitmproxy would print it with its text, which may quote anything; the
            # stream fails closed instead.
            pause.failed = e

    def server_connect(self, data: ServerConnectionHookData) -> None:
        admin_exchange.keep_here(data)

    def server_connected(self, data: ServerConnectionHookData) -> None:
        if (ends := _ends(data.server)) is not None:
            self.service.own_ends.add(ends)

    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        if (ends := _ends(data.server)) is not None:
            self.service.own_ends.discard(ends)

    def client_disconnected(self, client: Client) -> None:
        self.service.client_gone(client)

    def done(self) -> None:
        reload.end_unless_reloaded(self, self._end)

    def _end(self) -> None:
        for task in (self._starting, self._watching, self._housekeeping, self._reading):
            if task is not None:
                task.cancel()
        self._unlisten(ctx.master.should_exit.is_set())
        self._shortage.uninstall()
        if self._replays in ctx.master.addons:
            ctx.master.addons.remove(self._replays)
        if self._fast is not None:
            self._fast.use(())
        over_at = self.service.now()
        if self._drain is not None:
            self._drain.uninstall()
            over_at = self._drain.over_at
        if self.keeper is not None:
            self.keeper.stop(over_at + draining.ANSWER_S)
        if self.persistence is not None:
            self.persistence.stop(over_at + draining.WRITE_S)
        self._close_pages()

    # -- configuration

    def _start(self) -> None:
        """Read the accounts for the first time. Errors end the start of mitmproxy."""
        try:
            loaded = self._load()
            values = self._values(loaded.options)
        except (config.ConfigError, exceptions.OptionsError) as e:
            # An ERROR during startup makes mitmproxy exit before it serves anybody.
            self._failed = True
            for line in str(e).splitlines():
                logger.error(f"account-pool: {line}")
            return
        self._in_file = loaded.options
        self._described = loaded.described
        self._know(loaded)
        pool = Pool(
            strategy=str(values["strategy"]),
            default_cooldown_s=float(values["cooldown"]),
            chance=self.service.chance,
        )
        self.service.set_pool(pool)
        now = self.service.now()
        for entry in loaded.accounts:
            pending, source = entry.account.enabled, entry.fingerprint()
            pool.accounts.add(entry.account, now=now, pending=pending, source=source)
        self.service.set_providers(loaded.providers)
        self.service.settings = options.settings(values, ctx.options)
        # Now: mitmproxy accepts clients before it is running.
        self._fast = Steps(ctx.master.addons)
        self._fast.use(self.service.settings.fast)
        self._store = wiring.make_store(str(values["state"]), ctx.options)
        try:
            self.keeper, self._copilot = wiring.make_keeper(
                loaded,
                self._publish,
                store=self._store,
                editor_version=str(values["editor_version"]),
                options=ctx.options,
            )
        except StoreError as e:
            self._failed = True
            logger.error(f"account-pool: {e}")
            return
        wiring.serve(self.service, self.keeper, self._copilot, loaded)
        self.service.refresh = self.keeper.refresh
        pool.seek = self.keeper.seek
        self._keep()

    def _keep(self) -> None:
        """Be as before the last restart, once there are accounts, and keep how they are."""
        if self.persistence is None and self.service.pool.accounts.providers():
            self.persistence = persistence.begin(self._store, self.service)

    def _load(self) -> config.Config:
        loaded = self._load_main()
        state = str(self._values(loaded.options)["state"])
        return self._with_added(loaded, wiring.database_path(state, ctx.options))

    def _load_main(self) -> config.Config:
        loaded = self._file.load()
        if loaded is not None:
            return loaded
        return config.from_environment(
            os.environ,
            github_token=ctx.options.pool_github_token or None,
            account_type=ctx.options.pool_account_type,
            directories=(Path.cwd(), Path(ctx.options.confdir).expanduser()),
        )

    def _read_again(self) -> None:
        self._reading = tasks.once("reading the accounts again", self._file_written)

    async def _file_written(self) -> None:
        """Take over the accounts anew, or say why they stay as they were."""
        self._left_out.clear()
        number = self._begin_reading()
        try:
            # Read in a thread: files, and much to check.
            loaded = await asyncio.to_thread(self._load)
            if not self._is_newest(number):
                return
            changes = self._take_over(self._without_left_out(loaded))
        except RELOAD_ERRORS as e:
            if not self._is_newest(number):
                return
            for line in str(e).splitlines():
                logger.warning(f"account-pool: {line}")
            logger.log(ALERT, f"account-pool: {self._file} {_NOT_TAKEN}")
        else:
            logger.log(ALERT, f"account-pool: {self._file} reloaded: {changes}")

    def _reload(self) -> Changes:
        self._left_out.clear()
        number = self._begin_reading()
        loaded = self._load()
        self._is_newest(number)
        return self._take_over(loaded)

    def _shows_tokens(self) -> bool:
        return bool(self._values(self._in_file)["show_tokens"])

    def _take_over(self, loaded: config.Config) -> Changes:
        """Replace accounts, providers and options by those of *loaded*, or raise."""
        if self.keeper is None or self._copilot is None:
            raise exceptions.OptionsError("the pool has not started")
        values = self._values(loaded.options)
        context = wiring.make_acquire_context(
            loaded, self._copilot, self.keeper.context.refresher, self._store, ctx.options
        )
        self._in_file = loaded.options
        self._described = loaded.described
        self._know(loaded)
        changes = update_pool(self.service, loaded.accounts, self.keeper.renewed(loaded.accounts))
        self.service.set_providers(loaded.providers)
        self._apply(values)
        wiring.serve(self.service, self.keeper, self._copilot, loaded)
        self.keeper.update(loaded.accounts, context, anew=changes.added)
        if self.persistence is None:
            self._keep()
            if self.persistence is not None:
                self.persistence.start()
        return changes

    def _values(self, in_file: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        if getattr(ctx.options, "proxy_debug", False):
            raise exceptions.OptionsError(
                "proxy_debug: prints every byte sent, credentials included; "
                "leave it off while the account pool runs"
            )
        return merged(in_file, options.given(ctx.options, self._at_start))

    def _apply(self, values: Mapping[str, OptionValue]) -> None:
        """Take over options that were changed while the proxy runs."""
        pool = self.service.pool
        pool.health.default_cooldown_s = float(values["cooldown"])
        pool.accounts.set_strategy(str(values["strategy"]), now=self.service.now())
        self.service.settings = options.settings(values, ctx.options)
        if self._fast is not None:
            self._fast.use(self.service.settings.fast)

    def _publish(
        self,
        key: AccountKey,
        credentials: Mapping[str, Credential],
        problem: str | None,
        again_in_s: float | None,
    ) -> None:
        """The keeper has news of an account's credentials."""
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

    def _remove(self, key: AccountKey) -> None:
        super()._remove(key)
        # What is being read at this moment must not bring it back.
        self._left_out.add(key)
        self._notices.forget(key)

    def _know(self, loaded: config.Config) -> None:
        """Note whose credentials there will be, and say what looks wrong with the file, once."""
        self._entries = {entry.account.key: entry for entry in loaded.accounts}
        self._notices.keep(self._entries)
        for warning in loaded.warnings:
            if warning not in self._file_warnings:
                logger.warning(f"account-pool: {warning}")
        self._file_warnings = loaded.warnings

    def _warnings(self) -> list[str]:
        """Return what looks wrong and stops nothing, for people."""
        clock = self.service.wrong_clock
        return [*self._file_warnings, *map(str, self._notices), *([clock] if clock else ())]
