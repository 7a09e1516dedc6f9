"""A secret is seen by who calls `reveal()`, and by nobody else."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from pprint import pformat
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from account_pool.core.credential import (
    MASK,
    Credential,
    Secret,
    SentSecrets,
    are_of_others,
    identity,
    is_plausible_end,
    mask,
    mask_fields,
    secrets_of,
)

VALUE = "sk-live-4f7e"
SECRET = Secret(VALUE)
CREDENTIAL = Credential(kind="key", secret=SECRET, companions={"account_id": "acct-1"})


def test_reveal_gives_the_value() -> None:
    assert SECRET.reveal() == VALUE


@pytest.mark.parametrize("holder", [SECRET, CREDENTIAL], ids=["secret", "credential"])
@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        "{}".format,
        "{!r}".format,
        "{!s}".format,
        "{!a}".format,
        lambda holder: f"{holder}",
        lambda holder: f"{holder!r}",
        lambda holder: "%s" % holder,  # noqa: UP031
        lambda holder: "%r" % (holder,),  # noqa: UP031
        ascii,
        pformat,
        lambda holder: str([holder]),
        lambda holder: str({"token": holder}),
        lambda holder: json.dumps({"token": holder}, default=str),
        lambda holder: json.dumps({"token": holder}, default=repr),
    ],
)
def test_text_shows_a_mask(holder: object, show: Callable[[object], str]) -> None:
    shown = show(holder)
    assert VALUE not in shown
    assert MASK in shown


@pytest.mark.parametrize("spec", ["", ">40", "s", "x", ".3", "!"])
def test_a_format_spec_changes_nothing(spec: str) -> None:
    assert format(SECRET, spec) == MASK


@pytest.mark.parametrize("holder", [SECRET, CREDENTIAL], ids=["secret", "credential"])
@pytest.mark.parametrize(
    "serialise",
    [
        *(lambda h, p=p: pickle.dumps(h, protocol=p) for p in range(pickle.HIGHEST_PROTOCOL + 1)),
        copy.deepcopy,
        json.dumps,
    ],
)
def test_it_is_never_serialised(holder: object, serialise: Callable[[object], Any]) -> None:
    with pytest.raises(TypeError) as raised:
        serialise(holder)
    assert VALUE not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("take", [copy.copy, lambda s: s.__getstate__(), vars])
def test_its_state_is_not_handed_out(take: Callable[[Secret], Any]) -> None:
    with pytest.raises(TypeError):
        take(SECRET)


@pytest.mark.parametrize("made_plain", [msgspec.to_builtins, msgspec.json.encode])
def test_a_credential_is_no_plain_data(made_plain: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError):
        made_plain(CREDENTIAL)


def test_log_records_hold_the_mask(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").debug("using %s and %r", SECRET, CREDENTIAL)
    assert VALUE not in caplog.text
    assert caplog.text.count(MASK) == 2


def test_traceback_with_locals_shows_the_mask() -> None:
    held = SECRET
    try:
        raise RuntimeError(held, CREDENTIAL)
    except RuntimeError as error:
        shown = "".join(
            traceback.TracebackException.from_exception(error, capture_locals=True).format()
        )
    # The module's own constant is not a local; what the frame and the error hold is.
    assert "held" in shown
    assert VALUE not in shown


def test_equality_is_by_value() -> None:
    assert Secret("a") == Secret("a")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert bool(Secret("a"))
    assert not Secret("")
    assert replace(CREDENTIAL, secret=Secret(VALUE)) == CREDENTIAL
    assert replace(CREDENTIAL, secret=Secret("other")) != CREDENTIAL


def test_it_has_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        SECRET.note = "x"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("ends", "plausible"),
    [
        (0.0, False),
        (1.7e9, False),
        (1.8e9, False),
        (1.8e9 + 1, True),
        (1.8e9 + 366 * 86400, True),
        (1e10, False),
        (9999999999.999, False),
    ],
)
def test_ends_that_may_be_true(ends: float, plausible: bool) -> None:
    assert is_plausible_end(ends, 1.8e9) == plausible


def of(**companions: str) -> dict[str, Credential]:
    return {"oauth": Credential(kind="oauth", secret=SECRET, companions=companions)}


def test_whose_a_credential_is() -> None:
    one, other = identity(of(account_id="a1")), identity(of(account_id="a2"))
    member = identity(of(account_id="a1", user_id="u1", project="p"))
    assert "a1" not in one and VALUE not in one
    assert one == identity({"key": replace(CREDENTIAL, companions={"account_id": "a1"})})
    assert identity({}) == identity(of(project="p")) == ""
    assert are_of_others(one, other)
    assert are_of_others(member, identity(of(account_id="a1", user_id="u2")))
    # What one of them does not say tells nothing.
    assert not are_of_others(one, member)
    assert not are_of_others(one, "")
    assert not are_of_others("", "")
    assert not are_of_others(one, identity(of(user_id="u1")))


# -- taking it out of what a provider sends back


def test_nothing_is_made_of_an_empty_secret() -> None:
    assert secrets_of([""]) == Secret("").forms() == SentSecrets().echoes() == frozenset()


def test_a_secret_is_found_as_it_stands_in_an_address() -> None:
    assert mask(b"?key=a%2Fb%2Bc%3D%3D&k=a/b+c==", Secret("a/b+c==").forms()) == (
        b"?key=" + b"*" * 15 + b"&k=" + b"*" * 7
    )


def test_a_slash_that_json_escapes() -> None:
    assert mask(rb'"a\/b"', Secret("a/b").forms()) == b'"****"'


def test_of_two_that_begin_alike_no_end_is_left() -> None:
    assert mask(b"sk-1-longer, sk-1", secrets_of(["sk-1", "sk-1-longer"])) == b"*" * 11 + b", ****"


def test_each_that_was_sent_is_found() -> None:
    sent = SentSecrets([Secret("sk-1")])
    fields = ((b"location", b"https://x/?key=sk-1"), (b"sk-2", b"and sk-2"))
    assert mask_fields(fields, sent.echoes())[1] == fields[1]
    sent.append(Secret("sk-2"))
    assert mask_fields(fields, sent.echoes()) == (
        (b"location", b"https://x/?key=****"),
        (b"sk-2", b"and ****"),
    )


def test_fields_without_one_stay_as_they_are() -> None:
    fields = ((b"a", b"sk-"), (b"b", b"1"))
    assert mask_fields(fields, secrets_of(["sk-1"])) is fields
