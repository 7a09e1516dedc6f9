"""What can be changed: one function an address. Each change is a line in the log."""

from __future__ import annotations

import logging

from account_pool.admin import views
from account_pool.admin.bodies import AccountName, ProviderName, SessionKey
from account_pool.admin.desk import Desk
from account_pool.admin.new_account import NewAccount
from account_pool.admin.views import Json

logger = logging.getLogger(__name__)


async def add(desk: Desk, asked: NewAccount) -> Json:
    state, where = await desk.actions.add(asked.entry())
    _note(f"added {state.key} ({where})")
    return {"account": await desk.account(state), "written_to": where}


async def remove(desk: Desk, asked: AccountName) -> Json:
    key, where = await desk.actions.remove(asked.provider, asked.label)
    _note(f"removed {key}")
    return {"removed": str(key), "written_to": where}


async def next_account(desk: Desk, asked: ProviderName) -> Json:
    chosen = desk.actions.next(asked.provider)
    _note(f"next of {asked.provider.strip().lower()}: {chosen or 'nobody'}")
    return {"next": None if chosen is None else str(chosen)}


async def clear_cooldown(desk: Desk, asked: AccountName) -> Json:
    moment = desk.moment()
    state, ended = desk.actions.clear_cooldown(asked.provider, asked.label)
    _note(f"cleared {state.key}")
    return {
        "cleared": [views.cooldown_view(cooldown, moment) for cooldown in ended],
        "account": await desk.account(state),
    }


async def enable(desk: Desk, asked: AccountName) -> Json:
    state = desk.actions.enable(asked.provider, asked.label)
    _note(f"enabled {state.key}")
    return {"account": await desk.account(state)}


async def disable(desk: Desk, asked: AccountName) -> Json:
    state = desk.actions.disable(asked.provider, asked.label)
    _note(f"disabled {state.key}")
    return {"account": await desk.account(state)}


async def reveal(desk: Desk, asked: AccountName) -> Json:
    state = desk.actions.get(asked.provider, asked.label)
    _note(f"showed the credential of {state.key}")
    shown = {kind: held.secret.reveal() for kind, held in state.credentials.items()}
    return {"key": str(state.key), "credentials": shown}


async def close_session(desk: Desk, asked: SessionKey) -> Json:
    desk.actions.close_session(asked.key)
    _note("closed a session")
    return {"closed": asked.key}


def _note(what: str) -> None:
    logger.info(f"account-pool: by hand (admin API): {what}")
