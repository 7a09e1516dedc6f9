"""Every address of the admin API, in one table: the routes and the description are made of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

from pydantic import BaseModel

from account_pool.admin import changing, reading
from account_pool.admin.bodies import (
    AccountName,
    DecisionsQuery,
    ProviderName,
    SessionKey,
    SessionsQuery,
    UsageQuery,
)
from account_pool.admin.desk import Desk
from account_pool.admin.new_account import NewAccount
from account_pool.admin.security import REVEAL_PATH
from account_pool.admin.views import Json


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address and what it does.

    Attributes:
        path: with `{provider}` where the name of one stands.
        name: unique; the operation id of the description.
        answer: called with the desk and what was asked: the query or body as *asked*
            says, the provider in the path, or None.
        returns: name of the schema of a good answer.
        summary: one sentence.
        query, body: the shape of what is asked.
        status: of a good answer.
        refusals: statuses of its own refusals.
    """

    path: str
    name: str
    answer: Callable[[Desk, Any], Awaitable[Json]]
    returns: str
    summary: str
    _: KW_ONLY
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    status: int = 200
    refusals: tuple[int, ...] = ()

    @property
    def method(self) -> str:
        return "POST" if self.body else "GET"


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("/account-pool", "accounts", reading.accounts, "Pool",
        "Every account with its state, the cause and the end of its cooldowns, and a summary."),
    Endpoint("/account-pool/{provider}", "accounts_of_provider", reading.provider, "OneProvider",
        "The accounts of one provider.", refusals=(404,)),
    Endpoint("/account-pool/add", "add", changing.add, "Added",
        "Add an account. It is written to accounts.yaml, or to the store where that is read-only "
        "or absent.", body=NewAccount, status=201, refusals=(409,)),
    Endpoint("/account-pool/remove", "remove", changing.remove, "Removed",
        "Remove an account, also from its file or store. Its running requests finish.",
        body=AccountName, refusals=(404, 409)),
    Endpoint("/account-pool/next", "next", changing.next_account, "Next",
        "Skip the account whose turn it is.", body=ProviderName, refusals=(404,)),
    Endpoint("/account-pool/clear-cooldown", "clear_cooldown", changing.clear_cooldown, "Cleared",
        "End every cooldown of an account, and enable it if it is disabled.",
        body=AccountName, refusals=(404,)),
    Endpoint("/account-pool/enable", "enable", changing.enable, "OneAccount",
        "Enable a disabled account; its cooldowns stay.", body=AccountName, refusals=(404, 409)),
    Endpoint("/account-pool/disable", "disable", changing.disable, "OneAccount",
        "Disable an account until it is enabled again, across restarts too.",
        body=AccountName, refusals=(404,)),
    Endpoint(REVEAL_PATH, "reveal", changing.reveal, "Revealed",
        "Show the credentials of an account, by kind; on this machine, and only while "
        "pool_show_tokens is set.", body=AccountName, refusals=(404,)),
    Endpoint("/decisions", "decisions", reading.decisions, "Decisions",
        "The latest decisions and their causes, newest first.", query=DecisionsQuery),
    Endpoint("/sessions", "sessions", reading.sessions, "Sessions",
        "The conversations bound to an account, most recently used first.", query=SessionsQuery),
    Endpoint("/sessions/close", "close_session", changing.close_session, "Closed",
        "Forget a conversation; its next request goes where the strategy says.",
        body=SessionKey, refusals=(404,)),
    Endpoint("/usage", "usage", reading.usage, "Usage",
        "Requests and tokens by day (UTC), account and model, newest day first.", query=UsageQuery),
    Endpoint("/health", "health", reading.health, "Health",
        "Whether the proxy serves. Cheap, and never needs the token."),
)  # fmt: skip
