"""Small builders for tests of the core: accounts, credentials, outcomes, pools."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from msgspec.structs import replace

from account_pool.core.account import Account, AccountKey, ModelFilter
from account_pool.core.credential import Credential, Secret
from account_pool.core.headroom import Window
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool

PROVIDER = "openai"
FACTS = RequestFacts(provider=PROVIDER, kind="key", model="gpt-5")

OK = Outcome(cls=OutcomeClass.OK)
BARE_429 = Outcome(cls=OutcomeClass.RATE_LIMIT, replayable=True, signal="429")
UNAUTHORIZED = Outcome(
    cls=OutcomeClass.AUTH_INVALID, scope=Scope.ACCOUNT, replayable=True, signal="401"
)
EXPIRED = Outcome(
    cls=OutcomeClass.AUTH_EXPIRED, scope=Scope.ACCOUNT, replayable=True, signal="401 expired"
)
FORBIDDEN = Outcome(
    cls=OutcomeClass.FORBIDDEN_ACCOUNT, scope=Scope.ACCOUNT, replayable=True, signal="403 suspended"
)
FORBIDDEN_MODEL = Outcome(
    cls=OutcomeClass.FORBIDDEN_ACCOUNT, scope=Scope.MODEL, replayable=True, signal="limit 0"
)
INVALID_KEY = replace(UNAUTHORIZED, names_credential=True, signal="401 code=invalid_api_key")
UNKNOWN_401 = replace(UNAUTHORIZED, unknown=True, explicit=False)
UNKNOWN_402 = Outcome(
    cls=OutcomeClass.QUOTA, scope=Scope.ACCOUNT, replayable=True, unknown=True, signal="402"
)
UNKNOWN_403 = replace(FORBIDDEN, unknown=True, explicit=False, signal="403")
REQUEST_ERROR = Outcome(cls=OutcomeClass.REQUEST_ERROR, signal="400")
SERVER_ERROR = Outcome(cls=OutcomeClass.SERVER_ERROR, scope=Scope.SERVER, signal="500")
OVERLOADED = Outcome(cls=OutcomeClass.OVERLOADED, scope=Scope.SERVER, signal="529")


def rate_limit(seconds: float | None = None, **changes: Any) -> Outcome:
    """A limit of the whole account that ends after *seconds*, if it says so."""
    return _limit(OutcomeClass.RATE_LIMIT, seconds, **changes)


def quota(seconds: float | None = None, **changes: Any) -> Outcome:
    """A quota of the whole account that is whole again after *seconds*, if it says so."""
    return _limit(OutcomeClass.QUOTA, seconds, **changes)


def _limit(cls: OutcomeClass, seconds: float | None, **changes: Any) -> Outcome:
    fields: dict[str, Any] = {"scope": Scope.ACCOUNT, "replayable": True, "signal": cls.value}
    return Outcome(cls=cls, cooldown_s=seconds, **(fields | changes))


def account(label: str, *models: str, **changes: Any) -> Account:
    fields: dict[str, Any] = {"provider": PROVIDER, "models": ModelFilter(models)}
    return Account(label=label, **(fields | changes))


def key(label: str, provider: str = PROVIDER) -> AccountKey:
    return AccountKey(provider, label)


def keys_of(secret: str, *kinds: str) -> dict[str, Credential]:
    """One credential for each of *kinds*, "key" if none is named."""
    return {
        kind: Credential(kind=kind, secret=Secret(f"sk-{secret}")) for kind in kinds or ("key",)
    }


class ClocksAhead:
    """The wall clock is so many seconds ahead of the monotonic one, which stands."""

    def __init__(self, ahead_s: float) -> None:
        self.now: Callable[[], float] = lambda: 0.0
        self.wall_now: Callable[[], float] = lambda: ahead_s


def window(share: float, **changes: Any) -> Window:
    """A window of the whole account, told at 0, of which *share* remains."""
    usual: dict[str, Any] = {"name": "5h", "share": share, "told_at": 0.0}
    return Window(**(usual | changes))


def instructions(act: Callable[[], object]) -> int:
    """How many instructions of Python *act* takes: its cost, whatever the machine is busy with."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


def pool_of(*members: str | Account, now: float = 0.0, **options: Any) -> Pool:
    """A pool of *members*, each with a credential; a string is a plain account's label."""
    pool = Pool(**options)
    for member in members:
        added = account(member) if isinstance(member, str) else member
        pool.accounts.add(added, keys_of(added.label), now=now)
    return pool


def served(pool: Pool, times: int, *, now: float = 0.0, facts: RequestFacts = FACTS) -> list[str]:
    """Labels of the accounts that serve *times* requests one after the other."""
    labels = []
    for _ in range(times):
        lease = pool.acquire(facts, now=now)
        labels.append(lease.key.label)
        pool.release(lease, OK, now=now)
    return labels


def available(pool: Pool, *, now: float, facts: RequestFacts = FACTS) -> set[str]:
    """Labels of all the accounts that could serve *facts* now."""
    labels: set[str] = set()
    while found := pool.pick(facts, now=now, avoid={key(label) for label in labels}):
        labels.add(found.key.label)
    return labels
