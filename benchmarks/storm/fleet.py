"""The scripted side: accounts with limits, and agents that work through conversations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from benchmarks.storm.clock import Time

MINUTE_S, FIVE_HOURS_S, WEEK_S = 60.0, 5 * 3600.0, 7 * 86_400.0

#: Seconds until a refusal, and until the head of a good answer, from and to.
REFUSED_S = (0.1, 0.3)
ANSWERED_S = (0.5, 3.0)
#: Seconds an answer streams, and an agent works before it asks again.
STREAMED_S = (2.0, 15.0)
WORKED_S = (2.0, 25.0)
#: Turns of a conversation.
TURNS = (5, 40)
#: A client that is refused sleeps as long as it is told, within these bounds, seconds.
SLEEP_S = (1.0, 60.0)


@dataclass(slots=True)
class Window:
    """An allowance of *limit* requests per *length_s*; whole again at *reset_at*."""

    length_s: float
    limit: int
    reset_at: float
    used: int = 0

    def refresh(self, now: float) -> None:
        if now >= self.reset_at:
            self.used = 0
            self.reset_at = now + self.length_s

    @property
    def spent(self) -> bool:
        return self.used >= self.limit


@dataclass(slots=True)
class ScriptedAccount:
    """One account upstream.

    Attributes:
        windows: what it allows.
        refusals: how many requests it has refused.
    """

    name: str
    windows: list[Window]
    refusals: int = 0

    def ask(self, now: float) -> tuple[float, bool] | None:
        """Count a request; return how long to wait and whether it is a long window, or None."""
        for window in self.windows:
            window.refresh(now)
        spent = [window for window in self.windows if window.spent]
        if spent:
            self.refusals += 1
            last = max(spent, key=lambda window: window.reset_at)
            return last.reset_at - now, last.length_s > MINUTE_S
        for window in self.windows:
            window.used += 1
        return None


def accounts(scale: float) -> list[ScriptedAccount]:
    """Return five accounts in the middle of their windows; *scale* is that of the fleet.

    The fleet asks for some 500 requests a minute, which three of them allow. The first runs
    out of its five hours early and returns, the second out of its week, the third out of
    its five hours; neither of them returns.
    """
    per_minute = round(200 * scale)
    script = [
        (400, 900.0, 20_000, WEEK_S / 2),
        (6000, FIVE_HOURS_S / 2, 1200, WEEK_S / 3),
        (1500, FIVE_HOURS_S / 2, 20_000, WEEK_S / 4),
        (6000, 1200.0, 20_000, WEEK_S / 5),
        (6000, FIVE_HOURS_S, 20_000, WEEK_S),
    ]
    return [
        ScriptedAccount(
            f"account-{number}",
            [
                Window(MINUTE_S, per_minute, 7.0 * number),
                Window(
                    FIVE_HOURS_S, round(6000 * scale), reset_5h, round((6000 - left_5h) * scale)
                ),
                Window(
                    WEEK_S, round(20_000 * scale), reset_week, round((20_000 - left_week) * scale)
                ),
            ],
        )
        for number, (left_5h, reset_5h, left_week, reset_week) in enumerate(script, 1)
    ]


@dataclass(slots=True)
class Tally:
    """What came of it.

    Attributes:
        served: requests answered.
        moves: times a conversation was served by another account than before.
        conversations: begun.
        told: refusals a client saw.
        lost_s: for each served request, seconds from asking to sending what was answered.
    """

    served: int = 0
    moves: int = 0
    conversations: int = 0
    told: int = 0
    lost_s: list[float] = field(default_factory=list)


#: Called when a request is served: by which account, and when it was sent there.
Served = Callable[[str, float], None]
#: Called when the client is refused: seconds it is told to wait.
Told = Callable[[float], None]
#: Asks for one request of a conversation, its number the key.
Ask = Callable[[int, Served, Told], None]


class Agent:
    """One tool at work: conversation after conversation, turn after turn."""

    def __init__(self, clock: Time, chance: Random, tally: Tally, ask: Ask) -> None:
        self._clock, self._chance, self._tally, self._ask = clock, chance, tally, ask
        self._account: str | None = None
        self._turns = 0
        clock.after(chance.uniform(0, sum(WORKED_S)), self._work)

    def _work(self) -> None:
        if self._turns == 0:
            self._turns = self._chance.randint(*TURNS)
            self._tally.conversations += 1
            self._number = self._tally.conversations
            self._account = None
        self._turns -= 1
        self._asked_at = self._clock.now
        self._request()

    def _request(self) -> None:
        self._ask(self._number, self._served, self._told)

    def _served(self, account: str, sent_at: float) -> None:
        tally = self._tally
        tally.served += 1
        tally.lost_s.append(sent_at - self._asked_at)
        if self._account not in (None, account):
            tally.moves += 1
        self._account = account
        self._clock.after(self._chance.uniform(*WORKED_S), self._work)

    def _told(self, wait_s: float) -> None:
        self._tally.told += 1
        shortest, longest = SLEEP_S
        # Clients add jitter of their own.
        wait_s = min(max(wait_s, shortest), longest) * self._chance.uniform(1.0, 1.2)
        self._clock.after(wait_s, self._request)
