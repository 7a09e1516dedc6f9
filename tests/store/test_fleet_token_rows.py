"""What is sealed opens where it belongs, with the key it was sealed with, and nowhere else."""

from __future__ import annotations

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.credential import Secret
from account_pool.store.fleet.token_rows import Keyring, SealingKeyError
from account_pool.store.store import DamagedError, StoreError

RAW = bytes(range(32))
HEX, BASE64 = RAW.hex(), base64.b64encode(RAW).decode()
RING = Keyring.read(Secret(BASE64))
OTHER = Keyring.read(Secret("ab" * 32))


@pytest.mark.parametrize(
    "text",
    [
        HEX,
        HEX.upper(),
        BASE64,
        BASE64.rstrip("="),
        base64.urlsafe_b64encode(RAW).decode(),
        f"  {BASE64}\r\n",
        f"{BASE64},{HEX}",
    ],
)
def test_a_key_is_the_same_however_it_is_written(text: str) -> None:
    ring = Keyring.read(Secret(text))
    assert ring.ids == RING.ids
    assert ring.open(RING.seal(b"x", bound_to="here"), bound_to="here", what="it is") == b"x"


@pytest.mark.parametrize("text", ["", " ", "password", HEX[:-2], BASE64[:-4], "é" * 32, f"{HEX},x"])
def test_what_is_no_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(SealingKeyError) as caught:
        Keyring.read(Secret(text))
    assert str(caught.value) == (
        "a sealing key is 32 random bytes as base64 or hex; make one with: openssl rand -base64 32"
    )


def test_no_two_are_the_same_and_a_key_is_shown_nowhere() -> None:
    assert RING.seal(b"x", bound_to="here") != RING.seal(b"x", bound_to="here")
    assert HEX not in repr(RING) and BASE64 not in repr(RING)


@given(plain=st.binary(), bound=st.text(), elsewhere=st.text())
def test_it_opens_where_it_belongs(plain: bytes, bound: str, elsewhere: str) -> None:
    sealed = RING.seal(plain, bound_to=bound)
    assert RING.open(sealed, bound_to=bound, what="it is") == plain
    if elsewhere != bound:
        with pytest.raises(DamagedError, match="it is damaged"):
            RING.open(sealed, bound_to=elsewhere, what="it is")


def test_nothing_in_it_can_be_changed() -> None:
    sealed = RING.seal(b"tokens", bound_to="here")
    for at in range(len(sealed)):
        for other in {*string.ascii_letters, *string.digits, *"+/=: \né"} - {sealed[at]}:
            with pytest.raises(StoreError):
                RING.open(sealed[:at] + other + sealed[at + 1 :], bound_to="here", what="it is")


@given(st.text())
def test_what_nobody_sealed_is_damaged(text: str) -> None:
    with pytest.raises(StoreError):
        RING.open(text, bound_to="here", what="it is")


def test_another_key_is_named() -> None:
    sealed = RING.seal(b"x", bound_to="here")
    with pytest.raises(StoreError, match=f"{RING.id}, and this proxy was given {OTHER.id};"):
        OTHER.open(sealed, bound_to="here", what="it is")
    both = Keyring.read(Secret("ab" * 32), Secret(HEX))
    assert both.id == OTHER.id
    assert both.open(sealed, bound_to="here", what="it is") == b"x"


def test_a_later_form_is_told() -> None:
    with pytest.raises(StoreError, match="newer version of the account pool; upgrade"):
        RING.open("2:anything", bound_to="here", what="it is")
