"""A credential that cannot be read is the state of one account: the others serve, it heals."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from pathlib import Path

import pytest

from tests.e2e.harness import FIRST, account, chat, secret
from tests.e2e.test_admin import admin, direct
from tests.e2e.test_subscriptions import IDS, RESPONSE, ask_codex
from tests.e2e.test_which_file import account_pool_command
from tests.scripts import codex, openai
from tests.upstream.replies import by_credential

GOOD = openai.chat_complete("Good morning")
POINTER = "/claudeAiOauth/accessToken"
BLANK = b'{"claudeAiOauth":{"accessToken":"","refreshToken":"","expiresAt":0}}'
#: What a file may hold instead of a login, None for no file, and what is said of it.
FILES: dict[str, tuple[bytes | None, str]] = {
    "blank": (BLANK, "is empty; its tool is logged out: run `claude` and log in"),
    "null": (b"null", "nothing at /claudeAiOauth/accessToken; its tool is logged out"),
    "section": (b'{"mcpOAuth":{}}', "nothing at /claudeAiOauth/accessToken; its tool is logged"),
    "half": (b'{"claudeAiOauth":{"accessTok', "is not JSON, or only a part of it was written"),
    "cut": ('{"a":"ä'.encode()[:-1], "is not text in UTF-8"),
    "huge": (b" " * (1024 * 1024 + 1), "it is larger than 1 MiB"),
    "nothing": (b"", "is not JSON, or only a part of it was written"),
    "missing": (None, "does not exist; its tool is logged out: run `claude` and log in"),
}


def write(path: Path, content: bytes) -> None:
    """Put *content* at *path* as tools do: under another name first, for its owner only."""
    path.parent.mkdir(exist_ok=True)
    beside = path.with_name("beside")
    beside.touch(mode=0o600)
    beside.write_bytes(content)
    beside.replace(path)


def login(label: str) -> bytes:
    return json.dumps({"claudeAiOauth": {"accessToken": secret(label)}}).encode()


async def state(proxy, key: str) -> dict[str, object]:
    async with direct(proxy) as http:
        accounts = (await http.get("/account-pool")).json()["accounts"]
    return next(one for one in accounts if one["key"] == key)


@pytest.mark.skipif(os.name != "posix", reason="pipes and modes are a matter of posix")
async def test_every_kind_beside_a_good_one(provider, pool_proxy, tmp_path):
    paths = {label: tmp_path / label / ".credentials.json" for label in (*FILES, "open")}
    for label, (content, _) in FILES.items():
        if content is not None:
            write(paths[label], content)
    write(paths["open"], login("open"))
    paths["open"].chmod(0o644)
    for label in ("directory", "pipe", "command"):
        paths[label] = tmp_path / label
    paths["directory"].mkdir()
    os.mkfifo(paths["pipe"], 0o600)
    said = {label: words for label, (_, words) in FILES.items()} | {
        "open": "can be read or changed by other users .mode 644.; run: chmod 600",
        "directory": "cannot be read .it is a directory, not a file.",
        "pipe": "cannot be read .it is a pipe, not a file.",
        "command": "exited with status 1: cat: .*; run it by hand",
        "absent": "cannot be started .no such file or directory.; install it",
        "unset": "environment variable FAKE_UNSET is not set",
        "empty": "environment variable FAKE_EMPTY is empty",
        "spaces": "the value is empty",
    }
    tokens = {label: {"file": str(path), "pointer": POINTER} for label, path in paths.items()} | {
        "directory": {"file": str(paths["directory"])},
        "pipe": {"file": str(paths["pipe"])},
        "command": {"command": f"cat {shlex.quote(str(paths['command']))}"},
        "absent": {"command": "/nonexistent/fake-tool token"},
        "hanging": {"command": "sleep 600"},
        "unset": "${FAKE_UNSET}",
        "empty": {"env": "FAKE_EMPTY"},
        "spaces": "   ",
    }
    healing = [*FILES, "open", "pipe", "command"]
    upstream = await provider(by_credential({secret(x): GOOD for x in (*healing, "first")}))
    proxy = await pool_proxy(
        [account("first"), *(account(label, token=token) for label, token in tokens.items())],
        provider=upstream,
        options={"pool_strategy": "round-robin"},
        env={"FAKE_EMPTY": " "},
    )
    async with proxy.client() as http:
        assert (await http.request(**chat(stream=False))).status_code == 200
        for label, words in said.items():
            await proxy.until_printed(f"openai/{label}: .*{words}")
        told = await state(proxy, "openai/blank")
        assert told["state"] == "no_credential"
        assert "run `claude` and log in" in str(told["reason"])
        assert (await http.request(**chat(stream=False))).status_code == 200
        assert set(upstream.journal.credentials) == {FIRST}

        # Each is put right; nothing is restarted.
        for label in (*FILES, "open"):
            write(paths[label], login(label))
        for label in ("pipe", "command"):
            write(paths[label], secret(label).encode())
        for label in healing:
            await proxy.until_printed(f"openai/{label}: its credential can be read again", 60)
        for _ in range(2 * len(healing)):
            assert (await http.request(**chat(stream=False))).status_code == 200
    assert set(upstream.journal.credentials) == {FIRST, *map(secret, healing)}
    for label in said:
        lines = [line for line in proxy.lines if f"openai/{label}: " in line]
        assert len(lines) == 1 + (label in healing), lines


async def test_a_request_that_nobody_can_serve_has_it_looked_for_at_once(
    provider, pool_proxy, tmp_path
):
    """By itself the proxy would look again after some seconds only, a command's much later."""
    upstream = await provider(by_credential({FIRST: GOOD}))
    path = tmp_path / "key"
    proxy = await pool_proxy([account("first", token={"file": str(path)})], provider=upstream)
    write(path, FIRST.encode())
    async with proxy.client() as http:
        assert (await http.request(**chat(stream=False))).status_code == 200
    assert upstream.journal.credentials == [FIRST]


