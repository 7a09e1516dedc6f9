"""Asks providers what idle accounts have left, where their owner wants it (`pool_look_up`).

Off by default: without it nothing here runs. Requests are our own, under our own name, to the
account's own provider, and at most every five minutes an account, over all proxies that share
a store. What is asked when is decided in `providers/look_ups.py`, off the request path.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from mitmproxy.options import Options

from account_pool.core import reset_hints
from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential
from account_pool.core.decisions import By
from account_pool.core.headroom_parsing import ResponseContext
from account_pool.core.members import Transition
from account_pool.core.state import AccountState
from account_pool.credentials.http import Http, HttpFailed, HttpResponse, retry_after
from account_pool.providers import look_ups
from account_pool.providers.look_ups import LOOK_UPS, USER_AGENT, Answer, LookUp, LookUps, Shown
from account_pool.proxy.fleet import SharedNotices
from account_pool.proxy.service import Service
from account_pool.store.store import StoreError
from account_pool.supervision import log_and_continue, tasks

logger = logging.getLogger(__name__)

#: How often is looked for accounts that are due, seconds.
LOOK_S = 5.0
#: How long one look-up may take, seconds, and how many are made at once.
TIMEOUT_S, AT_ONCE = 15.0, 4
#: How long whoever wants fresh figures waits for them, seconds.
REFRESH_S = 8.0


class HeadroomLookUps:
    """The look-ups of one proxy.

    Attributes:
        known: what they have come to.
        is_on: the owner wants them.
    """

    def __init__(self, service: Service, http_of: Callable[[Options], Http]) -> None:
        self.known = LookUps()
        self._service = service
        self._http_of = http_of
        self._options: Options | None = None
        self.is_on = self._started = False
        self._turns: Callable[[], SharedNotices | None] = lambda: None
        self._is_vendors: Callable[[str], bool] = lambda _provider: True
        self._task: asyncio.Task[None] | None = None
        self._places = asyncio.Semaphore(AT_ONCE)

    def use(self, options: Options, *, on: bool) -> None:
        """Look up from now on, or not; *options* are mitmproxy's."""
        if on and not self.is_on:
            self.known = LookUps()  # its owner wants another try
        self._options, self.is_on = options, on
        self._begin()

    def start(
        self, turns: Callable[[], SharedNotices | None], is_vendors: Callable[[str], bool]
    ) -> None:
        """Begin. Needs the running loop.

        Args:
            turns: returns what proxies share, None before there is any.
            is_vendors: says whether the accounts of a provider are at the vendor's own hosts.
        """
        self._turns, self._is_vendors, self._started = turns, is_vendors, True
        self._begin()

    def stop(self) -> None:
        """Ask no more."""
        self._started = False
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        if self._started and self.is_on and (self._task is None or self._task.done()):
            self._task = tasks.supervised("looking up headroom", self._run)

    async def _run(self) -> None:
        while self.is_on:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Ask for the accounts that are due."""
        states = [state for state in self._service.pool.accounts if self._can(state)]
        due = self.known.due(states, self._service.now())
        await asyncio.gather(*[self._ask(key) for key in due])

    async def refresh(self, states: Iterable[AccountState]) -> list[AccountKey]:
        """Ask for *states* now, as far as they may be asked; return those that can be.

        After `REFRESH_S` it returns what is known by then; the others are still asked.
        """
        keys = [state.key for state in states if self._can(state)]
        now = self._service.now()
        may = [key for key in keys if self.known.why_not(key, now) is None]
        asked = [tasks.once(f"looking up {key}", partial(self._ask, key)) for key in may]
        if asked:
            await asyncio.wait(asked, timeout=REFRESH_S)
        return keys

    def _can(self, state: AccountState) -> bool:
        """Say whether the provider of *state* can be asked, with its credential."""
        how = LOOK_UPS.get(state.key.provider)
        if how is None or not state.enabled or how.kind not in state.credentials:
            return False
        provider = self._service.providers.get(state.key.provider)
        # One that a host was added to, or named for, may be somebody else's: its key stays there.
        elsewhere = "host" in state.account.companions
        added = provider is None or bool(provider.added_hosts)
        return not (elsewhere or added) and self._is_vendors(state.key.provider)

    async def _ask(self, key: AccountKey) -> None:
        async with self._places:
            now = self._service.now()
            if self.known.why_not(key, now) is not None or not await self._is_our_turn(key):
                self.known.asked(key, now)
                return
            state = self._service.pool.accounts.find(key)
            how = LOOK_UPS[key.provider]
            if state is None or (credential := state.credentials.get(how.kind)) is None:
                return
            self.known.asked(key, now)
            try:
                answer, shown, why, wait_s = await self._answer(how, credential)
            except HttpFailed as error:
                answer, shown, why, wait_s = Answer.FAILED, None, str(error), 0.0
            now_then, now = now, self._service.now()
            if answer is Answer.SHOWN and shown is not None:
                self._learn(key, credential, how, shown, asked_at=now_then, now=now)
            elif (off := self.known.failed(key, answer, why, now, wait_s)) is not None:
                logger.warning(f"account-pool: {off}")

    async def _is_our_turn(self, key: AccountKey) -> bool:
        turns = self._turns()
        try:
            return turns is None or await turns.take_turn(f"look-up {key}", look_ups.LEAST_S)
        except StoreError:
            return True

    async def _answer(
        self, how: LookUp, credential: Credential
    ) -> tuple[Answer, Shown | None, str, float]:
        """Ask once; return what it came to, and how long to wait. Raises HttpFailed."""
        assert self._options is not None
        headers = {
            "user-agent": USER_AGENT, "accept": "application/json", **how.headers(credential),
        }  # fmt: skip
        http = self._http_of(self._options)
        response = await http.ask("GET", how.url, headers=headers, timeout_s=TIMEOUT_S)
        shown = self._read(how, response) if response.status == 200 else None
        understood = shown is not None and bool(shown.windows)
        answer = look_ups.answer_of(response.status, understood=understood)
        why = f"status {response.status}"
        if answer is Answer.FAILED and response.status == 200:
            why = "the answer shows no window that is known"
        wait_s = retry_after(response.headers, time.time(), response.status) or 0.0
        return answer, shown, why, wait_s

    def _read(self, how: LookUp, response: HttpResponse) -> Shown | None:
        value = response.json()
        if not isinstance(value, dict):
            return None
        at = reset_hints.http_date(response.headers.get("date", ""))
        wall_now = self._service.wall_now() if at is None else at
        context = ResponseContext(model=None, now=self._service.now(), wall_now=wall_now)
        try:
            return how.read(value, context)
        except Exception as error:
            log_and_continue.log(error)
            return None

    def _learn(
        self,
        key: AccountKey,
        credential: Credential,
        how: LookUp,
        shown: Shown,
        *,
        asked_at: float,
        now: float,
    ) -> None:
        """Note what *key* has left, and end what it shows to be lifted."""
        accounts = self._service.pool.accounts
        state = accounts.find(key)
        held = None if state is None else state.credentials.get(how.kind)
        if state is None or held is None or held.secret != credential.secret:
            return  # it is of another credential by now
        self.known.shown(key, shown.windows, shown.reset_credits, now)
        self._service.pool.observe_headroom(key, shown.windows, now=now)
        if any(look_ups.lifted(c, shown.windows, asked_at) for c in state.cooldowns.values()):
            with Transition(accounts, state, By.LOOK_UP, now) as change:
                change.end_cooldowns(lambda c: look_ups.lifted(c, shown.windows, asked_at))

    def views(self) -> Mapping[AccountKey, Mapping[str, object]]:
        """Return what is known of the look-ups of each account that was asked."""
        now = self._service.now()
        asked = {k: one for k, one in self.known.accounts.items() if one.asked_at > float("-inf")}
        return {key: look_ups.view(one, now) for key, one in asked.items()}
