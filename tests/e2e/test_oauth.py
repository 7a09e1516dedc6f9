"""Logins that are refreshed, with real proxies and a token endpoint that means it.

Each refresh token is worth one refresh: whoever sends one twice, or forgets the next, is
out for good.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from urllib.parse import parse_qsl

import pytest

from account_pool.core.claims import CLAIM_S
from account_pool.demo.mitmdump import MitmdumpFailed
from tests.e2e import die_after_save, hurried
from tests.e2e.harness import account, chat, secret
from tests.patience import PATIENCE_S
from tests.scripts import openai
from tests.upstream.exchange import Fault, Reply, Request
from tests.upstream.replies import by_credential, json_reply

GOOD = openai.chat_stream(["Good", " morning"])
EXPIRED = json_reply(
    {"error": {"message": "Your token has expired.", "type": "x", "code": "token_expired"}}, 401
)
OLD = secret("old_access")
FIRST = secret("refresh0")
REFUSED = {"error": "invalid_grant", "error_description": "The login was revoked."}


def access(n: int) -> str:
    return secret(f"access{n}")


class Logins:
    """The token endpoint, on loopback.

    Attributes:
        url: where it is.
        asked: the refresh tokens it was given, in order.
        newest: the only one that is worth something.
        held: answered only once this is set, where a test wants that.
        refuses: what everybody is told instead.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.newest = FIRST
        self.held: asyncio.Event | None = None
        self.refuses: Reply | None = None

    def __call__(self, request: Request) -> Reply:
        assert request.method == "POST" and request.path == "/oauth/token"
        fields = dict(parse_qsl(request.body.decode(), strict_parsing=True))
        assert fields["grant_type"] == "refresh_token" and fields["client_id"] == "a client"
        self.asked.append(fields["refresh_token"])
        if self.refuses is not None:
            return self.refuses
        if fields["refresh_token"] != self.newest:
            return json_reply({"error": {"code": "refresh_token_reused"}}, 400)
        n = len(self.asked)
        self.newest = secret(f"refresh{n}")
        reply = json_reply(
            {"access_token": access(n), "refresh_token": self.newest, "expires_in": 3600}
        )
        return reply if self.held is None else replace(reply, steps=(self.held, *reply.steps))


@pytest.fixture
async def logins(provider):
    script = Logins()
    script.provider = await provider(script, certificate=None)
    script.url = f"{script.provider.url}/oauth/token"
    return script


def login(logins: Logins, label: str = "me", *, expires_in: float = 3600, **settings):
    """Return the entry of an account that logs in; OLD ends in so many seconds."""
    oauth = {
        "access_token": OLD,
        "refresh_token": FIRST,
        "expires_at": time.time() + expires_in,
        "token_url": logins.url,
        "client_id": "a client",
    }
    return account(label, **{**settings, "token": {"oauth": oauth}})


@pytest.fixture
def kept(tmp_path):
    """Options that keep the state in a file, the same for all proxies of a test."""
    return {"pool_state": tmp_path / "state" / "pool.sqlite"}


async def ask(proxy, count: int = 1) -> list[tuple[int, bytes]]:
    async with proxy.client() as http:
        answers = await asyncio.gather(*(http.request(**chat()) for _ in range(count)))
    return [(answer.status_code, answer.content) for answer in answers]


SERVED = (200, GOOD.body)


async def test_a_token_that_ends_is_refreshed_before_it_is_used(provider, pool_proxy, logins, kept):
    upstream = await provider(by_credential({access(1): GOOD}))
    proxy = await pool_proxy([login(logins, expires_in=60)], provider=upstream, options=kept)
    assert await ask(proxy) == [SERVED]
    assert upstream.journal.credentials == [access(1)]
    assert logins.asked == [FIRST]
    await proxy.until_printed(r"openai/me: has an access token, refreshed in \d+ min \(valid until")


async def test_fifty_refused_requests_make_one_refresh(provider, pool_proxy, logins, kept):
    upstream = await provider(by_credential({OLD: EXPIRED, access(1): GOOD}))
    proxy = await pool_proxy([login(logins)], provider=upstream, options=kept)
    assert await ask(proxy, 50) == [SERVED] * 50
    assert logins.asked == [FIRST]
    assert set(upstream.journal.credentials) == {OLD, access(1)}


