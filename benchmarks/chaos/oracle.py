"""The verdict on what a client saw. Pure: values only."""

from __future__ import annotations

import json
from enum import Enum

from mitmproxy.net.encoding import decode

from benchmarks.chaos import replies
from benchmarks.chaos.clients import End, Seen
from benchmarks.chaos.faults import BY_NAME, Must
from benchmarks.chaos.plan import SECRET, Ask

#: Our own answers when an attempt broke, or was silent for too long.
BROKE = (502, 504)


class Verdict(Enum):
    """What became of a request. All but the last four are as they must be."""

    SERVED = "served"
    DELIVERED = "delivered as it was"
    BROKEN = "told that it broke; it may have run"
    CUT = "cut after its first byte"
    #: told that it broke, or cut: another request's fault ended the connection both shared
    COLLATERAL = "broken with its connection"
    LEFT = "its client left"
    HANG = "HANG"
    BAD = "BAD ANSWER"
    CROSSED = "CROSSED"
    LEAK = "LEAK"

    @property
    def fails(self) -> bool:
        return self in (Verdict.HANG, Verdict.BAD, Verdict.CROSSED, Verdict.LEAK)


def judge(ask: Ask, seen: Seen) -> Verdict:
    """Return the verdict."""
    if seen.end is End.HANG:
        return Verdict.HANG
    if SECRET.encode() in seen.body or any(SECRET in value for _, value in seen.headers):
        return Verdict.LEAK
    body = bytes(seen.body)
    # The pool may tell the last refusal of an account again, which another request got.
    if (seen.status or 0) < 400 and is_somebody_elses(ask, body):
        return Verdict.CROSSED
    good = expected(ask)
    if seen.end is End.LEFT:
        # What it has seen until then must be right as well.
        right = seen.status != 200 or _is_beginning(body, ask, good)
        return Verdict.LEFT if right or _told_again(seen, ask) else Verdict.BAD
    if ask.row.must is Must.DELIVERED:
        return Verdict.DELIVERED if is_delivered(ask, seen) else _collateral(seen, ask)
    if seen.end is End.WHOLE and seen.status == 200 and body in good:
        return Verdict.SERVED
    if is_told(seen):
        if ask.row.must in (Must.BROKEN, Must.CUT):
            return Verdict.BROKEN
    elif is_cut(seen, ask, good) and ask.row.must is Must.CUT:
        return Verdict.CUT
    return _collateral(seen, ask)


def expected(ask: Ask) -> tuple[bytes, ...]:
    """Return the bodies that are good for *ask*."""
    body = replies.good(ask.shape, ask.nonce, ask.vendor).body
    # A provider that names less than it sends has said that this is all.
    return (body, body[:-7]) if ask.row.name == "content-length-short" else (body,)


def credential(vendor: str, number: int) -> str:
    """Return the key of an account; all are of one length."""
    return f"{SECRET}-{vendor:_<9}-{number:04}"


def is_delivered(ask: Ask, seen: Seen) -> bool:
    """Say whether *seen* is the refusal of a row that is final, whole, whatever packs it.

    A credential that is echoed in it is masked.
    """
    masked = "*" * len(credential(ask.vendor, 0))
    verb, _, name = ask.row.acts[0].partition(":")
    said = (
        replies.late_error(ask.nonce, ask.vendor)
        if verb == "late-error"
        else replies.refusal(name, ask.nonce, ask.vendor, masked)
    )
    if seen.end is not End.WHOLE or seen.status != said.status:
        return False
    packed = dict(said.headers).get("content-encoding", "identity")
    try:
        return _plain(bytes(seen.body), seen.header("content-encoding")) == _plain(
            said.body, packed
        )
    except ValueError:
        return False


def is_told(seen: Seen) -> bool:
    """Say whether it was told, in the vendor's envelope, that the attempt broke."""
    if seen.end is not End.WHOLE or seen.status not in BROKE:
        return False
    try:
        error = json.loads(bytes(seen.body))["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return isinstance(error, dict) and "message" in error


def is_cut(seen: Seen, ask: Ask, good: tuple[bytes, ...]) -> bool:
    """Say whether it is the beginning of the good answer, and does not look like its end."""
    return seen.status == 200 and seen.end is End.CUT and _is_beginning(bytes(seen.body), ask, good)


def is_somebody_elses(ask: Ask, body: bytes) -> bool:
    """Say whether an answer of the provider's holds another nonce than that of its request."""
    if b"smuggled" in body:
        return True
    at = body.find(ask.nonce.partition("x")[0].encode() + b"x")
    # The whole of it may be cut off.
    return at >= 0 and not ask.nonce.encode().startswith(body[at : at + len(ask.nonce)])


def _collateral(seen: Seen, ask: Ask) -> Verdict:
    """Its own row is no excuse; that a neighbour's ended the connection they shared is one."""
    refused = seen.end is End.WHOLE and ((seen.status or 0) >= 400 or _told_again(seen, ask))
    cut = is_cut(seen, ask, expected(ask))
    return Verdict.COLLATERAL if _has_company(seen) and (refused or cut) else Verdict.BAD


def _has_company(seen: Seen) -> bool:
    return any(BY_NAME[name].ends_connection for name in seen.company)


def _told_again(seen: Seen, ask: Ask) -> bool:
    """Say whether this may be an earlier refusal, with the status 200.

    It says more than that a later attempt broke; which of them that was, nobody knows who
    did not read it.
    """
    return ask.row.name.startswith("200-") and _has_company(seen)


def _is_beginning(body: bytes, ask: Ask, good: tuple[bytes, ...]) -> bool:
    late = replies.late_error(ask.nonce, ask.vendor).body
    return any(whole.startswith(body) for whole in (*good, late))


def _plain(body: bytes, encoding: str) -> bytes:
    plain = decode(body, encoding or "identity")
    assert isinstance(plain, bytes)
    return plain
