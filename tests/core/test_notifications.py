"""What is told, once, and when it is over; nothing twice within ten minutes."""

from __future__ import annotations

from collections.abc import Collection

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.accounts import Accounts
from account_pool.core.credential import Credential, Secret
from account_pool.core.headroom import Window
from account_pool.core.notifications import (
    QUIET_S,
    Event,
    Notification,
    Row,
    Subject,
    Verdict,
    Watch,
    find,
    note,
)
from account_pool.core.outcome import BY_HAND, Scope
from account_pool.core.pool import Pool
from tests.core.helpers import FORBIDDEN, PROVIDER, account, quota

WALL = 1_700_000_000.0
HELD_S = 30.0


class Told:
    """A pool, a log of what was told, and looks at both."""

    def __init__(self, *labels: str) -> None:
        self.pool = Pool()
        self.now = 1000.0
        self.problem: str | None = None
        self.ends: dict[AccountKey, float] = {}
        self.rows: dict[Subject, Row] = {}
        self.watch = Watch()
        for label in labels:
            self.accounts.add(account(label), CREDENTIALS, now=self.now)

    @property
    def accounts(self) -> Accounts:
        return self.pool.accounts

    def look(self, watch: Watch | None = None) -> list[Notification]:
        watch = watch or self.watch
        found = find(
            self.accounts,
            now=self.now,
            wall_now=WALL + self.now,
            held_s=HELD_S,
            before=watch.standing,
            state_problem=self.problem,
            login_ends=self.ends,
        )
        verdicts, changed = note(self.rows, *watch.compare(found, self.now), self.now)
        self.rows |= changed
        return list(watch.took(found, verdicts, self.now))

    def events(self, watch: Watch | None = None) -> list[str]:
        return [f"{t.subject.event} {t.subject.about}".rstrip() for t in self.look(watch)]

    def disable(self, label: str) -> None:
        self.pool.health.mark_failure(key(label), FORBIDDEN, now=self.now)

    def cool(self, label: str, seconds: float, model: str | None = None) -> None:
        limit = quota(seconds, scope=Scope.MODEL if model else Scope.ACCOUNT)
        self.pool.health.mark_cooldown(key(label), limit, now=self.now, model=model)

    def windows(self, label: str, *windows: Window) -> None:
        state = self.accounts.get(key(label))
        state.headroom = state.headroom.updated(windows, self.now)


CREDENTIALS = {"key": Credential(kind="key", secret=Secret("sk-fake-one-000"))}


def key(label: str) -> AccountKey:
    return AccountKey(PROVIDER, label)


def window(used: float, name: str = "5h", at: float = 1000.0, **changes: object) -> Window:
    made = Window(name, 1 - used, at, reset_at=at + 7200.0, length_s=18_000.0)
    return made._replace(**changes)


def test_nothing_is_told_of_a_pool_that_serves() -> None:
    told = Told("one", "two")
    told.cool("one", 3600)
    told.windows("one", window(0.7))
    assert told.look() == []


def test_an_account_that_is_disabled_and_back() -> None:
    told = Told("one", "two")
    told.disable("one")
    [first] = told.look()
    assert first.text == "openai/one is disabled: 403 suspended"
    assert (first.provider, first.account) == ("openai", key("one"))
    assert told.look() == []
    told.accounts.enable(key("one"), now=told.now)
    [back] = told.look()
    assert (back.subject, back.text) == (
        Subject(Event.BACK, "openai/one"),
        "openai/one is back in use",
    )


def test_what_was_disabled_by_hand_is_known_to_whoever_did_it() -> None:
    told = Told("one")
    told.pool.health.mark_failure(key("one"), replace(FORBIDDEN, signal=BY_HAND), now=told.now)
    assert told.look() == []


def test_it_is_not_back_without_a_credential() -> None:
    told = Told("one", "two")
    told.disable("one")
    told.look()
    told.accounts.enable(key("one"), now=told.now)
    told.accounts.set_credentials(key("one"), {}, now=told.now, problem="logged out")
    assert told.events() == ["login_lapsed openai/one"]


def test_a_login_that_lapsed_is_told_and_one_that_is_fetched_is_not() -> None:
    told = Told("one", "two")
    told.accounts.set_credentials(key("one"), {}, now=told.now, problem="offline", passing=True)
    assert told.look() == []
    problem = "the refresh was refused: sk-fake-secret-000000000"
    told.accounts.set_credentials(key("one"), {}, now=told.now, problem=problem)
    [lapsed] = told.look()
    assert lapsed.text == "openai/one has no credential: the refresh was refused: [not shown]"
    # While it is fetched anew nothing is known.
    told.accounts.set_credentials(key("one"), {}, now=told.now, pending=True)
    assert told.look() == []
    told.accounts.set_credentials(key("one"), CREDENTIALS, now=told.now)
    assert told.events() == ["back openai/one"]


def test_the_end_of_a_login_is_told_days_before() -> None:
    told = Told("one")
    told.ends = {key("one"): WALL + told.now + 4 * 86400}
    assert told.look() == []
    told.now += 1.5 * 86400
    [ending] = told.look()
    assert ending.text == "openai/one: its login ends in 2 d 12 h; log in again"
    assert ending.until == told.now + 2.5 * 86400


