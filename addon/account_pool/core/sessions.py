"""Which account a conversation lives on, and which one made a thing that only it knows.

Prompt caches, encrypted reasoning and stored responses belong to an account, so a
conversation stays where it is. A session is created when its first request is sent, and
forgotten when it was idle for long or too many are known; never while one of its requests
is in flight. `SessionLease` is one request's hold on its session; where the request goes is
decided in `attempts.py`.

A model that only had to move because the account is limited for that model, or lacks it,
gets a binding of its own: caches are per model, and the other models stay where they are. A
sub-agent is a conversation of its own that begins where its parent lives: it may send what
the parent's account encrypted.

A request that names a thing of one account, a stored response or a sticky token, can be
served by its owner alone: `Pins` know it. They keep ids as hashes: some are tokens, and
clients choose how long they are.

Times are monotonic seconds and passed in; only rows for the store carry wall time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import count

from msgspec import Struct, field

from account_pool.core.account import AccountKey
from account_pool.core.lease import RequestFacts

#: How long a session is remembered after its last request, seconds.
IDLE_S = 30 * 60.0
#: Maximum number of sessions, not counting those with requests in flight.
MAX_SESSIONS = 10_000
#: Ids that are remembered at most; the one not named for longest goes first.
MAX_PINS = 20_000
#: Converting a time from clock to clock and back changes it by less than this, seconds.
ROUNDED_S = 0.01

#: A session as the store keeps it: key, account ("provider/label"), last used (wall seconds).
SessionRow = tuple[str, str, float]
#: A pin as the store keeps it: hash, account ("provider/label"), last used (wall seconds).
PinRow = tuple[str, str, float]


# -- things of one account


def pin_of(provider: str, thing: str) -> str:
    """Return what *thing* (an id, a token) of *provider* is remembered by."""
    return blake2b(f"{provider}\0{thing}".encode(errors="replace"), digest_size=16).hexdigest()


#: Before the hash of a conversation that was pinned by hand.
_BY_HAND = "session-"


def _session_pin(provider: str, session: str) -> str:
    return _BY_HAND + pin_of(provider, session)


class Pins(Struct, kw_only=True, eq=False):
    """Owners by the hash of what they made, least recently used first.

    A conversation that a person has pinned to an account is one of its things, too.

    Attributes:
        max_pins: see MAX_PINS.
        changed: told the hash of each pin that is new or removed; quick, raises nothing.
        has_sessions: whether a conversation may be pinned by hand.
    """

    max_pins: int = MAX_PINS
    changed: Callable[[str], object] = lambda _key: None
    _known: OrderedDict[str, tuple[AccountKey, float]] = field(default_factory=OrderedDict)
    #: named since `note_used`
    _named: set[str] = field(default_factory=set)
    has_sessions: bool = False

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, owner: AccountKey, thing: str, now: float) -> None:
        """Note that *owner* made *thing*."""
        self._remember(pin_of(owner.provider, thing), owner, now)

    def _remember(self, pin: str, owner: AccountKey, now: float) -> None:
        known = self._known.get(pin)
        self._known[pin] = (owner, now)
        self._known.move_to_end(pin)
        if known is None or known[0] != owner:
            self.changed(pin)
        self._make_room()

    def owner(self, provider: str, thing: str) -> AccountKey | None:
        """Return who made *thing*, None if that is not known; it was used then."""
        return self._owner(pin_of(provider, thing))

    def _owner(self, pin: str) -> AccountKey | None:
        known = self._known.get(pin)
        if known is None:
            return None
        self._known.move_to_end(pin)
        self._named.add(pin)
        return known[0]

    # -- conversations that were pinned by hand

    def pin_session(self, owner: AccountKey, session: str, now: float) -> None:
        """Have *owner* alone serve the conversation *session*."""
        self.has_sessions = True
        self._remember(_session_pin(owner.provider, session), owner, now)

    def unpin_session(self, provider: str, session: str) -> bool:
        """Undo that; return whether it was pinned."""
        pin = _session_pin(provider, session)
        known = self._known.pop(pin, None) is not None
        if known:
            self.changed(pin)
        return known

    def session_owner(self, provider: str, session: str) -> AccountKey | None:
        """Return the account that the conversation *session* is pinned to, if any."""
        return self._owner(_session_pin(provider, session))

    def pinned_to(self, provider: str, session: str) -> AccountKey | None:
        """Return what `session_owner` does, without using the pin."""
        known = self._known.get(_session_pin(provider, session))
        return None if known is None else known[0]

    def note_used(self, now: float) -> None:
        """Count those that were named as used now: the store forgets what nobody uses."""
        for pin in self._named & self._known.keys():
            self._known[pin] = (self._known[pin][0], now)
        self._named.clear()

    def forget(self, owner: AccountKey) -> None:
        """*owner* is gone: what it made is the vendor's to refuse."""
        for pin in [pin for pin, (key, _) in self._known.items() if key == owner]:
            del self._known[pin]
            self.changed(pin)

    # -- the store

    def row(self, pin: str, now: float, wall_now: float) -> PinRow | None:
        """Return one pin for the store, None if it is not known any more."""
        known = self._known.get(pin)
        return None if known is None else (pin, str(known[0]), wall_now - (now - known[1]))

    def snapshot(self, now: float, wall_now: float) -> list[PinRow]:
        """Return all pins for the store, least recently used first."""
        rows = (self.row(pin, now, wall_now) for pin in self._known)
        return [row for row in rows if row is not None]

    def adopt(self, rows: Iterable[PinRow], now: float, wall_now: float) -> None:
        """Add pins that a store has kept, or that other proxies have learnt later.

        *changed* is not called.
        """
        for pin, owner, used_wall in sorted(rows, key=lambda row: row[2]):
            known, used_at = self._known.get(pin), now - (wall_now - used_wall)
            if known is None or known[1] < used_at:
                self._known[pin] = (AccountKey.parse(owner), used_at)
                self._known.move_to_end(pin)
                self.has_sessions |= pin.startswith(_BY_HAND)
        self._make_room()

    def drop(self, gone: Mapping[str, float], now: float, wall_now: float) -> None:
        """Forget pins that others have removed, unless used here since.

        *changed* is not called.
        """
        for pin, used_wall in gone.items():
            known, used_at = self._known.get(pin), now - (wall_now - used_wall)
            if known is not None and pin not in self._named and known[1] <= used_at + ROUNDED_S:
                del self._known[pin]

    def _make_room(self) -> None:
        while len(self._known) > self.max_pins:
            oldest, _ = self._known.popitem(last=False)
            self.changed(oldest)


