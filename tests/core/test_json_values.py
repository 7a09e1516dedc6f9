"""Values of JSON: of any shape, and by pointers (RFC 6901, section 5)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.json_values import (
    NOT_READ,
    find,
    finite_number,
    member_spans,
    members,
    replaced,
    start_of_object,
    steps,
    top_member_spans,
)

DOCUMENT = {"foo": ["bar", "baz"], "": 0, "a/b": 1, "m~n": 8, "deep": {"x": [{"y": None}]}}


@pytest.mark.parametrize(
    ("pointer", "expected"),
    [
        ("", DOCUMENT),
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/", 0),
        ("/a~1b", 1),
        ("/m~0n", 8),
        ("/foo/2", None),
        ("/foo/-", None),
        ("/foo/bar", None),
        ("/deep/x/0/y", None),
        ("/nowhere/x", None),
    ],
)
def test_find(pointer, expected):
    assert find(DOCUMENT, steps(pointer)) == expected


def test_a_pointer_begins_with_a_slash():
    with pytest.raises(ValueError, match="starts with /"):
        steps("foo")


def test_members_of_what_may_be_no_object() -> None:
    assert members({"a": 1}) == {"a": 1}
    assert all(members(value) == {} for value in (None, [], "a", 1, True))


@pytest.mark.parametrize("text", [b"{", b"", b"\xff", b'"\\ud800"', b"[" * 100_000, b"1"])
def test_all_that_reading_raises_is_named(text: bytes) -> None:
    with pytest.raises(NOT_READ):
        msgspec.json.decode(text, type=str if text == b"1" else Any)


# -- Members are found in the bytes, whatever stands around them.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", 'q"', "\\", "é", "{", ""]), VALUES)


@given(OBJECTS, st.sampled_from([None, 1]), st.booleans(), st.sampled_from(["", " \n"]))
def test_every_member_is_found(value, indent, ascii_only, before) -> None:
    body = (before + json.dumps(value, indent=indent, ensure_ascii=ascii_only)).encode()
    start = start_of_object(body)
    assert start == len(before)
    for name, expected in value.items():
        ((first, last),) = member_spans(body, name, start)
        assert json.loads(body[first:last]) == expected
        changed = replaced(body, [(first, last)], b'"new"')
        assert json.loads(changed) == {**value, name: "new"}
    assert member_spans(body, "no such", start) == []


@given(OBJECTS, VALUES, st.sampled_from(["a", "b"]), st.sampled_from([None, 1]))
def test_the_fast_way_finds_the_same(value, nested, name, indent) -> None:
    for whole in (value, {**value, "other": {name: nested}}, {**value, "other": name}):
        body = json.dumps(whole, indent=indent).encode()
        assert top_member_spans(body, name) == member_spans(body, name, start_of_object(body))


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"b":{"a":2},"a":[3]}',
        b'{"\\u0061":1}',
        b'{"\\u0061":"a"}',
        b'{"b":"a","\\u0061":{"x":"a"}}',
        b'{"x":{"a":1},"\\u0061":2}',
        b'{"a":"c","\\u0061":"c"}',
        b'{"x":{"a":"c"},"\\u0061":"c"}',
        b'{"a":12,"\\u0061":1}',
        b'{"a":12,"b":"\\u0061"}',
        b'{"a":1,}',
        b'{"a":1',
        b'[{"a":1}]',
        b"",
        b"\xff",
    ],
)
def test_the_fast_way_knows_when_it_is_not_certain(body: bytes) -> None:
    assert top_member_spans(body, "a") == member_spans(body, "a", start_of_object(body))


def test_members_that_are_repeated_are_all_found() -> None:
    body = b'{"a":1,"b":{"a":2},"a":[3]}'
    assert [body[i:j] for i, j in member_spans(body, "a", 0)] == [b"1", b"[3]"]


@given(st.binary(max_size=40))
def test_hostile_bytes_are_total(body: bytes) -> None:
    for content in (body, b"{" + body, b'{"a":' + body):
        for first, last in member_spans(content, "a", start_of_object(content)):
            assert 0 <= first < last <= len(content)


def test_what_does_not_change_is_the_same_object() -> None:
    body = b'{"a":1}'
    assert replaced(body, member_spans(body, "a", 0), b"1") is body
    assert member_spans(b"[1]", "a", start_of_object(b"[1]")) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0),
        (-2.5, -2.5),
        (True, None),
        ("3", None),
        (None, None),
        (float("nan"), None),
        (float("inf"), None),
        (10**400, None),
    ],
)
def test_a_number_is_finite(value: object, expected: float | None) -> None:
    assert finite_number(value) == expected