async def test_what_was_refreshed_survives_a_restart(provider, pool_proxy, logins, kept):
    upstream = await provider(by_credential({OLD: EXPIRED, access(1): GOOD, access(2): GOOD}))
    accounts = [login(logins)]
    first = await pool_proxy(accounts, provider=upstream, options=kept)
    assert await ask(first) == [SERVED]
    await first.stop()
    second = await pool_proxy(accounts, provider=upstream, options=kept)
    assert await ask(second) == [SERVED]
    assert upstream.journal.credentials == [OLD, access(1), access(1)]
    assert logins.asked == [FIRST]
    path = kept["pool_state"]
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(sys.platform == "win32", reason="an open file stays where it is")
async def test_a_state_that_is_deleted_while_it_runs_costs_no_login(
    provider, pool_proxy, logins, kept
):
    upstream = await provider(by_credential({OLD: EXPIRED, access(1): GOOD}))
    accounts = [login(logins)]
    first = await pool_proxy(accounts, provider=upstream, options=kept)
    assert await ask(first) == [SERVED]
    shutil.rmtree(kept["pool_state"].parent)
    await first.stop()
    second = await pool_proxy(accounts, provider=upstream, options=kept)
    assert await ask(second) == [SERVED]
    assert upstream.journal.credentials == [OLD, access(1), access(1)]
    assert logins.asked == [FIRST]


async def test_a_new_login_in_the_file_comes_before_what_is_kept(
    provider, pool_proxy, logins, kept
):
    upstream = await provider(by_credential({OLD: EXPIRED, access(1): GOOD, "new": GOOD}))
    first = await pool_proxy([login(logins)], provider=upstream, options=kept)
    assert await ask(first) == [SERVED]
    again = login(logins)
    again["token"]["oauth"] |= {"access_token": "new", "refresh_token": "new-refresh"}
    second = await pool_proxy([again], provider=upstream, options=kept)
    assert await ask(second) == [SERVED]
    assert upstream.journal.credentials[-1] == "new"


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is of POSIX")
async def test_a_proxy_killed_between_the_answer_and_its_use_loses_nothing(
    provider, setting, pool_proxy, logins, kept
):
    upstream = await provider(by_credential({OLD: EXPIRED, access(1): GOOD}))
    accounts = [login(logins, expires_in=60)]
    doomed = setting.prepare(
        accounts, provider=upstream, options=kept, extra_args=["-s", die_after_save.__file__]
    )
    with pytest.raises(MitmdumpFailed):
        async with doomed:
            await doomed.until(lambda: False)
    assert doomed.returncode == -signal.SIGKILL
    assert logins.asked == [FIRST] and upstream.journal.credentials == []
    proxy = await pool_proxy(accounts, provider=upstream, options=kept)
    assert await ask(proxy) == [SERVED]
    assert logins.asked == [FIRST] and upstream.journal.credentials == [access(1)]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM is of POSIX")
async def test_a_proxy_that_is_stopped_during_a_refresh_keeps_its_result(
    provider, setting, pool_proxy, logins, kept
):
    upstream = await provider(by_credential({access(1): GOOD}))
    accounts = [login(logins, expires_in=60)]
    logins.held = asyncio.Event()
    farewell = setting.folder / "farewell.py"
    farewell.write_text("def done():\n    print('on its way out')\n")
    stopped = setting.prepare(
        accounts, provider=upstream, options=kept, extra_args=["-s", str(farewell)]
    )
    async with stopped:
        await logins.provider.journal.until(lambda: bool(logins.asked))
        os.kill(stopped.pid, signal.SIGTERM)
        await stopped.until_printed("on its way out")
        logins.held.set()
        with pytest.raises(MitmdumpFailed):
            await stopped.until(lambda: False)
    assert stopped.returncode == 0
    proxy = await pool_proxy(accounts, provider=upstream, options=kept)
    assert await ask(proxy) == [SERVED]
    assert logins.asked == [FIRST]