async def test_a_reload_and_an_addition_take_it_too(provider, pool_proxy, tmp_path):
    good = dict.fromkeys([FIRST, secret("late"), secret("new")], GOOD)
    upstream = await provider(by_credential(good))
    proxy = await pool_proxy([account("first")], provider=upstream)
    path = tmp_path / "late"
    accounts = [account("first"), account("late", token={"file": str(path)})]
    (proxy.folder / "accounts.yaml").write_text(json.dumps({"accounts": accounts}))
    await proxy.until_printed("reloaded: added openai/late")
    new = {"provider": "openai", "label": "new", "token": secret("new")}
    async with direct(proxy) as own, proxy.client() as http:
        answer = await own.post("/account-pool/add", json=new, headers=admin(proxy))
        assert answer.status_code == 201, answer.text
        wrong = {**new, "label": "wrong", "token": {"env": "FAKE_UNSET"}}
        refused = await own.post("/account-pool/add", json=wrong, headers=admin(proxy))
        assert refused.json()["error"]["code"] == "source"
        assert (await http.request(**chat(stream=False))).status_code == 200
        write(path, secret("late").encode())
        await proxy.until_printed("openai/late: its credential can be read again")
        for _ in range(6):
            assert (await http.request(**chat(stream=False))).status_code == 200
    assert set(upstream.journal.credentials) == set(good)


async def test_the_command_adds_what_the_api_refuses(provider, pool_proxy, tmp_path):
    """Whoever edits accounts.yaml may name variables and files; a running proxy takes them."""
    good = dict.fromkeys([FIRST, secret("env"), secret("file")], GOOD)
    upstream = await provider(by_credential(good))
    proxy = await pool_proxy([account("first")], provider=upstream, env={"FAKE_KEY": secret("env")})
    write(tmp_path / "key", secret("file").encode())
    file = ("--accounts-file", str(proxy.folder / "accounts.yaml"))
    for label, source in (("env", "FAKE_KEY"), ("file", str(tmp_path / "key"))):
        words = ("add", "openai", label, f"--{label}", source, *file)
        code, out = await account_pool_command(proxy.folder, *words)
        assert code == 0, out
        await proxy.until_printed(f"reloaded: added openai/{label}")
    async with proxy.client() as http:
        for _ in range(3):
            assert (await http.request(**chat(stream=False))).status_code == 200
    assert set(upstream.journal.credentials) == set(good)


async def test_the_admin_token_reads_nothing(provider, pool_proxy, tmp_path):
    """Not a variable, not a file, and nothing is sent to an address that was named."""
    upstream = await provider(by_credential({}))
    proxy = await pool_proxy([account("first")], env={"FAKE_KEY": secret("env")})
    write(tmp_path / "key", secret("file").encode())
    login = {"refresh_token": "${FAKE_KEY}", "client_id": "${FAKE_KEY}"}
    address = f"http://127.0.0.1:{upstream.port}/token"
    tokens = [
        {"env": "FAKE_KEY"},
        {"file": str(tmp_path / "key")},
        {"command": f"cat {tmp_path / 'key'}"},
        {"keychain": "x"},
        {"oauth": {**login, "token_url": address}},
        {"oauth": login},
    ]
    async with direct(proxy) as own:
        for token in tokens:
            for name in ("openai", "codex"):
                body = {"provider": name, "label": "new", "token": token}
                if token == tokens[-1] and name == "codex":
                    body["token"] = {"oauth": {**login, "access_token": "$FAKE_KEY"}}
                    body["enabled"] = False  # its vendor is not asked by a test
                answer = await own.post("/account-pool/add", json=body, headers=admin(proxy))
                expected = 201 if "enabled" in body else 422
                assert answer.status_code == expected, (body, answer.text)
    assert upstream.journal.requests == []
    written = (proxy.folder / "accounts.yaml").read_text()
    assert "$${FAKE_KEY}" in written
    assert "${FAKE_KEY}" not in written.replace("$${FAKE_KEY}", "")


