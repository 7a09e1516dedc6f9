"""The admin pages inside the running proxy: what they need of it, and when they are made."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mitmproxy.log import ALERT

from account_pool.admin.auth import NoToken, Rules, TokenGuard, admin_token, new_token
from account_pool.admin.http import AdminRequest
from account_pool.admin.server import AdminServer
from account_pool.admin.views import Sums
from account_pool.config import accounts_file
from account_pool.core.account import AccountKey
from account_pool.core.credential import Secret
from account_pool.core.instruments import DecisionCounter
from account_pool.providers.base import Provider
from account_pool.proxy.service import Service

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from account_pool.admin.actions import Actions

logger = logging.getLogger(__name__)


class AddedFile:
    """Where accounts are written that accounts.yaml cannot hold.

    Beside the state database; without one, in a folder that goes with the proxy.
    """

    def __init__(self, database: Path | None) -> None:
        self._folder: Path | None = None
        self.name = "memory" if database is None else "store"
        #: None as long as there is none and need be none
        self.known = database and accounts_file.beside(database)

    @property
    def path(self) -> Path:
        """The file, there or not; its folder is."""
        if self.known is None:
            self._folder = Path(tempfile.mkdtemp(prefix="account-pool-"))
            self.known = self._folder / "accounts.yaml"
        self.known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.known

    def close(self) -> None:
        """Leave nothing behind that nobody reads again."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


@dataclass(slots=True, eq=False, kw_only=True)
class Hands:
    """What the pages may do with the proxy.

    Attributes:
        main: returns the path of accounts.yaml.
        added: returns where accounts go that it cannot hold.
        known: returns the providers accounts may be of.
        read_again: takes over the accounts as they are written now.
        forget: takes an account out of the running pool.
        counted: returns the sums of a counter, by key: "usage", "resets".
        ready: returns whether the proxy serves.
        source: returns the file that serves; None for the environment.
        rules: returns what the owner allows.
    """

    main: Callable[[], Path]
    added: Callable[[], AddedFile]
    known: Callable[[], Mapping[str, Provider]]
    read_again: Callable[[], Awaitable[object]]
    forget: Callable[[AccountKey], object]
    counted: Callable[[str], Awaitable[Sums]]
    ready: Callable[[], bool]
    source: Callable[[], Path | None]
    rules: Callable[[], Rules]


def open_admin_server(service: Service, hands: Hands, token: Secret) -> AdminServer:
    """Let *service* answer requests to the proxy itself. The pages are made later."""
    decision_counter, started_at, instance = DecisionCounter(), service.now(), secrets.token_hex(8)
    service.pool.decisions.subscribe(decision_counter.note)

    def make_app(admit: Callable[[AdminRequest], None]) -> Starlette:
        from account_pool.admin.app import make_app  # noqa: PLC0415 - see admin/server.py
        from account_pool.admin.routes import AdminContext  # noqa: PLC0415

        context = AdminContext(
            service=service,
            actions=actions_on(service, hands),
            decision_counter=decision_counter,
            counted=hands.counted,
            instance=instance,
            started_at=started_at,
            ready=hands.ready,
            accounts_file=hands.source,
        )
        return make_app(context, admit)

    server = AdminServer(
        guard=TokenGuard(token), rules=hands.rules, now=service.now, make_app=make_app
    )
    service.visited = server.answer
    return server


def actions_on(service: Service, hands: Hands) -> Actions:
    """Return what changes the pool of *service*."""
    from account_pool.admin.actions import AccountsFiles, Actions  # noqa: PLC0415 - see admin/server.py

    def files() -> AccountsFiles:
        added = hands.added()
        return AccountsFiles(hands.main(), added.path, added.name, os.environ)

    return Actions(service, files, hands.known, hands.read_again, hands.forget)


def token_of(path: Path) -> Secret:
    """Return the admin token in *path*; where there can be none, one that nobody knows."""
    try:
        return admin_token(path)
    except NoToken as e:
        logger.log(ALERT, f"account-pool: {e}. Until this is fixed, the REST API is read-only")
        return new_token()