async def test_nobody_waits_for_a_slow_token_server_and_its_answer_counts(
    provider, pool_proxy, logins, kept
):
    """Another account serves meanwhile; a request that has none is held and served."""
    logins.held = asyncio.Event()
    upstream = await provider(by_credential({OLD: EXPIRED, access(1): GOOD, secret("b"): GOOD}))
    accounts = [login(logins, priority=0), account("b", priority=1)]
    extra = ["-s", hurried.__file__]
    proxy = await pool_proxy(accounts, provider=upstream, options=kept, extra_args=extra)
    assert await ask(proxy, 10) == [SERVED] * 10
    await proxy.until_printed("openai/me: its login is being refreshed, and the server is slow")
    other = {**kept, "pool_max_wait": PATIENCE_S}
    alone = await pool_proxy([login(logins)], provider=upstream, options=other, extra_args=extra)
    held = asyncio.create_task(ask(alone))
    await upstream.journal.until(lambda: upstream.journal.credentials.count(OLD) >= 2)
    logins.held.set()
    assert await held == [SERVED]
    assert logins.asked == [FIRST]
    assert upstream.journal.credentials[-1] == access(1)


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is of POSIX")
async def test_a_proxy_killed_before_its_request_left_holds_nobody_up(
    provider, setting, pool_proxy, logins, kept
):
    upstream = await provider(by_credential({access(1): GOOD}))
    accounts = [login(logins, expires_in=-60)]
    env = {die_after_save.DIE: "claim"}
    extra = ["-s", die_after_save.__file__]
    doomed = setting.prepare(accounts, provider=upstream, options=kept, extra_args=extra, env=env)
    with pytest.raises(MitmdumpFailed):
        async with doomed:
            await doomed.until(lambda: False)
    assert (doomed.returncode, logins.asked) == (-signal.SIGKILL, [])
    # A claim lasts for much longer than a request is held here.
    short = {**kept, "pool_max_wait": CLAIM_S - 5}
    proxy = await pool_proxy(accounts, provider=upstream, options=short)
    assert await ask(proxy) == [SERVED]
    assert logins.asked == [FIRST]


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is of POSIX")
async def test_a_token_that_left_a_killed_proxy_is_not_sent_while_the_access_token_is_good(
    provider, setting, pool_proxy, logins, kept
):
    upstream = await provider(by_credential({OLD: GOOD}))
    accounts = [login(logins, expires_in=120)]
    logins.held = asyncio.Event()
    doomed = setting.prepare(accounts, provider=upstream, options=kept)
    with pytest.raises(MitmdumpFailed):
        async with doomed:
            await logins.provider.journal.until(lambda: bool(logins.asked))
            os.kill(doomed.pid, signal.SIGKILL)
            await doomed.until(lambda: False)
    proxy = await pool_proxy(accounts, provider=upstream, options=kept)
    await proxy.until_printed("its refresh was not answered; it may have been done, so it is tried")
    assert await ask(proxy) == [SERVED]
    assert logins.asked == [FIRST]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM is of POSIX")
async def test_a_proxy_that_stops_does_not_wait_for_an_answer_for_ever(
    provider, setting, pool_proxy, logins, kept
):
    upstream = await provider(by_credential({OLD: GOOD}))
    accounts = [login(logins, expires_in=120)]
    logins.held = asyncio.Event()
    extra = ["-s", hurried.__file__]
    stopped = setting.prepare(accounts, provider=upstream, options=kept, extra_args=extra)
    async with stopped:
        await logins.provider.journal.until(lambda: bool(logins.asked))
        os.kill(stopped.pid, signal.SIGTERM)
        with pytest.raises(MitmdumpFailed):
            await stopped.until(lambda: False)
    assert stopped.returncode == 0
    proxy = await pool_proxy(accounts, provider=upstream, options=kept)
    await proxy.until_printed("its refresh was not answered; it may have been done, so it is tried")
    assert logins.asked == [FIRST]


async def test_a_connection_that_breaks_after_the_request_is_no_reason_to_send_it_again(
    provider, pool_proxy, logins, kept
):
    logins.refuses = Reply(fault=Fault.RESET)
    upstream = await provider(by_credential({OLD: GOOD}))
    proxy = await pool_proxy([login(logins, expires_in=120)], provider=upstream, options=kept)
    await proxy.until_printed("cannot reach .*; it may have been done, so it is tried again when")
    assert await ask(proxy) == [SERVED]
    assert logins.asked == [FIRST]


async def test_two_proxies_that_share_a_store_refresh_once(provider, pool_proxy, logins, kept):
    upstream = await provider(by_credential({OLD: EXPIRED, access(1): GOOD}))
    accounts = [login(logins)]
    proxies = await asyncio.gather(
        *(pool_proxy(accounts, provider=upstream, options=kept) for _ in range(2))
    )
    served = await asyncio.gather(*(ask(proxy, 10) for proxy in proxies))
    assert served == [[SERVED] * 10] * 2
    assert logins.asked == [FIRST]


