"""Which accounts file serves: a table of what is there and what follows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.config.accounts_file import (
    Confirmed,
    Local,
    Named,
    Why,
    search,
    skip_line,
)
from account_pool.config.problems import ConfigError

OWN = Path("/home/me/.config/account-pool/accounts.yaml")
HERE = Path("/work/accounts.yaml")


def option(exists: bool = True) -> Named:
    return Named(Path("/a.yaml"), "pool_accounts", exists)


def variable(exists: bool = True) -> Named:
    return Named(Path("/b.yaml"), "ACCOUNT_POOL_ACCOUNTS", exists)


def local(confirmed: Confirmed, checkout: bool = False) -> Local:
    return Local(HERE, confirmed, checkout)


YES, NO, CHANGED = (local(c) for c in (Confirmed.YES, Confirmed.NO, Confirmed.CHANGED))


@pytest.mark.parametrize(
    ("named", "here", "own", "path", "why"),
    [
        ([option(), variable()], YES, True, "/a.yaml", Why.NAMED),
        ([variable()], YES, True, "/b.yaml", Why.NAMED),
        # Named and not there: no reason to look further.
        ([option(exists=False), variable()], YES, True, "/a.yaml", Why.NAMED),
        ([variable(exists=False)], YES, True, "/b.yaml", Why.NAMED),
        ([], YES, True, HERE, Why.LOCAL),
        ([], NO, True, OWN, Why.OWN),
        ([], CHANGED, True, OWN, Why.OWN),
        ([], local(Confirmed.NO, checkout=True), True, HERE, Why.LOCAL),
        ([], None, True, OWN, Why.OWN),
        ([], None, False, None, Why.NONE),
        ([], NO, False, None, Why.NONE),
    ],
)
def test_the_first_hit_wins(named, here, own, path, why):
    found = search(named=named, local=here, own=OWN, own_exists=own)
    assert (found.path, found.why) == (Path(path) if path else None, why)
    assert found.target == (found.path or OWN)


@pytest.mark.parametrize("named", [option(exists=False), variable(exists=False)])
def test_a_file_that_was_named_and_is_not_there_is_an_error_that_says_who_named_it(named):
    found = search(named=[named], local=YES, own=OWN, own_exists=True)
    with pytest.raises(ConfigError, match=f"{named.path}: the file does not exist; {named.by}"):
        found.require()


@pytest.mark.parametrize(("here", "why"), [(NO, "has not been confirmed"), (CHANGED, "changed")])
def test_what_was_not_confirmed_is_named_with_the_remedy(here, why):
    found = search(named=[], local=here, own=OWN, own_exists=True)
    assert found.skipped == here
    line = skip_line(here)
    assert line.startswith(f"{HERE} is skipped: it ")
    assert why in line
    assert "account-pool check --trust" in line


def test_only_what_the_search_found_here_is_looked_at_again():
    """What was named, the user's own and the product's checkout need no confirmation."""
    cases = [
        ([], YES, True),
        ([], local(Confirmed.NO, True), False),
        ([option()], YES, False),
        ([], None, False),
    ]
    for named, here, again in cases:
        found = search(named=named, local=here, own=OWN, own_exists=True)
        assert found.confirm is again


def test_your_own_file_needs_no_confirmation_where_you_stand_beside_it():
    beside = Local(OWN, Confirmed.NO)
    found = search(named=[], local=beside, own=OWN, own_exists=True)
    assert (found.why, found.skipped) == (Why.OWN, None)


@given(
    named=st.lists(st.sampled_from([option(), variable(exists=False)]), max_size=2),
    here=st.sampled_from([None, NO, CHANGED]),
    own=st.booleans(),
)
def test_what_nobody_confirmed_never_serves(named, here, own):
    assert search(named=named, local=here, own=OWN, own_exists=own).path != HERE
