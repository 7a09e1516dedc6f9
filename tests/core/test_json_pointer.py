"""JSON pointers: RFC 6901, section 5."""

from __future__ import annotations

import pytest

from account_pool.core.json_pointer import find, steps

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
