"""Requests to the admin API, and a server that answers them, without a proxy."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from account_pool.admin.actions import AccountsFiles, Actions
from account_pool.admin.auth import Rules, TokenGuard
from account_pool.admin.http import AdminRequest, AdminResponse
from account_pool.admin.requests import Known
from account_pool.admin.server import AdminServer
from account_pool.config import accounts_file
from account_pool.config.configuration import Config
from account_pool.config.loader import load
from account_pool.core.account import AccountKey
from account_pool.core.credential import Secret
from account_pool.core.request_rows import RequestRow
from account_pool.providers.registry import BUILT_IN
from account_pool.proxy import admin_exchange
from account_pool.proxy.reload import AddedFile
from account_pool.proxy.service import Service
from account_pool.proxy.wiring import update_pool
from account_pool.store.sqlite import MemoryStore
from account_pool.store.sqlite_history import known_requests
from account_pool.store.store import RequestAnswers, StateStore
from account_pool.workers.worker import Link
from tests.proxy.helpers import FakeClock, service_of

TOKEN = "fake-admin-token-0000000000000000000000000"
PORT = 8080
HOST = f"127.0.0.1:{PORT}"


def admin_request(
    target: str = "/account-pool",
    body: Any = None,
    *,
    method: str | None = None,
    token: str | None = None,
    headers: dict[str, str] | None = None,
    **settings: Any,
) -> AdminRequest:
    """A request of this machine to the proxy's own port; with a body a POST with the token."""
    fields = {"host": HOST, **(headers or {})}
    if body is not None:
        fields.setdefault("content-type", "application/json")
        token = TOKEN if token is None else token
    if token:
        fields.setdefault("authorization", f"Bearer {token}")
    settings.setdefault("peer", "127.0.0.1")
    settings.setdefault("address", ("127.0.0.1", PORT))
    made = AdminRequest(
        method=method or ("GET" if body is None else "POST"),
        target=target,
        headers=tuple((n.encode(), v.encode("latin-1")) for n, v in fields.items() if v),
        **settings,
    )
    if body is not None:
        made.take(body if isinstance(body, bytes) else json.dumps(body).encode())
    return made


def told(response: AdminResponse) -> Any:
    """The JSON of an answer."""
    return json.loads(response.body)


def code(response: AdminResponse) -> str:
    return str(told(response)["error"]["code"])


class FakeKnown:
    """What a proxy knows itself: these rows, and these sums of usage."""

    def __init__(
        self, rows: Sequence[RequestRow], sums: Mapping[tuple[str, ...], Mapping[str, float]]
    ) -> None:
        self._rows, self._sums = rows, sums

    def counts(self, name: str) -> Mapping[tuple[str, ...], Mapping[str, float]]:
        return self._sums if name == "usage" else {}

    async def ask(self, question: Callable[[RequestAnswers], Any]) -> Any:
        return question(known_requests(self._rows))


class FakeProxy:
    """As much of the addon as the pages need: a pool, and files that it reads again."""

    def __init__(
        self, folder: Path, *labels: str, in_memory: bool = False, link: Link | None = None
    ) -> None:
        self.clock = FakeClock()
        self.service: Service = service_of(*labels, clock=self.clock)
        self.main = folder / "accounts.yaml"
        self.environ: dict[str, str] = {}
        self.added = AddedFile(None if in_memory else folder / "state.sqlite")
        self.sums: dict[tuple[str, ...], dict[str, float]] = {}
        #: what it knows itself
        self.known: Known | None = None
        self.resets: dict[tuple[str, ...], dict[str, float]] = {}
        self.store_problem: Callable[[], Awaitable[object]] | None = None
        self.rules = Rules()
        self.store: StateStore | None = MemoryStore().state()
        self.server: AdminServer = admin_exchange.open_admin_server(
            self.service,
            TokenGuard(Secret(TOKEN)),
            make_actions=self.actions,
            counted=self._counted,
            ask_store=self._ask_store,
            known=lambda: self.known,
            ready=lambda: True,
            accounts_file=lambda: self.main if self.main.exists() else None,
            rules=lambda: self.rules,
            link=link,
        )

    @property
    def guard(self) -> TokenGuard:
        return self.server.guard

    async def ask(self, *args: Any, **kwargs: Any) -> AdminResponse:
        return await self.server.answer(admin_request(*args, **kwargs))

    def actions(self) -> Actions:
        def files() -> AccountsFiles:
            return AccountsFiles(self.main, self.added.path, self.added.name, self.environ)

        def forget(key: AccountKey) -> None:
            self.service.pool.accounts.remove(key, now=self.clock.now())

        return Actions(self.service, files, lambda: BUILT_IN, self._read_again, forget)

    async def _read_again(self) -> None:
        main = load(self.main, self.environ) if self.main.exists() else None
        kept = main or Config((), BUILT_IN, {}, {}, None, BUILT_IN)
        if self.added.known is not None:
            kept = accounts_file.with_added(kept, self.added.known, self.environ)
        update_pool(self.service, kept.accounts)

    async def _ask_store(self, question: Callable[[StateStore], Any]) -> Any:
        return None if self.store is None else question(self.store)

    async def _counted(self, name: str) -> dict[tuple[str, ...], dict[str, float]]:
        if self.store_problem is not None:
            await self.store_problem()
        return self.sums if name == "usage" else self.resets


def write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