async def test_a_tool_that_logs_out_while_it_serves(provider, pool_proxy, tmp_path):
    """The last token is used while it is good: the tool may be writing just now."""
    upstream = await provider(by_credential({FIRST: GOOD, secret("second"): GOOD}))
    path = tmp_path / ".credentials.json"
    write(path, login("first"))
    proxy = await pool_proxy([account("first", token={"file": str(path)})], provider=upstream)
    async with proxy.client() as http:
        write(path, BLANK)
        await proxy.until_printed("holds no login; its tool is logged out: run `claude`")
        assert (await http.request(**chat(stream=False))).status_code == 200
        write(path, login("second"))
        await proxy.until_printed("its credential can be read again")
        assert (await http.request(**chat(stream=False))).status_code == 200
    assert upstream.journal.credentials == [FIRST, secret("second")]


async def test_an_account_of_the_environment_that_cannot_be_used(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: GOOD}))
    proxy = await pool_proxy(
        None,
        provider=upstream,
        env={"OPENAI_API_KEY": FIRST, "ANTHROPIC_API_KEY": "two words"},
    )
    await proxy.until_printed("anthropic/default: env ANTHROPIC_API_KEY: .*has a space")
    async with proxy.client() as http:
        assert (await http.request(**chat(stream=False))).status_code == 200


async def test_what_looks_wrong_is_said_once(provider, pool_proxy):
    """One token under two labels, known at once or after a command, and another vendor's key."""
    upstream = await provider(by_credential({FIRST: GOOD}))
    accounts = [
        account("first"),
        account("again", token=FIRST),
        account("command", token={"command": f"echo {FIRST}"}),
        account("claude", token="sk-ant-api03-fake"),
        account("off", token=FIRST, enabled=False),
        account("first", "codex", token="sk-proj-fake"),
    ]
    proxy = await pool_proxy(accounts, provider=upstream)
    expected = [
        "openai/again: has the same token as openai/first; a limit of one",
        "openai/command: has the same token as openai/first; a limit of one",
        "openai/claude: its token looks like an API key of Anthropic; write provider: anthropic",
        "codex/first: accounts.yaml: this token is not one for codex; it is an API key",
    ]
    for text in expected:
        await proxy.until_printed(text)
    async with proxy.client() as http:
        assert (await http.request(**chat(stream=False))).status_code == 200
    (proxy.folder / "accounts.yaml").write_text(json.dumps({"accounts": accounts[:4]}))
    await proxy.until_printed(": removed openai.off")
    async with direct(proxy) as http:
        warnings = (await http.get("/account-pool")).json()["warnings"]
    for text in expected[:3]:
        assert len([line for line in proxy.lines if text in line]) == 1
        assert len([warning for warning in warnings if text in warning]) == 1
    assert len(warnings) == 3


async def test_a_login_that_ends_soon_is_told_by_the_pages(provider, pool_proxy, tmp_path):
    """By accounts.yaml, and by what a tool has stored; in a week and a day nothing is said."""
    upstream = await provider(lambda _request: openai.chat_answer())
    in_days = lambda days: time.time() + days * 86400  # noqa: E731 - one expression
    login = {"accessToken": "sk-ant-oat01-fake-b", "expiresAt": int(in_days(1) * 1000)}
    file = tmp_path / "login.json"
    ends = {"refreshTokenExpiresAt": int(in_days(3) * 1000)}
    file.write_text(json.dumps({"claudeAiOauth": {**login, **ends}}))
    file.chmod(0o600)

    def oauth(days: float) -> dict[str, object]:
        tokens = {"refresh_token": f"fake-{days}", "access_token": f"sk-ant-oat01-fake-{days}"}
        return {"oauth": {**tokens, "expires_at": in_days(1), "refresh_expires_at": in_days(days)}}

    accounts = [
        account("soon", "claude-code", token=oauth(2.5)),
        account("later", "claude-code", token=oauth(8)),
        account("over", "claude-code", token=oauth(-1)),
        account("tool", "claude-code", token={"file": str(file)}),
        account("off", "claude-code", token=oauth(1), enabled=False),
    ]
    proxy = await pool_proxy(accounts, provider=upstream)
    async with direct(proxy) as http:
        warnings = (await http.get("/account-pool")).json()["warnings"]
    assert [re.sub(r"on \d{4}\S+ \S+ UTC", "on DAY", warning) for warning in warnings] == [
        "claude-code/soon: its login ends on DAY; log in again: account-pool login claude "
        "--label soon --renew",
        "claude-code/over: its login ended on DAY; log in again: account-pool login claude "
        "--label over --renew",
        "claude-code/tool: its login ends on DAY; log in with claude again",
    ]


