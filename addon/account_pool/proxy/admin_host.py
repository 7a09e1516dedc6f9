"""The admin server inside the running proxy: what it needs of it, and when it is made."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mitmproxy.log import ALERT

from account_pool.admin.auth import NoToken, Rules, TokenGuard, admin_token, new_token
from account_pool.admin.http import AdminRequest
from account_pool.admin.server import AdminServer
from account_pool.admin.views import Sums
from account_pool.core.credential import Secret
from account_pool.core.instruments import DecisionCounter
from account_pool.proxy.service import Service
from account_pool.workers.worker import Link

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from account_pool.admin.actions import Actions

logger = logging.getLogger(__name__)


def open_admin_server(
    service: Service,
    token: Secret,
    *,
    make_actions: Callable[[], Actions],
    counted: Callable[[str], Awaitable[Sums]],
    ready: Callable[[], bool],
    accounts_file: Callable[[], Path | None],
    rules: Callable[[], Rules],
    link: Link | None = None,
) -> AdminServer:
    """Let *service* answer requests to the proxy itself.

    The web application is made, and what it needs imported, at the first request.

    Args:
        token: what changes need.
        make_actions: returns what changes the pool.
        counted, ready, accounts_file: see `AdminContext`.
        rules: returns who may do what, at the moment.
        link: the launcher, where this is one of several workers.
    """
    decision_counter, started_at, instance = DecisionCounter(), service.now(), secrets.token_hex(8)
    guard = TokenGuard(token)
    service.pool.decisions.subscribe(decision_counter.note)

    def make_app(admit: Callable[[AdminRequest], None]) -> Starlette:
        from account_pool.admin.app import make_app  # noqa: PLC0415 - see admin/server.py
        from account_pool.admin.routes import AdminContext  # noqa: PLC0415

        context = AdminContext(
            service=service,
            actions=make_actions(),
            decision_counter=decision_counter,
            counted=counted,
            instance=instance,
            started_at=started_at,
            ready=ready,
            accounts_file=accounts_file,
            guard=guard,
            link=link,
        )
        return make_app(context, admit)

    server = AdminServer(guard=guard, rules=rules, now=service.now, make_app=make_app)
    service.visited = server.answer
    if link is not None:
        link.say = server.answer_worker
    return server


def token_of(path: Path) -> Secret:
    """Return the admin token in *path*; where it cannot be kept, a random one."""
    try:
        return admin_token(path)
    except NoToken as e:
        logger.log(ALERT, f"account-pool: {e}. Until this is fixed, the REST API is read-only")
        return new_token()