# -- conversations


class Session(Struct, eq=False):
    """One conversation.

    Attributes:
        account: where it lives.
        used_at: start or end of its last request.
        in_flight: the number of its requests in flight.
        settled: *account* has answered it. A move without a response can be undone.
    """

    account: AccountKey
    used_at: float
    in_flight: int = 0
    settled: bool = False

    def begin(self, now: float) -> None:
        """Note that one more of its requests is in flight."""
        self.in_flight += 1
        self.used_at = now

    def end(self, now: float) -> None:
        """Note that one has ended, whether or not the session is still known."""
        self.in_flight -= 1
        self.used_at = now


class SweepResult(Struct, frozen=True):
    """What a sweep did: the keys it removed, and the exceptions of its callbacks."""

    removed: tuple[str, ...] = ()
    failures: tuple[Exception, ...] = ()


class Sessions(Struct, kw_only=True, eq=False):
    """The sessions of one proxy, by key, least recently used first.

    Attributes:
        idle_s, max_sessions: bounds; see IDLE_S and MAX_SESSIONS.
        changed: called with the key of each session that was bound, settled or removed, on
            the path of a request: it must be quick and raise nothing.
    """

    idle_s: float = IDLE_S
    max_sessions: int = MAX_SESSIONS
    changed: Callable[[str], object] = lambda _key: None
    _known: dict[str, Session] = field(default_factory=dict)
    #: A heap of (when it was used, as far as is noted here; a number; key; session), one entry
    #: for each session, which is brought up to date when it comes to the top: a request notes
    #: its use for nothing, and one session more costs the logarithm of their number.
    _by_use: list[tuple[float, int, str, Session]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    _sweeping: bool = False

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known, key=lambda key: self._known[key].used_at))

    # -- where it lives

    def get(self, key: str, now: float) -> Session | None:
        """Return the session and count it as used; None if it is unknown, or was idle too long."""
        session = self.peek(key, now)
        if session is not None:
            session.used_at = now
        return session

    def peek(self, key: str, now: float) -> Session | None:
        """Return the session without using it."""
        session = self._known.get(key)
        return None if session is None or self._is_idle(session, now) else session

    def bind(
        self, key: str, account: AccountKey, now: float, *, worth_keeping: bool = True
    ) -> Session:
        """Let the session live on *account* from now on; create it if it is new.

        Args:
            worth_keeping: call *changed* at once, not only when the session is settled.
        """
        session = self._known.get(key)
        if session is None or self._is_idle(session, now):
            self._make_room(now)
            session = self._add(key, Session(account, now))
        elif session.account != account:
            session.account, session.settled = account, False
        session.used_at = now
        if worth_keeping:
            self.changed(key)
        return session

    def settle(self, key: str, session: Session) -> None:
        """Note that the account of *session* has answered it."""
        if not session.settled:
            session.settled = True
            self.changed(key)

    # -- endings

    def close_session(self, key: str) -> bool:
        """Forget a session; return whether it was known. Its requests finish normally."""
        known = self._known.pop(key, None) is not None
        if known:
            self.changed(key)
        return known

    def sweep(self, now: float) -> SweepResult:
        """Remove the sessions that were idle too long, one at a time.

        Each is checked again right before it is removed: *changed* may have brought others back.
        An exception of it does not stop the sweep. A sweep during a sweep does nothing.
        """
        if self._sweeping:
            return SweepResult()
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
                except Exception as e:
                    failures.append(e)
        finally:
            self._sweeping = False
        return SweepResult(tuple(removed), tuple(failures))

    # -- the store

    def row(self, key: str, now: float, wall_now: float) -> SessionRow | None:
        """Return one session for the store, None if it is no longer known."""
        session = self._known.get(key)
        if session is None:
            return None
        return key, str(session.account), wall_now - (now - session.used_at)

    def snapshot(self, now: float, wall_now: float) -> list[SessionRow]:
        """Return all sessions for the store, least recently used first."""
        rows = (self.row(key, now, wall_now) for key in self)
        return [row for row in rows if row is not None]

    def adopt(self, rows: Iterable[SessionRow], now: float, wall_now: float) -> None:
        """Add sessions that a store has kept, or that other proxies have bound or used since.

        Sessions that were idle too long are left out, those with requests in flight here stay
        as they are. *changed* is not called.
        """
        for key, account, used_wall in rows:
            # After a clock was set back, no session was used later than now.
            used_at = now - max(wall_now - used_wall, 0.0)
            known = self._known.get(key)
            # Times are converted between clocks: our own row may come back a little later.
            if known is not None and (known.in_flight or known.used_at >= used_at - 0.001):
                continue
            session = Session(AccountKey.parse(account), used_at, settled=True)
            if self._is_idle(session, now):
                continue
            if known is None:
                self._make_room(now)
            self._add(key, session)

    def drop(self, gone: Mapping[str, float], now: float, wall_now: float) -> None:
        """Forget sessions that other proxies have closed, unless used here since.

        *changed* is not called.
        """
        for key, used_wall in gone.items():
            session = self._known.get(key)
            used_at = now - (wall_now - used_wall)
            if (
                session is not None
                and not session.in_flight
                and session.used_at <= used_at + ROUNDED_S
            ):
                del self._known[key]

    # -- inside

    def _is_idle(self, session: Session, now: float) -> bool:
        return session.in_flight == 0 and now - session.used_at >= self.idle_s

    def _idle(self, now: float) -> list[str]:
        """Return the keys of sessions that were idle too long, least recently used first."""
        idle: list[str] = []
        with closing(self._oldest_first()) as sessions:
            for key, session in sessions:
                if now - session.used_at < self.idle_s:
                    break
                if session.in_flight == 0:
                    idle.append(key)
        return idle

    def _add(self, key: str, session: Session) -> Session:
        self._known[key] = session
        self._note_use(key, session)
        return session

    def _note_use(self, key: str, session: Session) -> None:
        heappush(self._by_use, (session.used_at, next(self._numbers), key, session))

    def _oldest_first(self) -> Generator[tuple[str, Session]]:
        """Yield key and session, least recently used first. To be closed by who leaves it early."""
        looked_at: list[tuple[str, Session]] = []
        try:
            while self._by_use:
                noted_at, _, key, session = heappop(self._by_use)
                if self._known.get(key) is not session:
                    continue
                if noted_at < session.used_at:
                    self._note_use(key, session)
                    continue
                looked_at.append((key, session))
                yield key, session
        finally:
            for key, session in looked_at:
                self._note_use(key, session)

    def _make_room(self, now: float) -> None:
        """Remove the least recently used session if there are too many; no busy one."""
        if len(self._known) < self.max_sessions:
            return
        with closing(self._oldest_first()) as sessions:
            oldest = next((key for key, s in sessions if s.in_flight == 0), None)
        if oldest is not None:
            self.close_session(oldest)


