"""Members are found in the bytes, whatever stands around them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.providers.json_span import member, replaced, start_of_object, top_member

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
        ((first, last),) = member(body, name, start)
        assert json.loads(body[first:last]) == expected
        changed = replaced(body, [(first, last)], b'"new"')
        assert json.loads(changed) == {**value, name: "new"}
    assert member(body, "no such", start) == []


@given(OBJECTS, VALUES, st.sampled_from(["a", "b"]), st.sampled_from([None, 1]))
def test_the_fast_way_finds_the_same(value, nested, name, indent) -> None:
    for whole in (value, {**value, "other": {name: nested}}, {**value, "other": name}):
        body = json.dumps(whole, indent=indent).encode()
        assert top_member(body, name) == member(body, name, start_of_object(body))


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
    assert top_member(body, "a") == member(body, "a", start_of_object(body))


def test_members_that_are_repeated_are_all_found() -> None:
    body = b'{"a":1,"b":{"a":2},"a":[3]}'
    assert [body[i:j] for i, j in member(body, "a", 0)] == [b"1", b"[3]"]


@given(st.binary(max_size=40))
def test_hostile_bytes_are_total(body: bytes) -> None:
    for content in (body, b"{" + body, b'{"a":' + body):
        for first, last in member(content, "a", start_of_object(content)):
            assert 0 <= first < last <= len(content)


def test_what_does_not_change_is_the_same_object() -> None:
    body = b'{"a":1}'
    assert replaced(body, member(body, "a", 0), b"1") is body
    assert member(b"[1]", "a", start_of_object(b"[1]")) == []
