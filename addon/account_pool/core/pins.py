"""Which account made a thing that only it knows: a stored answer, a sticky token.

A request that names one can be served by its owner alone. Ids are
kept as hashes: some are tokens, and clients choose how long they are.

Times are seconds by any one clock and passed in; rows for the store carry wall time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from account_pool.core.account import AccountKey

#: Ids that are remembered at most; the one not named for longest goes first.
MAX_PINS = 20_000
#: Times of a row, from clock to clock and back, differ by less than this, seconds.
ROUNDED_S = 0.01

#: A pin as the store keeps it: hash, account ("provider/label"), last used (wall seconds).
PinRow = tuple[str, str, float]


def _ignore(_pin: str) -> None:
    """Nobody wants to know."""


def pin_of(provider: str, thing: str) -> str:
    """Return what *thing* (an id, a token) of *provider* is remembered by."""
    return blake2b(f"{provider}\0{thing}".encode(errors="replace"), digest_size=16).hexdigest()


@dataclass(slots=True, kw_only=True, eq=False)
class Pins:
    """Owners by the hash of what they made, least recently used first.

    Attributes:
        max_pins: see MAX_PINS.
        changed: told the hash of each pin that is new or removed; quick, raises nothing.
    """

    max_pins: int = MAX_PINS
    changed: Callable[[str], None] = _ignore
    _known: OrderedDict[str, tuple[AccountKey, float]] = field(default_factory=OrderedDict)
    #: named since `note_used`
    _named: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, owner: AccountKey, thing: str, now: float) -> None:
        """Note that *owner* made *thing*."""
        pin = pin_of(owner.provider, thing)
        known = self._known.get(pin)
        self._known[pin] = (owner, now)
        self._known.move_to_end(pin)
        if known is None or known[0] != owner:
            self.changed(pin)
        self._make_room()

    def owner(self, provider: str, thing: str) -> AccountKey | None:
        """Return who made *thing*, None if that is not known; it was used then."""
        pin = pin_of(provider, thing)
        known = self._known.get(pin)
        if known is None:
            return None
        self._known.move_to_end(pin)
        self._named.add(pin)
        return known[0]

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
