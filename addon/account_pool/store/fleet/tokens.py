"""The newest tokens of logins in an engine, sealed, for all proxies of a fleet.

What becomes of the rows of a login (`token_rows.py`) is decided in `store/agreed.py` from
what was read, by the engine's time, and written only where nothing has changed since; else it is
decided again.

What was seen of each login stays in memory, and what an engine does not have yet on the local
disk (`Unsaved`). An engine that knows less gets it: it was emptied, or took over without the
last writes of the one before it. So whenever an engine begins, nobody refreshes for a moment, in
which all proxies write what they know: it may have forgotten that a refresh token is spent.

An engine that cannot be asked grants no claim, so nothing is refreshed meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from account_pool.core import claims
from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.filesystem import read_file, reason_of, sync, write_new
from account_pool.store import agreed
from account_pool.store.agreed import Decision, Held, Login, Result
from account_pool.store.fleet.connection import CONNECT_TIMES
from account_pool.store.fleet.engine import MAX_PAUSE_S, Engine
from account_pool.store.fleet.token_rows import (
    MAX_CHARS,
    Era,
    Keyring,
    Reply,
    TokenRows,
    era_of,
    sealed_with,
)
from account_pool.store.machine import is_gone
from account_pool.store.pool_state import COMMAND_TIMEOUT_S, TIMEOUT_S, Address
from account_pool.store.store import DamagedError, KeptError, StoreError, Tokens

logger = logging.getLogger(__name__)

#: How long no claim is granted after an engine has begun, seconds: as long as it takes all
#: proxies to notice, and to write what they know. So for the usual time of an answer, and how
#: much longer for one more second of that: to connect to one host, and to be answered there.
SETTLE_S = MAX_PAUSE_S + 2.0
SETTLE_TIMES = CONNECT_TIMES + 2
#: No proxy takes longer, whatever an engine says of one.
MAX_SETTLE_S = 3600.0
#: How long a decision counts after what it was made of was read, seconds.
DECISION_S = 5.0
#: How often a decision is made again because others were faster.
TRIES = 50
#: A difference of clocks that does not matter, seconds: a round trip takes part of it.
CLOCK_JITTER_S = 0.5


def settle_s(address: Address, others_s: float = 0.0) -> float:
    """Return how long a proxy with this URL may take to notice that its engine has begun.

    At least *others_s*, which others take.
    """
    hosts = len(address.hosts) + (address.kind == "sentinel")  # and the server that one names
    more_s = SETTLE_TIMES * max(hosts * address.timeout_s - TIMEOUT_S, 0.0)
    # An engine that has begun may refuse the password that is known: it is read anew.
    asked = (address.references.get(name) for name in ("password", "sentinel_password"))
    commands = sum(one is not None and one.kind == "command" for one in asked)
    return max(SETTLE_S + more_s + COMMAND_TIMEOUT_S * commands, others_s)


class Adopted(Enum):
    """What became of tokens that another store has."""

    TAKEN = "they are ours now"
    KNOWN = "we had others"
    BUSY = "somebody refreshes the login now"


class _Found(Login, frozen=True, kw_only=True):
    """A login as its rows say it, in an era that began at *since*."""

    since: float
    raw: tuple[bytes, ...]


class FleetTokens:
    """A `TokenStore` in an engine. The engine is not asked before a method is called."""

    def __init__(
        self,
        engine: Engine,
        keyring: Keyring,
        unsaved: Unsaved,
        *,
        wall_clock: Callable[[], float] = time.time,
        is_gone: Callable[[str], bool] = is_gone,
    ) -> None:
        """Use *engine*, which somebody else closes.

        *unsaved*: where answers are kept until the engine has them. The rest is for tests.
        """
        self._rows = TokenRows(engine, keyring)
        self._keyring = keyring
        self._unsaved = unsaved
        self._address, self._engine_now = engine.address, engine.now
        #: the longest time that any other proxy takes to notice a beginning, as far as is known
        self._slowest_s = 0.0
        self._wall_clock = wall_clock
        self._is_gone = is_gone
        self._lock = threading.Lock()
        #: what was seen, by family, with times of the engine's clock
        self._tokens: dict[str, Held] = {}
        self._claims: dict[str, Claim] = {}
        #: the era in which that was
        self._era: bytes | None = None
        #: families of which the engine may know less than we do
        self._owed: set[str] = set()
        #: files of `unsaved` that a save is busy with
        self._saving: set[Path] = set()
        #: how far the engine's clock is ahead of our wall clock
        self._ahead = 0.0
        #: what was logged
        self._said: set[str] = set()

    def load(self, family: str) -> Tokens | None:
        found = self._decide(family, lambda found: Decision(found.tokens))
        return None if found is None else found[0].shifted(-self._ahead)

    def claim(self, family: str, owner: str, *, token: Secret, is_over: bool) -> Claim | Taken:
        def decide(found: _Found) -> Decision[Claim | Taken]:
            return agreed.claim_login(
                found,
                owner,
                token=token,
                is_over=is_over,
                is_gone=self._is_gone,
                begun_at=found.since,
                settle_s=settle_s(self._address, self._slowest_s),
            )

        return self._decide(family, decide)

    def sending(self, family: str, fence: int, token: Secret) -> bool:
        return self._decide(family, lambda found: agreed.send_token(found, fence, token))

    def save(
        self, family: str, tokens: Tokens, *, replaces: Secret | None = None, fence: int = 0
    ) -> bool:
        def decide(found: _Found) -> Decision[bool]:
            kept = tokens.shifted(self._ahead)
            return agreed.save_tokens(found, kept, replaces=replaces, fence=fence)

        path = self._write_down(family, tokens.shifted(self._ahead), fence)
        try:
            done = self._decide(family, decide, lasting=True)
        except StoreError as error:
            if path is None:
                raise
            raise KeptError(f"{error}; until then, new tokens are kept in {path.parent}") from None
        finally:
            self._saving.discard(path or Path())
        if path is not None:
            self._unsaved.drop(path)
        return done

    def release(self, family: str, fence: int, *, unknown: bool = False) -> None:
        self._decide(family, lambda found: agreed.release_claim(found, fence, unknown=unknown))

    def adopt(self, family: str, tokens: Tokens, fence: int, claim: Claim) -> Adopted:
        """Keep tokens that another store has, got under *fence*, where we know none of *family*.

        *claim* is the last one there, and is over.
        """

        def decide(found: _Found) -> Decision[Adopted]:
            if found.tokens is not None:
                # They may be ours, and the reply was lost.
                same = found.tokens[0].refresh == tokens.refresh
                return Decision(Adopted.TAKEN if same else Adopted.KNOWN)
            if found.is_held(self._is_gone):
                return Decision(Adopted.BUSY)
            last = max(fence, claim.fence, found.claim.fence)
            kept = tokens.shifted(self._ahead), fence
            return Decision(Adopted.TAKEN, kept, replace(claim, fence=last, owner="", until=0.0))

        return self._decide(family, decide, lasting=True)

    def keep(self) -> None:
        try:
            for _ in range(TRIES):
                if self._is_same_era(self._rows.read_era()):
                    break
            else:
                raise _busy()
            self._owe({entry.family for entry in self._unsaved.entries()})
            self._put_back()
        except StoreError as error:
            # Nothing is here alone: each answer is on the disk until the engine has it.
            raise KeptError(str(error)) from None

    def close(self) -> None:
        """Nothing is open here."""

    # -- a decision, and what is written

    def _decide(
        self, family: str, decide: Callable[[_Found], Decision[Result]], *, lasting: bool = False
    ) -> Result:
        """Return what *decide* makes of the rows of *family*, once that is written."""
        for _ in range(TRIES):
            found = self._look(family)
            then = decide(found)
            if (then.tokens is None and then.claim is None) or self._swap(
                family, found, then.tokens, then.claim, lasting=lasting
            ):
                self._note(family, then.tokens or found.tokens, then.claim or found.claim)
                return then.result
        raise _busy()

    def _look(self, family: str) -> _Found:
        """Return the rows of *family*, once the engine has what we know of it."""
        for _ in range(TRIES):
            reply = self._rows.read(family)
            if not self._is_same_era(reply):
                self._put_back()
                continue
            found = self._found(family, reply)
            unsaved = [e for e in self._unsaved.entries(family) if e.path not in self._saving]
            if self._is_mended(family, found, unsaved):
                for entry in unsaved:
                    if entry.fence <= found.fence:
                        self._unsaved.drop(entry.path)
                return found
        raise _busy()

    def _found(self, family: str, reply: Reply) -> _Found:
        """Read what was answered. What we know takes the place of a damaged row."""
        era, tokens, claim = reply.values
        try:
            held = self._rows.tokens_of(family, tokens)
        except DamagedError:
            if family not in self._tokens:
                raise
            held = None
        try:
            claimed = self._rows.claim_of(family, claim)
        except DamagedError:
            if family not in self._claims:
                raise
            claimed = Claim()
        began = era_of(era)
        since = reply.now if began is None else began.since
        return _Found(now=reply.now, tokens=held, claim=claimed, since=since, raw=reply.values)

    def _is_mended(self, family: str, found: _Found, unsaved: Sequence[Entry]) -> bool:
        """Write what the engine does not know, and return whether that was nothing."""
        best, claim = self._tokens.get(family), self._claims.get(family)
        for entry in unsaved:
            if entry.fence > max(found.fence, -1 if best is None else best[1]):
                try:
                    what = f"{entry.path} is"
                    best = self._rows.open(family, entry.fence, entry.sealed, what), entry.fence
                except DamagedError as error:
                    self._say(str(error))
        tokens = None if best is None or best[1] <= found.fence else best
        if tokens is None and self._is_to_be_sealed_anew(found):
            tokens = found.tokens
        if claim is None or claim.fence <= found.claim.fence:
            claim = None
        if tokens is not None:
            claim = claims.answered(claim or found.claim, tokens[1])
        if tokens is None and claim is None:
            return True
        self._swap(family, found, tokens, claim, lasting=True)
        return False

    def _is_to_be_sealed_anew(self, found: _Found) -> bool:
        """Say whether the key was changed to the one that we seal with, and these have another."""
        era = era_of(found.raw[0])
        if found.tokens is None or era is None or era.key != self._keyring.id:
            return False
        return sealed_with(found.raw[1]) != era.key

    def _swap(
        self,
        family: str,
        found: _Found,
        tokens: Held | None,
        claim: Claim | None,
        *,
        lasting: bool = False,
    ) -> bool:
        """Write rows, unless others have meanwhile. *lasting*: a replica has them, too."""
        until = found.now + DECISION_S
        return self._rows.write(family, found.raw, tokens, claim, until=until, lasting=lasting)

    def _note(self, family: str, tokens: Held | None, claim: Claim) -> None:
        with self._lock:
            known, had = self._tokens.get(family), self._claims.get(family)
            if tokens is not None and (known is None or known[1] <= tokens[1]):
                self._tokens[family] = tokens
            if had is None or had.fence <= claim.fence:
                self._claims[family] = claim

    # -- eras

    def _is_same_era(self, reply: Reply) -> bool:
        """Say whether the era is the one we know; if not, enter it, or begin one.

        Raises StoreError.
        """
        self._set_clock()
        raw = reply.values[0]
        era = era_of(raw)
        if era is None or (reply.run and era.run != reply.run):
            key = self._keyring.id if era is None else era.key
            self._rows.write_era(
                raw,
                Era(
                    run=reply.run,
                    since=reply.now,
                    key=key,
                    id=uuid.uuid4().hex,
                    settle_s=settle_s(self._address, self._slowest_s),
                ),
            )
            return False
        self._keyring.require(era.key, "the logins of this pool are")
        if raw == self._era:
            return True
        with self._lock:
            is_first, self._era = self._era is None, raw
            self._owed |= self._tokens.keys() | self._claims.keys()
        # The key is being changed: from now on a proxy without the new one is refused.
        key = self._keyring.id if is_first else era.key
        # Whoever refreshes waits for the slowest of all.
        self._slowest_s = max(self._slowest_s, min(era.settle_s, MAX_SETTLE_S))
        longest_s = settle_s(self._address, self._slowest_s)
        if key != era.key or era.settle_s < longest_s:
            self._rows.write_era(raw, replace(era, key=key, settle_s=longest_s))
        return False

    def _put_back(self) -> None:
        """Have the engine know what we know of all logins."""
        failed: dict[str, StoreError] = {}
        while (family := self._next_owed()) is not None:
            try:
                self._look(family)
            except DamagedError as error:
                self._say(str(error))
            except StoreError as error:
                # It may be about this login only.
                failed[family] = error
        self._owe(failed)
        if failed:
            raise next(iter(failed.values()))

    def _owe(self, families: Collection[str]) -> None:
        with self._lock:
            self._owed.update(families)

    def _next_owed(self) -> str | None:
        with self._lock:
            return self._owed.pop() if self._owed else None

    # -- what is on the local disk

    def _write_down(self, family: str, tokens: Tokens, fence: int) -> Path | None:
        """Keep tokens on the disk until the engine has them; None where that cannot be done."""
        try:
            sealed = self._rows.seal(family, tokens, fence)
            path = self._unsaved.put(family, fence, sealed, mark=tokens.refresh.digest())
        except OSError as error:
            self._say(
                f"{self._unsaved.directory} cannot be written ({reason_of(error)}): while the "
                "state engine is away, a refreshed login is in memory only"
            )
            return None
        self._saving.add(path)
        return path

    # -- clocks and words

    def _set_clock(self) -> None:
        # Not by the time in one answer, which may have been on its way for long.
        ahead = round(self._engine_now() - self._wall_clock(), 3)
        if abs(ahead - self._ahead) > CLOCK_JITTER_S:
            self._ahead = ahead

    def _say(self, text: str) -> None:
        """Log *text* once."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("account-pool: %s", text)


