"""A credential in the keychain, which is one in memory here."""

from __future__ import annotations

import getpass
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.credentials import SimpleCredential
from keyring.errors import InitError, KeyringError, KeyringLocked, NoKeyringError
from tests.credentials.fakes import FakeClock, Published, entry, until
from tests.patience import PATIENCE_S

from account_pool.config.configuration import Config
from account_pool.config.review import review
from account_pool.core.credential import Secret
from account_pool.credentials.acquire import AcquireContext
from account_pool.credentials.keeper import Keeper
from account_pool.credentials.keychain import KeychainSource
from account_pool.credentials.sources import CredentialError

CLAUDE = "Claude Code-credentials"
POINTER = "/claudeAiOauth/accessToken"


class Memory(KeyringBackend):
    """Holds (service, user): password. Can fail, and keep whoever asks waiting."""

    priority = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.items: dict[tuple[str, str], str] = {}
        self.failure: Exception | None = None
        self.open = threading.Event()
        self.open.set()
        self.asked = 0

    def get_password(self, service: str, username: str) -> str | None:
        self.asked += 1
        self.open.wait(PATIENCE_S)
        if self.failure is not None:
            raise self.failure
        return self.items.get((service, username))

    def get_credential(self, service: str, username: str | None) -> Any:
        for (name, user), password in self.items.items():
            if name == service and username in (None, user):
                return SimpleCredential(user, password)
        return None

    def set_password(self, service: str, username: str, password: str) -> None:
        raise NotImplementedError


@pytest.fixture
def keychain() -> Iterator[Memory]:
    before = keyring.get_keyring()
    memory = Memory()
    keyring.set_keyring(memory)
    yield memory
    memory.open.set()
    keyring.set_keyring(before)


async def test_all_of_an_item_or_a_part_of_it(keychain: Memory) -> None:
    user = getpass.getuser()
    keychain.items = {
        ("plain", user): "sk-plain",
        ("plain", "another"): "sk-another",
        ("of another", "another"): "sk-another",
        ("json", user): '{"a": {"b": "sk-inner"}, "c": 1}',
        (CLAUDE, user): '{"claudeAiOauth": {"accessToken": "sk-ant-oat-fake", "expiresAt": 1e12}}',
    }
    assert (await KeychainSource("plain").read()).secret == Secret("sk-plain")
    assert (await KeychainSource("of another").read()).secret == Secret("sk-another")
    assert (await KeychainSource("json", "/a/b").read()).secret == Secret("sk-inner")
    for pointer in (POINTER, None):
        reading = await KeychainSource(CLAUDE, pointer).read()
        assert (reading.secret, reading.expires_at) == (Secret("sk-ant-oat-fake"), 1e9)
    assert KeychainSource("json", "/a/b").describe() == "keychain json pointer /a/b"


async def test_a_token_instead_of_its_name_is_not_shown(keychain: Memory) -> None:
    keychain.items["sk-fake-held-0001", getpass.getuser()] = "{}"
    for service in ("sk-fake-pasted-0001", "sk-fake-held-0001"):
        source = KeychainSource(service, "/sk-fake-pointer-0001")
        with pytest.raises(CredentialError) as caught:
            await source.read()
        said = f"{source.describe()}: {caught.value}"
        assert said.startswith("keychain [not shown] pointer /[not shown]: ")
        assert "fake" not in said
        assert ("a token seems to be pasted there" in said) is (service == "sk-fake-pasted-0001")


@pytest.mark.parametrize(
    ("held", "failure", "said"),
    [
        (None, None, "the keychain has no item X; correct its name, or name another source"),
        (" ", None, "the keychain item X is empty; put the token there"),
        (
            '{"a"',
            None,
            "the keychain item X is not JSON, or only a part of it was written; name one that is "
            "JSON; it is read again",
        ),
        (None, KeyringLocked("sk-x"), "the keychain is locked; unlock it; it is tried again"),
        (None, InitError("sk-x"), "the keychain is locked; unlock it; it is tried again"),
        (
            None,
            NoKeyringError("sk-x"),
            "this system has no keychain that can be read; start one (Secret Service, KWallet) "
            "where the proxy runs, or name another source",
        ),
        (
            None,
            KeyringError("sk-x"),
            "the keychain cannot be read (KeyringError); try `keyring get` by hand; it is tried "
            "again",
        ),
        (
            None,
            ValueError("sk-x"),
            "the keychain cannot be read (ValueError); try `keyring get` by hand; it is tried "
            "again",
        ),
    ],
)
async def test_what_cannot_be_read_says_why(
    keychain: Memory, held: str | None, failure: Exception | None, said: str
) -> None:
    keychain.failure = failure
    if held is not None:
        keychain.items["X", getpass.getuser()] = held
    with pytest.raises(CredentialError) as caught:
        await KeychainSource("X").read()
    assert str(caught.value) == said
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("service", "login"),
    [
        (CLAUDE, "run `claude` and log in"),
        ("Codex Auth", "run `codex login`"),
        ("gh:github.com", "run `gh auth login`"),
    ],
)
async def test_a_tool_that_is_logged_out(keychain: Memory, service: str, login: str) -> None:
    with pytest.raises(CredentialError) as caught:
        await KeychainSource(service).read()
    assert str(caught.value) == (
        f"the keychain has no item {service}; its tool is logged out: {login}"
    )


