"""The proxies on the engine of a fleet: which run, what each holds, which tells the owner of what.

A proxy that does not count as running any more comes back under another name: what it held is
another's by then, and nothing of its old name comes alive.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.fleet import MAX_PROXIES, SHOWN_S, AboutProxy, ProxyRow, read_about
from account_pool.core.shares import ME, Ask, Share, grant
from account_pool.store.account_rows import account_key, dumps, loads
from account_pool.store.fleet.link import (
    TRIES,
    Accepted,
    Beside,
    Change,
    Link,
    Refused,
    StoredRow,
    decoded,
)
from account_pool.store.machine import Process
from account_pool.store.store import GRACE_S

if TYPE_CHECKING:
    from account_pool.core.notifications import Row, Subject, Verdict


class StoredShares(NamedTuple):
    """How an account is divided, by proxy.

    *said* is the same as it is written, where another version may say more.
    """

    version: int = 0
    shares: Mapping[str, Share] = {}
    said: Mapping[str, object] = {}


class FleetProxies:
    """This proxy, by its id *me*, among the others."""

    def __init__(self, link: Link) -> None:
        self.me = uuid4().hex
        self._link = link
        #: it has sent no heartbeat yet
        self._is_new = True
        #: it was taken for dead, and the next heartbeat says so
        self._was_dead = False
        self._about = ""
        self._in_flight: dict[str, int] = {}
        #: those that run, without this one
        self._live: set[str] = set()
        self._owners: dict[str, str] = {}
        self._flights: dict[str, dict[AccountKey, int]] = {}
        #: what each holds of an account
        self._shares: dict[AccountKey, StoredShares] = {}
        #: accounts of which somebody wants more
        self._wanted: set[AccountKey] = set()

    # -- what is known of others

    def note_live(self, live: Collection[str]) -> None:
        """Note which proxies run; of others nothing counts."""
        self._live = set(live) - {self.me}
        self._owners = {p: owner for p, owner in self._owners.items() if p in self._live}
        self._flights = {p: flight for p, flight in self._flights.items() if p in self._live}

    def note(self, table: str, name: str, row: StoredRow) -> None:
        """Note a row that has changed."""
        if table == "who":
            self._owners[name] = decoded(row.data)
        elif table == "f":
            self._flights[name] = _flight(row)
        elif (key := account_key(name)) is not None:
            self._note_share(key, row)

    def ids(self) -> tuple[str, ...]:
        """Return the other proxies that run."""
        return tuple(self._owners.get(proxy, proxy) for proxy in sorted(self._live))

    def in_flight(self) -> dict[AccountKey, int]:
        """Return the requests in flight on all others."""
        total: dict[AccountKey, int] = {}
        for proxy in self._live:
            for key, requests in self._flights.get(proxy, {}).items():
                total[key] = total.get(key, 0) + requests
        return total

    def short(self) -> dict[AccountKey, Mapping[str, Share]]:
        """Return what is held of accounts of which another proxy wants more."""
        held = {key: self._held(key) for key in self._wanted}
        return {
            key: shares
            for key, shares in held.items()
            if any(share.is_short for proxy, share in shares.items() if proxy != ME)
        }

    def rows(self) -> list[ProxyRow]:
        """Return who is there, and who was a while ago."""
        found = self._link.call("proxies", MAX_PROXIES)
        if not isinstance(found, list):
            raise self._link.strange("proxies")
        return [self._row(*row) for row in zip(*(found[n::5] for n in range(5)), strict=False)]

    def _row(
        self, proxy: object, seen_s: object, who: object, in_flight: object, about: object
    ) -> ProxyRow:
        owner = StoredRow.read(who).data
        process = loads(owner)
        host = process.get("host") if isinstance(process, dict) else None
        said = read_about(about)
        since_s = float(seen_s) if isinstance(seen_s, bytes) else None
        return ProxyRow(
            proxy=decoded(owner or proxy),
            about=said if said.name or not isinstance(host, str) else replace(said, name=host),
            seen_s=since_s,
            in_flight=sum(_flight(StoredRow.read(in_flight)).values()),
            is_running=since_s is not None and since_s < GRACE_S,
            is_me=decoded(proxy) == self.me,
        )

    # -- this one

    def beat(self, in_flight: Mapping[AccountKey, int], about: AboutProxy | None) -> bool:
        """Send a heartbeat; return whether this proxy counted as running."""
        self._in_flight = {str(key): requests for key, requests in in_flight.items()}
        if about is not None:
            self._about = about.as_text()
        was_known = not self._is_new and not self._was_dead
        is_known = self._beat()
        self._was_dead = False
        return is_known and was_known

    def _beat(self) -> bool:
        """Send a heartbeat; False: under another name."""
        before = "-" if self._is_new else ""
        for _ in range(2):
            reply = self._link.call(
                "beat",
                self._link.history,
                self.me,
                before,
                GRACE_S,
                SHOWN_S,
                Process.this().owner(self.me),
                dumps(self._in_flight),
                self._about,
            )
            match reply:
                case [b"ok", bytes(history), bytes(last), bytes(mine), list(live)]:
                    self._is_new = False
                    self._link.history = history or self._link.history
                    self._link.wrote(int(last), int(mine))
                    self.note_live([decoded(proxy) for proxy in live])
                    return not before
                case [b"dead"]:
                    before, self.me = self.me, uuid4().hex
                case _:
                    break
        raise self._link.strange("beat")

    def flight(self, in_flight: Mapping[AccountKey, int]) -> list[Change]:
        """Note more requests in flight; return what is to be written of them."""
        before = dict(self._in_flight)
        self._in_flight.update((str(key), requests) for key, requests in in_flight.items())
        is_same = all(self._in_flight[name] == before.get(name, 0) for name in self._in_flight)
        if is_same or self._is_new:
            return []  # a heartbeat tells them
        return [Change("f", self.me, None, dumps(self._in_flight))]

    def reap(self, proxies: Collection[str], *, and_forget: bool = False) -> None:
        """End what these hold; *and_forget*: what they have said is forgotten, too."""
        if proxies:
            forget = "1" if and_forget else ""
            self._link.call("reap", GRACE_S, forget, *map(_id_of, proxies))

    # -- shares

    def share(self, asks: Mapping[AccountKey, Ask], now: float) -> dict[AccountKey, Share]:
        """Hold what `core.shares.grant` says of each account, and return that."""
        for _ in range(TRIES):
            if self._is_new:
                self._beat()
            granted = {key: grant(ask, self._held(key), now) for key, ask in asks.items()}
            rows, dead = self._share_rows(asks, granted)
            told = self.me if any(self._is_news(key, granted[key]) for key in granted) else ""
            match self._link.commit(rows, Beside(told=told), running=self.me, dead=dead):
                case Accepted(before):
                    for number, (key, row) in enumerate(
                        zip(granted, rows, strict=True), before + 1
                    ):
                        self._note_share(key, StoredRow(number, 0.0, row.data))
                    return granted
                case Refused(stale, alive, is_dead):
                    for table, name, found in stale:
                        self.note(table, name, found)
                    self._live.update(alive)
                    if is_dead:
                        self._was_dead = not self._beat() or self._was_dead
        raise self._link.busy()

    def _share_rows(
        self, asks: Mapping[AccountKey, Ask], granted: Mapping[AccountKey, Share]
    ) -> tuple[list[Change], set[str]]:
        """Return the rows with what was *granted*, and those whose shares are left out of them."""
        rows: list[Change] = []
        dead: set[str] = set()
        for key, mine in granted.items():
            stored = self._shares.get(key, StoredShares())
            held = {proxy: share for proxy, share in stored.said.items() if proxy in self._live}
            dead |= stored.said.keys() - held.keys() - {self.me}
            if asks[key].limit:
                held[self.me] = mine
            rows.append(Change("share", str(key), stored.version, dumps(held)))
        return rows, dead

    def _is_news(self, key: AccountKey, mine: Share) -> bool:
        """Say whether others can hold more, or less, by what this one holds now."""
        before = self._held(key).get(ME, Share(0, 0, 0.0))
        return (mine.slots, mine.is_short) != (before.slots, before.is_short)

    def _held(self, key: AccountKey) -> dict[str, Share]:
        """Return what is held of an account by those that run."""
        shares = self._shares.get(key, StoredShares()).shares
        held = {proxy: share for proxy, share in shares.items() if proxy in self._live}
        if self.me in shares:
            held[ME] = shares[self.me]
        return held

    def _note_share(self, key: AccountKey, row: StoredRow) -> None:
        shares: dict[str, Share] = {}
        said = loads(row.data) if row.version else {}
        if not isinstance(said, dict):
            self._link.tell_damaged("a share", key)
            said = {}
        for proxy, share in said.items():
            match share:
                case [int(slots), int(wants), int(at) | float(at), *_] if min(slots, wants) >= 0:
                    shares[proxy] = Share(slots, wants, at)
                case _:
                    self._link.tell_damaged("a share", key)
        self._shares[key] = StoredShares(row.version, shares, said)
        if any(share.is_short for share in shares.values()):
            self._wanted.add(key)
        else:
            self._wanted.discard(key)


def _id_of(owner: str) -> str:
    """Return the id of a proxy by what `ids` names it."""
    said = loads(owner.encode())
    named = said.get("of") if isinstance(said, dict) else None
    return named if isinstance(named, str) else owner


def _flight(row: StoredRow) -> dict[AccountKey, int]:
    said = loads(row.data)
    flight: dict[AccountKey, int] = {}
    for name, requests in said.items() if isinstance(said, dict) else ():
        key = account_key(name)
        if key is not None and isinstance(requests, int) and 0 <= requests < 2**31:
            flight[key] = requests
    return flight


# -- what the owner is told of


class FleetNotices:
    """The `NoticeStore` of an engine.

    All that was told of one account, or provider, is one row: what is decided of it depends on
    nothing else.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    def note(
        self, begun: Collection[Subject], ended: Collection[Subject], *, wall_now: float
    ) -> dict[Subject, Verdict]:
        from account_pool.core.notifications import note  # noqa: PLC0415 - rarely wanted

        def decide(
            rows: Mapping[str, bytes],
        ) -> tuple[dict[Subject, Verdict], Mapping[str, bytes]]:
            known = {s: row for about, data in rows.items() for s, row in _read(about, data)}
            verdicts, changed = note(known, begun, ended, wall_now)
            abouts = {subject.about for subject in changed}
            known |= changed
            return verdicts, {about: _write(about, known, rows[about]) for about in abouts}

        abouts = sorted({subject.about for subject in (*begun, *ended)})
        return self._link.change_rows("notices", abouts, decide)

    def take_turn(self, name: str, every_s: float, *, wall_now: float) -> bool:
        def decide(rows: Mapping[str, bytes]) -> tuple[bool, Mapping[str, bytes]]:
            at = loads(rows[name])
            # One further ahead than any could be was taken before the clock was set back.
            if isinstance(at, int | float) and abs(at - wall_now) < every_s:
                return False, {}
            return True, {name: dumps(wall_now)}

        return self._link.change_rows("turns", [name], decide)

    def noted(self) -> list[Subject]:
        rows = (of for name, row in self._link.pages("notices") for of in _read(name, row.data))
        return [subject for subject, row in rows if row.standing]


def _read(about: str, data: bytes) -> Iterator[tuple[Subject, Row]]:
    """Return what *data* says; a newer version may have events of its own."""
    from account_pool.core.notifications import Event, Row, Subject  # noqa: PLC0415 - as above

    known = {event.value for event in Event}
    for part in _listed(data):
        match part:
            case [str(event), str(detail), bool(standing), int(at) | float(at)] if event in known:
                yield Subject(Event(event), about, detail), Row(standing, at)


def _write(about: str, known: Mapping[Subject, Row], before: bytes) -> bytes:
    mine = {subject: row for subject, row in known.items() if subject.about == about}
    read = {(str(subject.event), subject.detail) for subject in mine}
    others = [part for part in _listed(before) if _name(part) not in read]
    return dumps([*others, *([str(s.event), s.detail, r.standing, r.at] for s, r in mine.items())])


def _listed(data: bytes) -> list[Any]:
    parts = loads(data)
    return parts if isinstance(parts, list) else []


def _name(part: object) -> object:
    return tuple(part[:2]) if isinstance(part, list) else None
