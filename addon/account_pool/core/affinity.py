"""Which account a conversation lives on.

Prompt caches, encrypted reasoning and stored answers belong to an account, so a
conversation stays where it is (design.md, section 8). A session is made when its first
request is sent, and forgotten when it was idle for long or too many are known; never
while one of its requests is under way. Where a request goes is decided in `attempts.py`.

Times are monotonic seconds and passed in; only rows for the store carry wall time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from account_pool.core.account import AccountKey

#: How long a session is remembered after its last turn, seconds.
IDLE_S = 30 * 60.0
#: Sessions that are known at most, but for those that are busy.
MAX_SESSIONS = 10_000

#: Times of a row, from clock to clock and back, differ by less than this, seconds.
ROUNDED_S = 0.01

#: A session as the store keeps it: key, account ("provider/label"), last used (wall seconds).
SessionRow = tuple[str, str, float]


@dataclass(slots=True, eq=False)
class Session:
    """One conversation.

    Attributes:
        account: where it lives.
        used_at: start or end of its last turn.
        turns: its requests under way.
        settled: *account* has answered it. A move that brought no answer can be undone.
    """

    account: AccountKey
    used_at: float
    turns: int = 0
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did: the keys it removed, and what went wrong with telling others."""

    removed: tuple[str, ...] = ()
    failures: tuple[Exception, ...] = ()


def _ignore(_key: str) -> None:
    """Nobody wants to know."""


@dataclass(slots=True, kw_only=True, eq=False)
class Sessions:
    """The sessions of one proxy, by key, least recently used first.

    Attributes:
        idle_s, max_sessions: bounds; see IDLE_S and MAX_SESSIONS.
        changed: told the key of each session that was bound, settled or removed. Called in
            the way of a request: it must be quick and raise nothing.
    """

    idle_s: float = IDLE_S
    max_sessions: int = MAX_SESSIONS
    changed: Callable[[str], None] = _ignore
    _known: OrderedDict[str, Session] = field(default_factory=OrderedDict)
    _sweeping: bool = False

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    # -- where it lives

    def get(self, key: str, now: float) -> Session | None:
        """Return the session and count it as used; None if there is none, or it was idle."""
        session = self.peek(key, now)
        if session is not None:
            self._touch(key, session, now)
        return session

    def peek(self, key: str, now: float) -> Session | None:
        """Return the session without using it."""
        session = self._known.get(key)
        return None if session is None or self._is_idle(session, now) else session

    def bind(
        self, key: str, account: AccountKey, now: float, *, worth_keeping: bool = True
    ) -> Session:
        """Let the session live on *account*, from now on; make it if it is new.

        Args:
            worth_keeping: *changed* is told at once, and not only when it is settled.
        """
        session = self._known.get(key)
        if session is None or self._is_idle(session, now):
            self._make_room(now)
            session = self._known[key] = Session(account, now)
        elif session.account != account:
            session.account, session.settled = account, False
        self._touch(key, session, now)
        if worth_keeping:
            self.changed(key)
        return session

    def settle(self, key: str, session: Session) -> None:
        """The account of *session* has answered it."""
        if not session.settled:
            session.settled = True
            self.changed(key)

    # -- turns

    def start_turn(self, key: str, session: Session, now: float) -> None:
        """A request of *session* is under way."""
        session.turns += 1
        self._touch(key, session, now)

    def end_turn(self, key: str, session: Session, now: float) -> None:
        """It has ended, whether or not the session is still known."""
        session.turns -= 1
        if self._known.get(key) is session:
            self._touch(key, session, now)

    # -- endings

    def close_session(self, key: str) -> bool:
        """Forget a conversation; say whether it was known. Its requests end in peace."""
        known = self._known.pop(key, None) is not None
        if known:
            self.changed(key)
        return known

    def sweep(self, now: float, dispose: Callable[[str], None] = _ignore) -> Swept:
        """Remove the sessions that were idle for long, one at a time.

        Each is looked at again right before it is removed: *dispose*, which is told each
        key, may have brought others back. What it or *changed* raises does not stop the
        sweep. A sweep during a sweep does nothing.
        """
        if self._sweeping:
            return Swept()
        removed: list[str] = []
        failures: list[Exception] = []
        self._sweeping = True
        try:
            for key in self._idle(now):
                session = self._known.get(key)
                if session is None or not self._is_idle(session, now):
                    continue
                removed.append(key)
                try:
                    self.close_session(key)
                    dispose(key)
                except Exception as e:
                    failures.append(e)
        finally:
            self._sweeping = False
        return Swept(tuple(removed), tuple(failures))

    # -- the store

    def row(self, key: str, now: float, wall_now: float) -> SessionRow | None:
        """Return one session for the store, None if it is not known any more."""
        session = self._known.get(key)
        if session is None:
            return None
        return key, str(session.account), wall_now - (now - session.used_at)

    def snapshot(self, now: float, wall_now: float) -> list[SessionRow]:
        """Return all sessions for the store, least recently used first."""
        rows = (self.row(key, now, wall_now) for key in self._known)
        return [row for row in rows if row is not None]

    def adopt(self, rows: Iterable[SessionRow], now: float, wall_now: float) -> None:
        """Take over what a store has kept, or other proxies have bound or used since.

        Those idle since, and those busy here, stay as they are. Tells nobody of it.
        """
        for key, account, used_wall in rows:
            # A clock that was set back makes nobody younger than now.
            used_at = now - max(wall_now - used_wall, 0.0)
            known = self._known.get(key)
            # Times go from clock to clock: our own row may come back a little younger.
            if known is not None and (known.turns or known.used_at >= used_at - 0.001):
                continue
            session = Session(AccountKey.parse(account), used_at, settled=True)
            if self._is_idle(session, now):
                continue
            if known is None:
                self._make_room(now)
            self._known[key] = session
        in_order = sorted(self._known.items(), key=lambda item: item[1].used_at)
        self._known = OrderedDict(in_order)

    def drop(self, gone: Mapping[str, float], now: float, wall_now: float) -> None:
        """Forget what others have closed, unless it was used here since. Tells nobody."""
        for key, used_wall in gone.items():
            session = self._known.get(key)
            used_at = now - (wall_now - used_wall)
            if session is not None and not session.turns and session.used_at <= used_at + ROUNDED_S:
                del self._known[key]

    # -- inside

    def _is_idle(self, session: Session, now: float) -> bool:
        return session.turns == 0 and now - session.used_at >= self.idle_s

    def _idle(self, now: float) -> list[str]:
        """Return the keys of the idle ones. In order of use: busy ones aside, the first."""
        idle: list[str] = []
        for key, session in self._known.items():
            if now - session.used_at < self.idle_s:
                break
            if session.turns == 0:
                idle.append(key)
        return idle

    def _touch(self, key: str, session: Session, now: float) -> None:
        session.used_at = now
        self._known.move_to_end(key)

    def _make_room(self, now: float) -> None:
        """Remove the one that was not used for longest, if there are too many; no busy one."""
        if len(self._known) < self.max_sessions:
            return
        oldest = next((key for key, s in self._known.items() if s.turns == 0), None)
        if oldest is not None:
            self.close_session(oldest)