async def test_one_that_waits_for_its_user_holds_up_nothing(keychain: Memory) -> None:
    keychain.open.clear()
    keychain.items["X", getpass.getuser()] = "sk-late"
    source = KeychainSource("X", timeout_s=0.05)
    with pytest.raises(CredentialError, match=r"did not answer within 0\.05 s; unlock it"):
        await source.read()
    with pytest.raises(CredentialError, match="has not answered yet"):
        await source.read()
    assert keychain.asked == 1
    keychain.open.set()
    await source._thread.rest(PATIENCE_S)
    source.timeout_s = PATIENCE_S
    assert (await source.read()).secret == Secret("sk-late")


async def test_an_answer_ends_a_question_whenever_its_thread_does(
    keychain: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading.Thread, "is_alive", lambda _thread: True)
    keychain.items["X", getpass.getuser()] = "sk-1"
    source = KeychainSource("X")
    assert [(await source.read()).secret for _ in range(2)] == [Secret("sk-1")] * 2


async def test_a_question_that_never_came_is_asked_again(
    keychain: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more_threads(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    keychain.items["X", getpass.getuser()] = "sk-1"
    source = KeychainSource("X")
    with monkeypatch.context() as busy:
        busy.setattr(threading.Thread, "start", no_more_threads)
        with pytest.raises(RuntimeError):
            await source.read()
    assert (await source.read()).secret == Secret("sk-1")


async def test_the_package_may_be_absent(keychain: Memory, monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "keyring", None)
    with pytest.raises(CredentialError, match="the package keyring is not there; install it"):
        await KeychainSource("X").read()


class NoExchange:
    def handles(self, _provider: str) -> bool:
        return False


async def test_an_account_heals_and_is_renewed(
    keychain: Memory, published: Published, clock: FakeClock
) -> None:
    keychain.failure = KeyringLocked()
    keeper = Keeper(
        [entry("openai/me", source=KeychainSource("X"))],
        published,
        AcquireContext(exchange=NoExchange()),  # type: ignore[arg-type] - all that is asked of it
        wall_clock=clock,
        sleep=clock.sleep,
        chance=lambda: 0.0,
    )
    keeper.start()
    await until(lambda: bool(published.all))
    assert published.problems["openai/me"] == (
        "keychain X: the keychain is locked; unlock it; it is tried again"
    )
    keychain.failure = None
    for seconds, token in ((16, "sk-1"), (300, "sk-2")):
        keychain.items["X", getpass.getuser()] = token
        await clock.advance(seconds)
        await until(lambda token=token: published.all[-1][1] == {"key": token})
    keeper.stop()


def test_check_does_not_ask_it(keychain: Memory) -> None:
    one = entry("openai/me", source=KeychainSource("X"))
    assert review(Config((one,), {}, {}, {}, None), wall_now=0.0).unreadable == ()
    assert keychain.asked == 0


# -- as the keychains of the systems find their items


class FileKeychain(KeyringBackend):
    """Keeps its items in a file, by target, as Windows does, or by service and user (macOS)."""

    priority = 1.0

    def __init__(self, file: Path, *, windows: bool) -> None:
        super().__init__()
        self.file = file
        self.windows = windows

    def put(self, target: str, user: str, secret: str) -> None:
        items = json.loads(self.file.read_text()) if self.file.exists() else []
        self.file.write_text(json.dumps([*items, [target, user, secret]]))

    def get_password(self, service: str, username: str) -> str | None:
        for target, user, secret in json.loads(self.file.read_text()):
            if target == service and user == username:
                return str(secret)
        return None

    def get_credential(self, service: str, username: str | None) -> Any:
        # Of macOS: without a name nothing is found.
        for target, user, secret in json.loads(self.file.read_text()) if self.windows else ():
            if target == service:
                return SimpleCredential(user, secret)
        return None

    def set_password(self, service: str, username: str, password: str) -> None:
        raise NotImplementedError


LOGIN = json.dumps({"tokens": {"access_token": "fake-access", "account_id": "a"}})
AS_UTF_16 = b"gho_fake000!".decode("utf-16-le")


@pytest.mark.parametrize(
    ("platform", "item", "expected"),
    [
        ("darwin", ("Codex Auth", "Codex Auth", "cli|HOME", LOGIN), "fake-access"),
        ("darwin", ("gh:github.com", "gh:github.com", "", "gho_fake000"), "gho_fake000"),
        ("win32", ("Codex Auth", "cli|HOME.Codex Auth", "cli|HOME", LOGIN), "fake-access"),
        ("win32", ("gh:github.com", "gh:github.com:", "", AS_UTF_16), "gho_fake000!"),
        ("win32", ("mine", "mine", "somebody", "sk-fake"), "sk-fake"),
    ],
)
async def test_an_item_is_found_where_its_tool_keeps_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    item: tuple[str, str, str, str],
    expected: str,
) -> None:
    """*item*: the service as it is written down; the target, the user and the secret."""
    home = tmp_path.resolve()
    spelt = f"\\\\?\\{home}" if platform == "win32" else str(home)
    name = f"cli|{hashlib.sha256(spelt.encode()).hexdigest()[:16]}"
    before = keyring.get_keyring()
    made = FileKeychain(tmp_path / "items.json", windows=platform == "win32")
    made.put("another", "me", "sk-other")
    service, target, user, secret = (text.replace("cli|HOME", name) for text in item)
    made.put(target, user, secret)
    monkeypatch.setenv("CODEX_HOME", str(home))
    monkeypatch.setattr(sys, "platform", platform)
    keyring.set_keyring(made)
    try:
        assert (await KeychainSource(service).read()).secret.reveal() == expected
    finally:
        keyring.set_keyring(before)
