"""One request's hold on its session: where it should go, and what it does to the session.

A session lives on one account. A model that only had to move because the account is
limited for that model, or lacks it, gets a binding of its own: caches are per model, and
the other models stay where they are. A sub-agent is a conversation of its own that begins
where its parent lives: it may send what the parent's account encrypted.
"""

from __future__ import annotations

from dataclasses import dataclass

from account_pool.core.account import AccountKey
from account_pool.core.lease import RequestFacts
from account_pool.core.pins import Pins
from account_pool.core.sessions import Session, Sessions


def session_key(session: str, provider: str, model: str | None = None) -> str:
    """Return the key of a session, `session:provider`, or of its binding for one model."""
    return f"{session}:{provider}" if model is None else f"{session}:{provider}:{model}"


@dataclass(slots=True, kw_only=True, eq=False)
class SessionLease:
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
                sessions.end_request(*self._bound, now)
            self._bound = (key, session)
            sessions.start_request(key, session, now)

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
        if self._over or self.sessions is None:
            return
        self._over = True
        if self._bound is not None and self._came_from is not None:
            key, session = self._bound
            stands = session.account == self._at and self.sessions.peek(key, now) is session
            if stands and not session.settled:
                self.sessions.bind(key, self._came_from, now)
                self.sessions.settle(key, session)
        self._end_request(now)

    def _end_request(self, now: float) -> None:
        if self._bound is not None and self.sessions is not None:
            key, session = self._bound
            self.sessions.end_request(key, session, now)


def session_lease_of(
    facts: RequestFacts, sessions: Sessions, pins: Pins, now: float
) -> SessionLease:
    """Return the session lease of the request with these *facts*."""
    conversation = facts.conversation
    provider = facts.provider
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