def test_all_on_cooldown_for_longer_than_requests_are_held() -> None:
    told = Told("one", "two")
    told.cool("one", 7200)
    told.cool("two", HELD_S - 5)
    assert told.look() == []
    told.now += HELD_S
    told.cool("two", 3600)
    [all_of] = told.look()
    begins = "openai: all 2 accounts are on cooldown; openai/two returns first, in "
    assert all_of.text.startswith(begins)
    assert (all_of.account, all_of.model) == (key("two"), None)
    told.accounts.clear_cooldown(key("two"), now=told.now)
    [back] = told.look()
    assert back.text == "openai: an account can serve again"


def test_all_on_cooldown_for_one_model() -> None:
    told = Told("one", "two")
    told.accounts.add(account("three", "gpt-4*"), CREDENTIALS, now=told.now)
    told.cool("one", 3600, "gpt-5")
    told.cool("two", 3600, "gpt-5")
    [all_of] = told.look()
    assert (all_of.model, all_of.subject.detail) == ("gpt-5", "gpt-5")
    assert "all 2 accounts are on cooldown for gpt-5" in all_of.text


def test_a_window_is_told_at_its_marks() -> None:
    told = Told("one")
    told.windows("one", window(0.5, "minute", length_s=60.0), window(0.81))
    [first] = told.look()
    assert (first.subject.event, first.window, first.used) == (Event.WINDOW_80, "5h", 0.81)
    assert first.text == "openai/one has used 81% of its window 5h, it is reset in 2 h"
    told.windows("one", window(0.79), window(0.99, "minute", length_s=60.0, reset_at=1060.0))
    told.windows("one", window(0.82))
    assert told.look() == []
    told.windows("one", window(0.96))
    assert told.events() == ["window_95 openai/one"]
    told.now += 7201
    assert told.look() == []
    told.windows("one", window(0.99, at=told.now))
    assert told.events() == ["window_95 openai/one"]


def test_a_window_that_hovers_at_its_mark_is_told_once() -> None:
    told = Told("one")
    events = []
    for used in (0.81, 0.79, 0.82, 0.78, 0.81):
        told.windows("one", window(used))
        events += told.events()
        told.now += QUIET_S
    assert events == ["window_80 openai/one"]


def test_a_state_in_memory_is_told_and_its_end() -> None:
    told = Told("one")
    told.problem = "the disk is full"
    [memory] = told.look()
    assert memory.text == "cooldowns and sessions are kept in memory only: the disk is full"
    told.problem = None
    assert [t.text for t in told.look()] == ["the state can be written again"]


def test_an_account_that_flaps_is_told_once_in_ten_minutes() -> None:
    told = Told("one", "two")
    counts: dict[str, int] = {}
    for minute in range(60):
        told.now = 1000.0 + 60 * minute
        if minute % 2:
            told.accounts.enable(key("one"), now=told.now)
        else:
            told.disable("one")
        for event in told.events():
            counts[event] = counts.get(event, 0) + 1
    assert counts == {"disabled openai/one": 6, "back openai/one": 6}


def test_what_began_too_soon_is_told_later_if_it_still_stands() -> None:
    told = Told("one", "two")
    told.disable("one")
    told.look()
    told.accounts.enable(key("one"), now=told.now)
    told.look()
    told.disable("one")
    assert told.look() == []
    told.now += QUIET_S
    assert told.events() == ["disabled openai/one"]


def test_of_two_proxies_on_one_log_one_tells() -> None:
    told, other = Told("one", "two"), Watch()
    told.disable("one")
    assert told.events() == ["disabled openai/one"]
    assert told.events(other) == []
    told.accounts.enable(key("one"), now=told.now)
    assert told.events(other) == ["back openai/one"]
    assert told.events() == []


def test_a_restart_tells_nothing_again_and_what_is_over() -> None:
    told = Told("one", "two")
    told.disable("one")
    told.look()
    standing = [subject for subject, row in told.rows.items() if row.standing]
    assert told.events(Watch(standing)) == []
    told.accounts.enable(key("one"), now=told.now)
    assert told.events(Watch(standing)) == ["back openai/one"]


def test_an_account_that_was_removed_is_not_back() -> None:
    told = Told("one", "two")
    told.disable("one")
    told.look()
    told.accounts.remove(key("one"), now=told.now)
    assert told.look() == []


SUBJECTS = st.sampled_from(
    [Subject(event, about, detail) for event in Event for about in "ab" for detail in ("", "x")]
)


@given(st.lists(st.tuples(st.booleans(), SUBJECTS, st.floats(0, 900))))
def test_no_event_of_an_account_is_told_twice_in_ten_minutes(
    happens: Collection[tuple[bool, Subject, float]],
) -> None:
    rows: dict[Subject, Row] = {}
    told: dict[tuple[Event, str], float] = {}
    now = WALL
    for begins, subject, seconds in happens:
        now += seconds
        verdicts, changed = note(rows, [subject] * begins, [subject] * (not begins), now)
        rows |= changed
        if verdicts[subject] is Verdict.TELL:
            of = subject[:2] if begins else (Event.BACK, subject.about)
            assert now - told.get(of, 0.0) >= QUIET_S
            told[of] = now
