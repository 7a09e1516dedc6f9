"""Headers that are looked up in one step answer as mitmproxy's do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http

from account_pool.proxy.headers import IndexedHeaders

NAMES = st.sampled_from([b"Host", b"host", b"X-A", b"x-a", b"Connection", b"\xc3\xa4"])
VALUES = st.sampled_from([b"", b"1", b"chunked", b"\xff", b"\xc3\xa4"])
FIELDS = st.lists(st.tuples(NAMES, VALUES)).map(tuple)
ASKED = ["host", "Host", b"HOST", "x-a", "connection", "ä", "missing"]


@given(FIELDS, FIELDS)
def test_every_question_has_the_same_answer(fields, others) -> None:
    ours, theirs = IndexedHeaders.of(fields), http.Headers(fields)
    _compare(ours, theirs)
    for headers in (ours, theirs):
        headers["X-A"] = "changed"
        headers.add("x-new", "1")
        headers.pop("host", None)
    _compare(ours, theirs)
    ours.fields = theirs.fields = others
    _compare(ours, theirs)


def _compare(ours: IndexedHeaders, theirs: http.Headers) -> None:
    assert ours == theirs
    assert ours.get_state() == theirs.get_state()
    assert ours.copy().fields == theirs.fields
    assert bytes(ours) == bytes(theirs)
    assert list(ours) == list(theirs)
    for name in ASKED:
        assert (name in ours) == (name in theirs)
        assert ours.get(name) == theirs.get(name)
        assert ours.get(name, "none") == theirs.get(name, "none")
        assert ours.get_all(name) == theirs.get_all(name)
    for name in (b"host", b"x-a", b"missing"):
        assert ours.last(name) == next(
            (v for k, v in reversed(theirs.fields) if k.lower() == name), None
        )
    assert 1 not in ours
