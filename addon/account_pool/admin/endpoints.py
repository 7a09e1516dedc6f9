"""Every address of the admin API, in one table: the routes and the description are made of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address and what it does.

    Attributes:
        path: with `{provider}` where the name of one stands.
        name: unique; the operation id of the description.
        summary: one sentence.
        answer: called with the desk and what was asked: the query or body as *asked*
            says, the provider in the path, or None.
        returns: name of the schema of a good answer.
        query, body: the shape of what is asked.
        status: of a good answer.
        refusals: statuses of its own refusals.
    """

    path: str
    name: str
    summary: str
    answer: Callable[[Desk, Any], Awaitable[Json]]
    returns: str
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    status: int = 200
    refusals: tuple[int, ...] = ()

    @property
    def method(self) -> str:
        return "POST" if self.body else "GET"


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        path="/account-pool",
        name="accounts",
        summary=(
            "Every account with its state, the cause and the end of its cooldowns, and a summary."
        ),
        answer=reading.accounts,
        returns="Pool",
    ),
    Endpoint(
        path="/account-pool/{provider}",
        name="accounts_of_provider",
        summary="The accounts of one provider.",
        answer=reading.provider,
        returns="OneProvider",
        refusals=(404,),
    ),
    Endpoint(
        path="/account-pool/add",
        name="add",
        summary="Add an account. It is written to accounts.yaml, or to the store where that "
        "is read-only or absent.",
        answer=changing.add,
        returns="Added",
        body=NewAccount,
        status=201,
        refusals=(409,),
    ),
    Endpoint(
        path="/account-pool/remove",
        name="remove",
        summary="Remove an account, also from its file or store. Its running requests finish.",
        answer=changing.remove,
        returns="Removed",
        body=AccountName,
        refusals=(404, 409),
    ),
    Endpoint(
        path="/account-pool/next",
        name="next",
        summary="Skip the account whose turn it is.",
        answer=changing.next_account,
        returns="Next",
        body=ProviderName,
        refusals=(404,),
    ),
    Endpoint(
        path="/account-pool/clear-cooldown",
        name="clear_cooldown",
        summary="End every cooldown of an account, and enable it if it is disabled.",
        answer=changing.clear_cooldown,
        returns="Cleared",
        body=AccountName,
        refusals=(404,),
    ),
    Endpoint(
        path="/account-pool/enable",
        name="enable",
        summary="Enable a disabled account; its cooldowns stay.",
        answer=changing.enable,
        returns="OneAccount",
        body=AccountName,
        refusals=(404, 409),
    ),
    Endpoint(
        path="/account-pool/disable",
        name="disable",
        summary="Disable an account until it is enabled again, across restarts too.",
        answer=changing.disable,
        returns="OneAccount",
        body=AccountName,
        refusals=(404,),
    ),
    Endpoint(
        path=REVEAL_PATH,
        name="reveal",
        summary="Show the credentials of an account, by kind; on this machine, and only while "
        "pool_show_tokens is set.",
        answer=changing.reveal,
        returns="Revealed",
        body=AccountName,
        refusals=(404,),
    ),
    Endpoint(
        path="/decisions",
        name="decisions",
        summary="The latest decisions and their causes, newest first.",
        answer=reading.decisions,
        returns="Decisions",
        query=DecisionsQuery,
    ),
    Endpoint(
        path="/sessions",
        name="sessions",
        summary="The conversations bound to an account, most recently used first.",
        answer=reading.sessions,
        returns="Sessions",
        query=SessionsQuery,
    ),
    Endpoint(
        path="/sessions/close",
        name="close_session",
        summary="Forget a conversation; its next request goes where the strategy says.",
        answer=changing.close_session,
        returns="Closed",
        body=SessionKey,
        refusals=(404,),
    ),
    Endpoint(
        path="/usage",
        name="usage",
        summary="Requests and tokens by day (UTC), account and model, newest day first.",
        answer=reading.usage,
        returns="Usage",
        query=UsageQuery,
    ),
    Endpoint(
        path="/health",
        name="health",
        summary="Whether the proxy serves. Cheap, and never needs the token.",
        answer=reading.health,
        returns="Health",
    ),
)
