"""What answers tell of their accounts is learnt while they pass."""

from __future__ import annotations

import json
import zlib

import pytest

from account_pool.core.headroom import shown
from account_pool.providers import codex, copilot, openai
from account_pool.proxy.response_reader import ResponseReader
from tests.proxy.helpers import (
    CHUNKED,
    DELTA,
    JSON,
    LIMITED,
    OK,
    OK_BODY,
    SSE,
    account,
    chunk,
    event,
    head1,
    http1,
    post1,
    service_of,
)

TOLD = ["x-ratelimit-limit-requests: 10", "x-ratelimit-remaining-requests: 4"]
RATE_LIMITS = {
    "type": "codex.rate_limits",
    "rate_limits": {"primary": {"used_percent": 42, "window_minutes": 300}, "secondary": None},
}
CREATED = {"type": "response.created", "response": {"id": "resp_1"}}
TEXT = {"type": "response.output_text.delta", "delta": "Good"}
SNAPSHOTS = {"copilot_quota_snapshots": {"chat": "ent=500&rem=80.0"}, "choices": []}


def left(rig, label: str = "one") -> str:
    """What is known of an account, as it is shown."""
    (state,) = [s for s in rig.service.pool.accounts if s.key.label == label]
    return shown(state.headroom.windows.values(), rig.clock.now())


@pytest.mark.parametrize("status", [200, 400])
def test_headers_of_any_answer_tell(rig_of, status):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(http1(status, OK_BODY, [JSON, *TOLD]))
    assert left(rig) == "gpt-5: requests 40%"
    assert left(rig, "two") == ""
    assert rig.answers[-1].get("x-ratelimit-remaining-requests") == "4"


def test_each_account_is_told_of_by_its_own_answer(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(http1(429, b"{}", [JSON, "retry-after: 20", *TOLD]))
    rig.server.send(OK)
    assert (left(rig), left(rig, "two")) == ("gpt-5: requests 40%", "")


def test_an_answer_without_any_tells_nothing_and_changes_nothing(rig_of):
    rig = rig_of()
    rig.send(post1())
    rig.server.send(LIMITED)
    rig.server.send(OK)
    assert left(rig, "two") == ""
    # What remains of the limit, which was 0, without a limit.
    assert left(rig) == "gpt-5: requests 0%"


def test_an_account_that_is_removed_meanwhile_teaches_nothing(rig_of):
    rig = rig_of("one")
    rig.send(post1())
    pool = rig.service.pool
    (state,) = pool.accounts
    pool.accounts.remove(state.key, now=rig.clock.now())
    rig.server.send(http1(200, OK_BODY, [JSON, *TOLD]))
    assert rig.answers[-1].status == 200
    pool.accounts.add(account("one"), {}, now=rig.clock.now())
    assert left(rig) == ""


# -- events

RESPONSES = "/backend-api/codex/responses"


def codex_rig(rig_of, **settings):
    service = service_of(
        "one",
        providers=[codex.PROVIDER],
        kind="oauth",
        companions={"account_id": "account-fake"},
        **settings,
    )
    return rig_of(service=service, address=("chatgpt.com", 443))


@pytest.mark.parametrize("encoded", [False, True])
def test_the_events_an_answer_begins_with_tell(rig_of, encoded):
    rig = codex_rig(rig_of)
    rig.send(post1(RESPONSES, host="chatgpt.com", key="login-fake"))
    first = event(RATE_LIMITS) + event(CREATED)
    later = event(TEXT)
    encoding = ["content-encoding: gzip"] if encoded else []
    pieces = [first, later]
    if encoded:
        gzip = zlib.compressobj(wbits=31)
        pieces = [gzip.compress(piece) + gzip.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
    rig.server.send(head1(200, [SSE, CHUNKED, *encoding]) + chunk(pieces[0]))
    assert left(rig) == ""
    rig.server.send(chunk(pieces[1]))
    assert left(rig) == "5h 58%"
    assert rig.answers[-1].body == b"".join(pieces)
    rig.server.send(b"0\r\n\r\n")


def test_a_body_tells_beside_its_answer(rig_of):
    provider = copilot.PROVIDER
    service = service_of("one", providers=[provider], kind="copilot")
    rig = rig_of(service=service, address=("api.githubcopilot.com", 443))
    rig.send(post1("/chat/completions", host="api.githubcopilot.com"))
    rig.server.send(http1(200, json.dumps(SNAPSHOTS).encode(), [JSON]))
    assert left(rig) == "chat 80%"


def test_nothing_is_looked_for_where_nothing_is_sent(rig_of, monkeypatch):
    """A provider without such events pays nothing for those of others."""
    assert not openai.PROVIDER.headroom_marks
    monkeypatch.setattr(ResponseReader, "opening", lambda _self: pytest.fail("read for nothing"))
    rig = rig_of()
    rig.send(post1())
    rig.server.send(head1(200, [SSE, CHUNKED]) + chunk(event(RATE_LIMITS) + DELTA) + b"0\r\n\r\n")
    assert left(rig) == ""


def frame(value: object) -> bytes:
    text = json.dumps(value).encode()
    size = bytes([len(text)]) if len(text) < 126 else bytes([126]) + len(text).to_bytes(2, "big")
    return b"\x81" + size + text


def test_the_frames_of_a_socket_tell(rig_of):
    rig = codex_rig(rig_of, websockets="pin")
    upgrade = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
               "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]  # fmt: skip
    rig.send(post1(RESPONSES, b"", upgrade, host="chatgpt.com", key="login-fake", method="GET"))
    rig.server.send(head1(101, ["Upgrade: websocket", "Connection: Upgrade"]))
    said = frame(RATE_LIMITS) + frame(CREATED)
    rig.server.send(said)
    assert left(rig) == "5h 58%"
    assert rig.received.endswith(said)
    rig.server.close()
    rig.leave()
    rig.layer.streams.clear()  # mitmproxy keeps a WebSocket as long as its client
