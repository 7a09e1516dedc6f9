"""The addon: what mitmproxy calls, from the start of the proxy to its end.

Hooks stand in the order they fire. `load`, `configure`, `running` and `done` are plain
functions: on a live reload mitmproxy calls them synchronously.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable
from math import inf

from mitmproxy import ctx, exceptions, http
from mitmproxy.addonmanager import Loader
from mitmproxy.connection import Client, Server
from mitmproxy.log import ALERT
from mitmproxy.proxy import layer
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from account_pool.admin.auth import TOKEN_FILE
from account_pool.config import accounts_file
from account_pool.config.problems import ConfigError
from account_pool.core.pool import Pool
from account_pool.filesystem import expanded
from account_pool.proxy import (
    admin_exchange,
    client_handler,
    draining,
    flow_view,
    listen,
    next_layer,
    options,
    process,
    reload,
    replay,
    stream,  # noqa: F401 - so that the first request needs no file to be opened
    tunnels,
)
from account_pool.proxy.commands import Commands
from account_pool.proxy.events import Pause
from account_pool.proxy.options import Settings
from account_pool.proxy.pooled_request import End
from account_pool.proxy.reload import Reloader
from account_pool.proxy.service import Service
from account_pool.proxy.siblings import Siblings
from account_pool.proxy.wiring import Wiring
from account_pool.store.store import StoreError
from account_pool.supervision import log_and_continue, tasks, where

logger = logging.getLogger(__name__)

#: How long a thread that computes may keep the event loop waiting, seconds: Python lets it go on
#: for 5 ms each time, and a request passes the loop several times.
SWITCH_S = 0.0005

#: How often suspends and long waits are looked for, and idle conversations, seconds.
LOOK_S, SWEEP_S = 5.0, 60.0

_NOTHING = (
    "account-pool: no accounts, traffic passes untouched. Add one to accounts.yaml with "
    "`{command} add PROVIDER LABEL` or `{command} login`, or set OPENAI_API_KEY, "
    "ANTHROPIC_API_KEY, GEMINI_API_KEY or GITHUB_TOKEN"
)


async def housekeeping(service: Service) -> None:
    """Notice suspends and long waits, and forget idle conversations, until cancelled."""
    sweep_at = service.now() + SWEEP_S
    while True:
        await asyncio.sleep(LOOK_S)
        service.suspends.look()
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
    """Return the addon for mitmproxy: a new one, or the one that a reload of pool.py dropped."""
    return reload.carried_over(AccountPool) or AccountPool()


#: Accounts that the line about the start names.
_MAX_NAMED = 20


class AccountPool:
    """Pools accounts inside mitmproxy."""

    name = "account_pool"

    def __init__(self) -> None:
        self.service = Service(Pool(), Settings(), {})
        self.service.show = flow_view.load
        self.service.is_looked_at = flow_view.is_looked_at
        self.service.connected = client_handler.keep_unread
        self.service.unsent = client_handler.is_unsent
        self.service.suspends.attend = client_handler.attend
        self.wiring = Wiring(self.service)
        self.reloader = Reloader(self.wiring)
        self.commands = Commands(self.service, self.reloader)
        self._configured = self._failed = self._ready = False
        #: mitmproxy listens only once it has the address we want
        self._held_back = False
        self._starting: asyncio.Task[object] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[object] | None = None
        self._housekeeping: asyncio.Task[None] | None = None
        self._sharing: asyncio.Task[None] | None = None
        self._undo_sighup: process.Undo = lambda _ends: None
        self._drain: draining.Drain | None = None
        self._shortage = process.Shortage()
        self._terminal = process.Terminal()
        self._replays = replay.Replays(self.service)
        self._view: flow_view.ViewRetention | None = None
        self._siblings = Siblings(self.service)
        self.wiring.workers = self._siblings.count
        self.wiring.late.is_first = self._siblings.is_first

    def load(self, loader: Loader) -> None:
        # Again when pool.py is reloaded: no option is deferred then.
        process.raise_limit()
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))
        try:
            self.wiring.at_start |= options.add(loader)
        except exceptions.OptionsError as e:
            self._refuse(e)
        self._held_back |= listen.default_to_loopback()
        loader.master.commands.collect_commands(self.commands)

    def configure(self, updated: set[str]) -> None:
        if self._failed:
            return
        self.service.unseen_until = -inf  # an option may have somebody look at flows
        if self._configured:
            self.wiring.concealed.take(ctx.options)
        if not self._configured:
            self._configured = True
            try:
                self._start()
            except Exception as e:
                self._cannot_start(e)
        elif updated & options.WATCHED:
            self.wiring.apply()
            self._siblings.settings_changed()
        if self._ready and updated & options.CONFLICTING:
            self._log_conflicts()

    def _start(self) -> None:
        """Read the accounts for the first time."""
        try:
            self.wiring.concealed.take(ctx.options)
            loaded = self.reloader.read(reload.START_S)
            self._siblings.check(
                ctx.options, state=str(self.wiring.values(loaded.options)["state"])
            )
            self.wiring.start(loaded)
        except (ConfigError, exceptions.OptionsError, StoreError) as e:
            self._refuse(e)

    def _refuse(self, error: Exception) -> None:
        """Say what is wrong. An ERROR during startup makes mitmproxy exit before it serves."""
        self._failed = True
        listen.nowhere()
        for line in str(error).splitlines():
            logger.error(f"account-pool: {line}")

    def running(self) -> Awaitable[None] | None:
        if self._failed:
            return None
        try:
            return self._begin()
        except Exception as e:
            self._cannot_start(e)
            return None

    def _cannot_start(self, error: Exception) -> None:
        """Log it without its text, which may quote anything, and which mitmproxy would print."""
        self._failed = True
        listen.nowhere()
        logger.error(f"account-pool: it cannot start: {where(error)}")

    def _begin(self) -> Awaitable[None] | None:
        self.service.later = asyncio.get_running_loop().call_soon
        if self._watching is not None:
            self._reload()  # pool.py was reloaded: all else goes on
            return None
        self._shortage.install()
        self.wiring.run()
        admin_exchange.open_admin_server(
            self.service,
            admin_exchange.guard_of(expanded(ctx.options.confdir) / TOKEN_FILE),
            make_actions=self.reloader.actions,
            counted=self.wiring.read_counts,
            ask_store=self.wiring.ask_store,
            known=lambda: kept.known if (kept := self.wiring.persistence) else None,
            ready=lambda: self._ready,
            accounts_file=lambda: self.reloader.file.path,
            rules=self.wiring.rules,
            link=self._siblings.link,
        )
        self._starting = tasks.once("start", self._announce)
        self._watching = self.reloader.watch()
        self._drain = draining.Drain(
            ctx.master,
            self.service,
            refreshing=self.wiring.is_refreshing,
            write=self.wiring.write,
        )
        self._drain.install()
        self._siblings.begin(self._drain, self.wiring)
        self._undo_sighup = process.on_sighup(
            self._hung_up, self._terminal_closed, self._terminal.write_nowhere
        )
        self._terminal.watch(getattr(ctx.master, "ui", None), self._terminal_closed)
        if (view := ctx.master.addons.get("view")) is not None:  # mitmdump has none
            self._view = flow_view.ViewRetention(self.service, view)
            ctx.master.addons.add(self._view)
            # Its commands are answered at once, from memory.
            self._sharing = tasks.supervised(
                "reading decisions", lambda: self.service.decided.keep_read(self.wiring.ask_store)
            )
        self._housekeeping = tasks.supervised(
            "forgetting conversations", lambda: housekeeping(self.service)
        )
        # mitmproxy waits: it ends where a server cannot listen. At a reload it cannot wait.
        return self._starting if self._held_back else None

    def _hung_up(self) -> None:
        if not self.service.stopping:
            self._reload()

    def _reload(self) -> None:
        work = self.reloader.reload_in_background
        self._reading = tasks.once("reading the accounts again", work)

    def _terminal_closed(self) -> None:
        self._terminal.let_go()
        if self._drain is not None:
            self._drain.begin()

    async def _announce(self) -> None:
        """Log that the pool is ready, once the proxy listens where it should."""
        if not await listen.bind(held_back=self._held_back):
            return
        self._ready = True
        self.service.fleet.port = listen.port()
        self._siblings.ready()
        states = list(self.service.pool.accounts)
        if not states:
            logger.log(ALERT, _NOTHING.format(command=accounts_file.command()))
            return
        names = ", ".join(str(state.key) for state in states[:_MAX_NAMED])
        if (more := len(states) - _MAX_NAMED) > 0:
            names += f" and {more:,} more"
        who = accounts_file.counted(len(states), self.reloader.file.path)
        if (fleet := self.service.fleet).pool:
            who += f", on the state {fleet.kind} {fleet.server}, pool {fleet.pool}"
        logger.log(ALERT, f"account-pool: ready with {who}: {names}")
        self._log_conflicts()

    def _log_conflicts(self) -> None:
        """Log which options of mitmproxy requests of the pool do not follow."""
        used = {state.key.provider for state in self.service.pool.accounts}
        # Only of those: the others are not made yet.
        known = self.service.providers
        hosts = [rule for name in used if name in known for rule in known[name].hosts]
        for note in options.conflicts(ctx.options, hosts):
            logger.warning(f"account-pool: {note}")

    def client_connected(self, client: Client) -> None:
        self.service.suspends.look()  # before the client has connections, which are not stale
        handler = client_handler.handler_of(client)
        fast = self.wiring.fast
        if fast is None or not fast.take(handler):
            client_handler.keep_events(handler)
        client_handler.lift_connection_bound(handler)
        tunnels.go_on_without_connection(
            getattr(handler, "layer", None), self.service.recognizer.claims
        )
        client_handler.watch_opening(handler)

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        next_layer.choose(nextlayer, ctx.master.addons.get("nextlayer"), self.service)
        if nextlayer.layer is None:
            # mitmproxy's own would be asked next, and takes what is not said yet for no.
            raise exceptions.AddonHalt

    def request(self, flow: http.HTTPFlow) -> None:
        # A live request is served in the layer; only mitmweb's Replay, which builds a
        # plain one, has to be caught, once every other addon has seen it. What is looked at
        # here decides whether this is called at all (`fast.handler`).
        if flow.is_replay:
            if self._replays not in ctx.master.addons:
                ctx.master.addons.add(self._replays)  # the last one: its turn comes
            self._replays.begin(flow)
        played = ctx.master.addons.get("serverplayback")
        if getattr(played, "flowmap", None):
            replay.prepare_playback(played, self.service)

    async def pool_pause(self, pause: Pause) -> None:
        pause.taken = True
        try:
            await self.service.carry_out(pause)
        except Exception as e:
            # mitmproxy would print it with its text, which may quote anything; the
            # stream fails closed instead.
            pause.failed = e

    def server_connect(self, data: ServerConnectionHookData) -> None:
        admin_exchange.refuse_connection(data)

    def server_connected(self, data: ServerConnectionHookData) -> None:
        if (ends := _ends(data.server)) is not None:
            self.service.recognizer.own_ends.add(ends)

    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        if (ends := _ends(data.server)) is not None:
            self.service.recognizer.own_ends.discard(ends)

    def client_disconnected(self, client: Client) -> None:
        self.service.client_gone(client)
        self._siblings.connection_closed()

    def done(self) -> None:
        reload.end_unless_reloaded(self, self._end)

    def _end(self) -> None:
        running = self._starting, self._watching, self._housekeeping, self._reading, self._sharing
        for task in running:
            if task is not None:
                task.cancel()
        self._undo_sighup(ctx.master.should_exit.is_set())
        self._shortage.uninstall()
        for ours in (self._replays, self._view):
            if ours is not None and ours in ctx.master.addons:
                ctx.master.addons.remove(ours)
        over_at = self.service.now()
        if self._drain is not None:
            self._drain.uninstall()
            over_at = self._drain.over_at
        self.wiring.stop(over_at)
        self.reloader.close()