#: A keychain: a file of JSON, {service: text}; locked while there is none.
KEYCHAIN = """
import json, os
from pathlib import Path
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked

class Keyring(KeyringBackend):
    priority = 1

    def get_password(self, service, username):
        try:
            return json.loads(Path(os.environ["FAKE_KEYCHAIN"]).read_text()).get(service)
        except FileNotFoundError:
            raise KeyringLocked("locked") from None

    def set_password(self, service, username, password):
        raise NotImplementedError
"""


async def test_a_keychain_that_is_unlocked_later(provider, pool_proxy, tmp_path):
    upstream = await provider(by_credential({FIRST: GOOD, secret("second"): GOOD}))
    (tmp_path / "fake_keychain.py").write_text(KEYCHAIN)
    held = tmp_path / "keychain.json"
    item = {"keychain": "Claude Code-credentials", "pointer": POINTER}
    proxy = await pool_proxy(
        [account("first"), account("second", token=item)],
        provider=upstream,
        options={"pool_strategy": "round-robin"},
        env={
            "PYTHON_KEYRING_BACKEND": "fake_keychain.Keyring",
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "FAKE_KEYCHAIN": str(held),
        },
    )
    await proxy.until_printed("openai/second: keychain Claude .*: the keychain is locked")
    async with proxy.client() as http:
        assert (await http.request(**chat(stream=False))).status_code == 200
        write(held, json.dumps({"Claude Code-credentials": login("second").decode()}).encode())
        await proxy.until_printed("openai/second: its credential can be read again", 30)
        for _ in range(2):
            assert (await http.request(**chat(stream=False))).status_code == 200
    assert set(upstream.journal.credentials) == {FIRST, secret("second")}


@pytest.mark.parametrize("ends_ms", [0, 1_600_000_000_000, 9_999_999_999_999])
async def test_a_token_whose_end_cannot_be_true_is_tried_last(
    provider, pool_proxy, tmp_path, ends_ms
):
    """It comes first by its priority, and is good: only what is said of its end is wrong."""
    path = tmp_path / ".credentials.json"
    content = {"claudeAiOauth": {"accessToken": FIRST, "expiresAt": ends_ms}}
    write(path, json.dumps(content).encode())
    limited = openai.rate_limited(600)
    upstream = await provider(by_credential({FIRST: GOOD, secret("second"): [GOOD, limited]}))
    accounts = [account("first", token={"file": str(path)}), account("second", priority=1)]
    proxy = await pool_proxy(accounts, provider=upstream)
    await proxy.until_printed("openai/first: .*so it is used when no other account can serve")
    async with proxy.client() as http:
        for text in ("One", "Two", "Three"):
            assert (await http.request(**chat(text, stream=False))).status_code == 200
    # The second request is refused there and served here; then it is as good as any.
    assert upstream.journal.credentials == [secret("second")] * 2 + [FIRST] * 2


def codex_login(label: str) -> bytes:
    tokens = {"access_token": secret(label), "account_id": IDS[label]}
    return json.dumps({"tokens": tokens}).encode()


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_file_that_holds_another_account_is_a_new_account(
    provider, pool_proxy, tmp_path, restarted
):
    path = tmp_path / "auth.json"
    write(path, codex_login("first"))
    limited = codex.usage_limit()
    upstream = await provider(by_credential({FIRST: limited, secret("second"): RESPONSE}))
    accounts = [account("me", "codex", token={"file": str(path)})]
    options = {"pool_state": str(tmp_path / "state.sqlite"), "pool_max_wait": 0.1}
    proxy = await pool_proxy(accounts, provider=upstream, options=options)
    async with proxy.client() as http:
        for _ in range(2):
            assert (await http.request(**ask_codex())).status_code == 429
        assert (await state(proxy, "codex/me"))["state"] == "cooling"
        if not restarted:
            write(path, codex_login("second"))
            await proxy.until_printed("codex/me: its credential is of another account now")
            assert (await http.request(**ask_codex())).status_code == 200
    if restarted:
        await proxy.stop()
        proxy = await pool_proxy(accounts, provider=upstream, options=options)
        # The same account is as it was.
        assert (await state(proxy, "codex/me"))["state"] == "cooling"
        await proxy.stop()
        write(path, codex_login("second"))
        proxy = await pool_proxy(accounts, provider=upstream, options=options)
        async with proxy.client() as http:
            assert (await http.request(**ask_codex())).status_code == 200
    assert upstream.journal.requests[-1].header("chatgpt-account-id") == IDS["second"]
    assert (await state(proxy, "codex/me"))["state"] == "available"