def _busy() -> StoreError:
    return StoreError("the state engine is busy: other proxies keep changing the same login")


# -- what the engine does not have yet, on the local disk

_SUFFIX, _PARTIAL = ".sealed", ".partial"
#: To write an answer takes some milliseconds; who has not done it by then was killed, seconds.
PARTIAL_S = 60.0


class Entry(NamedTuple):
    """An answer that was kept: the sealed tokens of a login, got under the claim *fence*."""

    path: Path
    family: str
    fence: int
    sealed: str


class Unsaved(Struct, frozen=True):
    """The answers of token servers that the engine does not have yet, of one *pool*, sealed.

    The refresh token of an answer is the login, and the one before it is spent. So it is here
    before anything else is done with it, and until it is in the engine: it survives an engine
    that is away, and a proxy that is killed or restarted meanwhile. Any process of this machine
    may bring it there. The *directory* is of all pools, private to its owner.
    """

    directory: Path
    pool: str

    def put(self, family: str, fence: int, sealed: str, *, mark: str) -> Path:
        """Keep an answer; it is on the disk after the return. Raises OSError.

        *mark* tells it from others: one that is there already stays as it is.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{self._prefix()}{_digest(family)}-{fence}-{_digest(mark)}"
        path = self.directory / f"{name}{_SUFFIX}"
        if path.exists():
            return path
        partial = self.directory / f"{name}-{uuid.uuid4().hex}{_PARTIAL}"
        text = json.dumps({"family": family, "fence": fence, "sealed": sealed})
        try:
            write_new(partial, text).replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        sync(self.directory)
        return path

    def entries(self, family: str | None = None) -> Iterator[Entry]:
        """Return what is kept, of *family* only if that is given. Files of others are left."""
        prefix = self._prefix() + ("" if family is None else f"{_digest(family)}-")
        try:
            names = sorted(os.listdir(self.directory))  # noqa: PTH208 - there may be none
        except OSError:
            return
        for name in names:
            path = self.directory / name
            if name.startswith(prefix) and name.endswith(_PARTIAL) and _was_left(path):
                path = _completed(path)
            if name.startswith(prefix) and path.suffix == _SUFFIX:
                entry = _read_entry(path)
                if entry is not None and family in (None, entry.family):
                    yield entry

    def drop(self, path: Path) -> None:
        """Forget an answer, which the engine has, or which was overtaken."""
        with contextlib.suppress(OSError):
            path.unlink()

    def _prefix(self) -> str:
        return f"{_digest(self.pool)}-"


def _digest(name: str) -> str:
    return sha256(name.encode(errors="backslashreplace")).hexdigest()[:16]


def _was_left(path: Path) -> bool:
    """Say whether who began to write the file was killed meanwhile."""
    try:
        return abs(time.time() - path.stat().st_mtime) > PARTIAL_S
    except OSError:
        return False


def _completed(partial: Path) -> Path:
    """Give a file that was left its name, which is returned; without all of an answer it goes."""
    path = partial.with_name(partial.name.rpartition("-")[0] + _SUFFIX)
    with contextlib.suppress(OSError):
        if _read_entry(partial) is None:
            partial.unlink()
        else:
            partial.replace(path)
    return path


def _read_entry(path: Path) -> Entry | None:
    """Return what is in *path*; None for what nobody wrote like that, or is gone by now."""
    try:
        match json.loads(read_file(path, 2 * MAX_CHARS)):
            case {"family": str(family), "fence": int(fence), "sealed": str(sealed)}:
                return Entry(path, family, fence, sealed)
    except (OSError, ValueError, RecursionError):
        pass
    return None