# -- one request's hold on its session


def session_key(session: str, provider: str, model: str | None = None) -> str:
    """Return the key of a session, `session:provider`, or of its binding for one model."""
    return f"{session}:{provider}" if model is None else f"{session}:{provider}:{model}"


def session_of(key: str, provider: str) -> str | None:
    """Return the session that `session_key` made *key* of; None if it is of another provider."""
    end = f":{provider}"
    if key.endswith(end):
        return key.removesuffix(end)
    session, found, _model = key.partition(f"{end}:")
    return session if found else None


class SessionLease(Struct, kw_only=True, eq=False):
    """What the sessions and pins say of one request.

    Attributes:
        sessions: None for a request of no conversation.
        key, model_key: keys of its session; the second takes precedence if it is bound.
        owner: the only account that can serve it.
        near: the account where it should begin, if it is a new conversation.
        begins: it is a new conversation, even if another one that began alike is known.
    """

    sessions: Sessions | None = None
    key: str = ""
    model_key: str = ""
    owner: AccountKey | None = None
    near: AccountKey | None = None
    begins: bool = False
    _bound: tuple[str, Session] | None = None
    #: where the request was sent last
    _at: AccountKey | None = None
    _came_from: AccountKey | None = None
    _over: bool = False

    def home(self, now: float) -> AccountKey | None:
        """Return the account of the conversation; None if it is new, or there is none."""
        if self.sessions is None or (self.begins and self._bound is None):
            return None
        # Both, so that neither is idle while the other is used.
        of_all = self.sessions.get(self.key, now)
        of_model = self.sessions.get(self.model_key, now)
        session = of_model or of_all
        return session.account if session else None

    def sent_to(self, account: AccountKey, now: float, *, for_model: bool = False) -> None:
        """Note that the request goes to *account*: the conversation lives there from now on.

        *for_model*: it only leaves its home because of its model.
        """
        sessions = self.sessions
        if sessions is None:
            return
        self._at = account
        home = self.home(now)
        of_model = for_model or sessions.peek(self.model_key, now) is not None
        key = self.model_key if of_model else self.key
        if home is not None and home != account and self._came_from is None:
            self._came_from = home
        session = sessions.peek(key, now)
        if session is None or session.account != account:
            session = sessions.bind(key, account, now, worth_keeping=not self.begins)
        if self._bound != (key, session):
            if self._bound is not None:
                self._bound[1].end(now)
            self._bound = (key, session)
            session.begin(now)

    def served(self) -> None:
        """Note a good response: the session stays. One that only begins is kept once it goes on."""
        if self.begins:
            self._came_from = None
            return
        if self.sessions is not None and self._bound is not None:
            key, session = self._bound
            # Another request of it may have moved it since.
            if session.account == self._at:
                self.sessions.settle(key, session)

    def ended(self, now: float) -> None:
        """Note the end of the request. A move without a response is undone.

        Whatever other accounts refused, its own may serve it when it is back.
        """
        if self._over or self.sessions is None or self._bound is None:
            return
        self._over = True
        key, session = self._bound
        if (
            self._came_from is not None
            and not session.settled
            and session.account == self._at
            and self.sessions.peek(key, now) is session
        ):
            self.sessions.bind(key, self._came_from, now)
            self.sessions.settle(key, session)
        session.end(now)


def session_lease_of(
    facts: RequestFacts, sessions: Sessions, pins: Pins, now: float
) -> SessionLease:
    """Return the session lease of the request with these *facts*."""
    conversation = facts.conversation
    provider = facts.provider
    owner = facts.only
    if owner is None and pins.has_sessions and conversation.session is not None:
        owner = pins.session_owner(provider, conversation.session)
    if owner is None:
        owners = (pins.owner(provider, thing) for thing in conversation.named)
        owner = next((owner for owner in owners if owner is not None), None)
    near = None if conversation.sticky is None else pins.owner(provider, conversation.sticky)
    if conversation.session is None:
        return SessionLease(owner=owner, near=near)
    if near is None and conversation.parent is not None:
        parent = sessions.peek(session_key(conversation.parent, provider), now)
        near = parent.account if parent else None
    return SessionLease(
        sessions=sessions,
        key=session_key(conversation.session, provider),
        model_key=session_key(conversation.session, provider, facts.model or ""),
        owner=owner,
        near=near,
        begins=conversation.begins,
    )
