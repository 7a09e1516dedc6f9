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
    ("named", "here", "own", "path"),
    [
        ([option(), variable()], YES, True, "/a.yaml"),
        ([variable()], YES, True, "/b.yaml"),
        # Named and not there: no reason to look further.
        ([option(exists=False), variable()], YES, True, "/a.yaml"),
        ([variable(exists=False)], YES, True, "/b.yaml"),
        ([], YES, True, HERE),
        ([], NO, True, OWN),
        ([], CHANGED, True, OWN),
        ([], local(Confirmed.NO, checkout=True), True, HERE),
        ([], None, True, OWN),
        ([], None, False, None),
        ([], NO, False, None),
    ],
)
def test_the_first_hit_wins(named, here, own, path):
    found = search(named=named, local=here, own=OWN, own_exists=own)
    assert found.path == (Path(path) if path else None)
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
    assert (found.path, found.skipped) == (OWN, None)


@given(
    named=st.lists(st.sampled_from([option(), variable(exists=False)]), max_size=2),
    here=st.sampled_from([None, NO, CHANGED]),
    own=st.booleans(),
)
def test_what_nobody_confirmed_never_serves(named, here, own):
    assert search(named=named, local=here, own=OWN, own_exists=own).path != HERE