async def test_a_login_that_was_revoked_is_one_line_and_another_account_serves(
    provider, pool_proxy, logins, kept
):
    logins.refuses = json_reply(REFUSED, 400)
    upstream = await provider(by_credential({OLD: EXPIRED, secret("other"): GOOD}))
    accounts = [login(logins, priority=0), account("other", priority=1)]
    proxy = await pool_proxy(accounts, provider=upstream, options=kept)
    for _ in range(3):
        assert await ask(proxy) == [SERVED]
    said = (
        "openai/me: its login is no longer valid: invalid_grant (The login was revoked.); "
        "write the tokens of a new login in accounts.yaml"
    )
    assert sum(said in line for line in proxy.lines) == 1
    assert logins.asked == [FIRST]
    assert upstream.journal.credentials == [OLD, *[secret("other")] * 3]


async def test_an_endpoint_that_fails_leaves_the_token_while_it_is_good(
    provider, pool_proxy, logins, kept
):
    logins.refuses = json_reply({"error": "slow down"}, 429)
    upstream = await provider(by_credential({OLD: GOOD}))
    proxy = await pool_proxy([login(logins, expires_in=120)], provider=upstream, options=kept)
    await proxy.until_printed(r"openai/me: the refresh answered 429")
    assert await ask(proxy) == [SERVED]


async def test_a_request_is_held_while_a_refresh_fails_that_may_work_soon(
    provider, pool_proxy, logins, kept
):
    """Told that its credential is bad, a client would log out."""
    logins.refuses = json_reply({"error": "not now"}, 503)
    upstream = await provider(by_credential({access(3): GOOD}))
    options = {**kept, "pool_max_wait": PATIENCE_S}
    proxy = await pool_proxy([login(logins, expires_in=-60)], provider=upstream, options=options)
    asking = asyncio.create_task(ask(proxy))
    await logins.provider.journal.until(lambda: len(logins.asked) == 2)
    logins.refuses = None
    assert await asking == [SERVED]
    assert logins.asked == [FIRST] * 3


async def test_tokens_in_memory_are_said_to_be_lost_at_the_end(provider, pool_proxy, logins):
    upstream = await provider(by_credential({OLD: GOOD}))
    proxy = await pool_proxy([login(logins)], provider=upstream)
    said = "pool_state is memory:, so refreshed logins are lost when the proxy stops: openai/me"
    assert sum(said in line for line in proxy.lines) == 1
    assert await ask(proxy) == [SERVED]


async def test_a_store_that_cannot_be_opened_ends_the_start(setting, logins, kept):
    path = kept["pool_state"]
    path.parent.mkdir()
    path.write_text("no database\n" * 1000)
    proxy = setting.prepare([login(logins)], options=kept)
    assert await proxy.run_to_end() == 1
    assert f"account-pool: the state database {path} is not a database; keep it" in proxy.output
    assert "Traceback" not in proxy.output


async def test_a_file_is_read_again_when_its_tool_renewed_it(provider, pool_proxy, tmp_path):
    file = tmp_path / "auth.json"

    def write(token: str) -> None:
        new = tmp_path / "new.json"
        new.touch(mode=0o600)
        new.write_text(json.dumps({"tokens": {"access_token": token}}))
        new.replace(file)

    write(secret("one"))
    upstream = await provider(by_credential({secret("one"): EXPIRED, secret("two"): GOOD}))
    entry = account("me", token={"file": str(file), "pointer": "/tokens/access_token"})
    proxy = await pool_proxy([entry], provider=upstream)
    before = file.read_bytes()
    write(secret("two"))
    assert await ask(proxy) == [SERVED]
    assert upstream.journal.credentials[-1] == secret("two")
    assert file.read_bytes() != before


async def test_an_account_without_a_project_learns_it_before_it_serves(provider, pool_proxy):
    """The question goes to the API itself, with the account's token."""
    host = "https://cloudcode-pa.googleapis.com"
    learnt = json_reply({"cloudaicompanionProject": "project-of-me"})
    good = json_reply({"response": {"candidates": []}})

    def script(request: Request) -> Reply:
        assert request.credential == secret("me")
        return learnt if request.path == "/v1internal:loadCodeAssist" else good

    upstream = await provider(script)
    proxy = await pool_proxy([account("me", "gemini-cli")], provider=upstream)
    async with proxy.client() as http:
        answer = await http.post(
            f"{host}/v1internal:generateContent",
            headers={"authorization": "Bearer sk-fake-client", "user-agent": "GeminiCLI/0.61.0"},
            json={"model": "gemini-3-flash", "project": "of-the-client", "request": {}},
        )
    assert (answer.status_code, answer.content) == (200, good.body)
    asked, served = upstream.journal.requests
    assert asked.path == "/v1internal:loadCodeAssist"
    assert served.json()["project"] == "project-of-me"
