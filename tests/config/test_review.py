"""Credentials that cannot be read now: `load` takes the file, `review` says what is missing."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S

from account_pool.config.configuration import from_environment
from account_pool.config.loader import load
from account_pool.config.review import review
from account_pool.credentials import files

ENVIRON = {"A_KEY": "sk-abcdefgh", "EMPTY": " ", "SPACED": "sk-a b"}
PASTED = "a token seems to be pasted there: write it as the value of token itself"
SET = "set it where the proxy is started, or name another source"
RUN_CLAUDE = "its tool is logged out: run `claude` and log in"
RUN_CODEX = "its tool is logged out: run `codex login`"
BLANK = '{"claudeAiOauth": {"accessToken": "", "refreshToken": "", "expiresAt": 0}}'
PARTLY = "is not JSON, or only a part of it was written; name one that is JSON; it is read again"
#: The files there are: name, content, mode.
FILES = (
    ("open", "sk-open-to-all", 0o644),
    ("writable", "sk-writable", 0o620),
    ("empty", " \n", 0o600),
    ("lines", "sk-one\nsk-two\n", 0o600),
    ("tokens.json", '{"a": {"b": 1, "c": ["sk-listed"], "n": null}}', 0o600),
    ("half.json", '{"a":{"b":"sk-ha', 0o600),
    ("blank/.credentials.json", BLANK, 0o600),
    ("null/.credentials.json", '{"claudeAiOauth": null}', 0o600),
    ("other/.credentials.json", '{"mcpOAuth": {"x": {"accessToken": "sk-mcp"}}}', 0o600),
    ("good/.credentials.json", '{"claudeAiOauth": {"accessToken": "sk-ant-oat-fake"}}', 0o600),
    ("nothing/.credentials.json", "", 0o600),
    ("claude.json", BLANK, 0o600),
    ("none/auth.json", '{"OPENAI_API_KEY": null, "tokens": null}', 0o600),
    ("plain/auth.json", "[]", 0o600),
)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a directory with credential files of every kind."""
    monkeypatch.chdir(tmp_path)
    for name, text, mode in FILES:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
        Path(name).chmod(mode)
    Path("cut").write_bytes("sk-ä".encode()[:-1])
    Path("huge").touch(mode=0o600)
    os.truncate("huge", 1024 * 1024 + 1)
    Path("cut").chmod(0o600)
    os.mkfifo("pipe", 0o600)


def unreadable(account: str) -> list[str]:
    """Return why *account*, beside a good one, has no credential; the file is taken."""
    path = Path("accounts.yaml")
    path.write_text(
        f"accounts:\n  - {{provider: openai, label: good, token: '${{A_KEY}}'}}\n  - {account}\n"
    )
    path.chmod(0o600)
    config = load(path, ENVIRON)
    assert len(config.accounts) == 2
    return [str(problem) for problem in review(config, wall_now=0.0).unreadable]


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ('"   "', "accounts.yaml: the value is empty; put the token there"),
        (
            '"${NOPE}"',
            f"accounts.yaml: the environment variable NOPE is not set; {SET}",
        ),
        (
            '"a${NOPE}${NOPE}${NOR_THIS}"',
            "accounts.yaml: the environment variables NOPE and NOR_THIS are not set; set them "
            "where the proxy is started, or name another source",
        ),
        (
            '"${ghp_abcdefgh}"',
            f"accounts.yaml: the environment variable [not shown] is not set; {PASTED}",
        ),
        (
            "{env: ghp_abcdefgh}",
            f"env [not shown]: the environment variable [not shown] is not set; {PASTED}",
        ),
        (
            "{file: sk-fake-pasted-0001}",
            f"file [not shown]: the file [not shown] does not exist; {PASTED}",
        ),
        (
            "{file: tokens.json, pointer: /sk-fake-pasted-0001}",
            "file tokens.json pointer /[not shown]: the file tokens.json has nothing at "
            "/[not shown]; correct the pointer; each part of it is a key of the JSON",
        ),
        ('"${EMPTY}"', f"accounts.yaml: the environment variable EMPTY is empty; {SET}"),
        ("{env: EMPTY}", f"env EMPTY: the environment variable EMPTY is empty; {SET}"),
        ("{env: NOPE}", f"env NOPE: the environment variable NOPE is not set; {SET}"),
        (
            "{env: SPACED}",
            "env SPACED: the environment variable SPACED has a space, a line break or a "
            "character outside ASCII in it; put the token there alone, on one line",
        ),
        (
            "{env: sk_abc}",
            f"env [not shown]: the environment variable [not shown] is not set; {SET}",
        ),
        (
            "{file: nowhere}",
            "file nowhere: the file nowhere does not exist; create it, or correct the path",
        ),
        (
            "{file: .}",
            "file .: the file . cannot be read (it is a directory, not a file); name a file, or "
            "write {command: cat PATH}",
        ),
        (
            "{file: pipe}",
            "file pipe: the file pipe cannot be read (it is a pipe, not a file); name a file, or "
            "write {command: cat PATH}",
        ),
        (
            "{file: cut}",
            "file cut: the file cut is not text in UTF-8; name the file of the credential",
        ),
        (
            "{file: huge}",
            "file huge: the file huge cannot be read (it is larger than 1 MiB); name the file of "
            "the credential",
        ),
        ("{file: empty}", "file empty: the file empty is empty; put the token there"),
        (
            "{file: lines}",
            "file lines: the file lines has a space, a line break or a character outside ASCII "
            "in it; put the token there alone, on one line",
        ),
        (
            "{file: lines, pointer: /a}",
            f"file lines pointer /a: the file lines {PARTLY}",
        ),
        ("{file: half.json}", f"file half.json: the file half.json {PARTLY}"),
        (
            "{file: tokens.json, pointer: /a/x}",
            "file tokens.json pointer /a/x: the file tokens.json has nothing at /a/x; correct "
            "the pointer; each part of it is a key of the JSON",
        ),
        (
            "{file: tokens.json, pointer: /a/c/1}",
            "file tokens.json pointer /a/c/1: the file tokens.json has nothing at /a/c/1; "
            "correct the pointer; each part of it is a key of the JSON",
        ),
        (
            "{file: tokens.json, pointer: /a/b}",
            "file tokens.json pointer /a/b: the value at /a/b in tokens.json is not text; point "
            "to the token itself",
        ),
        (
            "{file: tokens.json, pointer: /a/n}",
            "file tokens.json pointer /a/n: the value at /a/n in tokens.json is not text; point "
            "to the token itself",
        ),
        (
            "{file: tokens.json}",
            "file tokens.json: the file tokens.json holds no login; add pointer: /json/pointer, "
            "which says where the token is",
        ),
        (
            "{file: blank/.credentials.json}",
            f"file blank/.credentials.json: the file blank/.credentials.json holds no login; "
            f"{RUN_CLAUDE}",
        ),
        (
            "{file: blank/.credentials.json, pointer: /claudeAiOauth/accessToken}",
            "file blank/.credentials.json pointer /claudeAiOauth/accessToken: the value at "
            f"/claudeAiOauth/accessToken in blank/.credentials.json is empty; {RUN_CLAUDE}",
        ),
        (
            "{file: null/.credentials.json, pointer: /claudeAiOauth/accessToken}",
            "file null/.credentials.json pointer /claudeAiOauth/accessToken: the file "
            f"null/.credentials.json has nothing at /claudeAiOauth/accessToken; {RUN_CLAUDE}",
        ),
        (
            "{file: other/.credentials.json, pointer: /claudeAiOauth/accessToken}",
            "file other/.credentials.json pointer /claudeAiOauth/accessToken: the file "
            f"other/.credentials.json has nothing at /claudeAiOauth/accessToken; {RUN_CLAUDE}",
        ),
        (
            "{file: good/.credentials.json, pointer: /claudeAiOauth/acessToken}",
            "file good/.credentials.json pointer /claudeAiOauth/acessToken: the file "
            "good/.credentials.json has nothing at /claudeAiOauth/acessToken; correct the "
            "pointer; each part of it is a key of the JSON",
        ),
        (
            "{file: nothing/.credentials.json}",
            f"file nothing/.credentials.json: the file nothing/.credentials.json is empty; "
            f"{RUN_CLAUDE}",
        ),
        (
            "{file: gone/.credentials.json}",
            "file gone/.credentials.json: the file gone/.credentials.json does not exist; "
            f"{RUN_CLAUDE}",
        ),
        (
            "{file: claude.json}",
            f"file claude.json: the file claude.json holds no login; {RUN_CLAUDE}",
        ),
        (
            "{file: none/auth.json, pointer: /tokens/access_token}",
            "file none/auth.json pointer /tokens/access_token: the file none/auth.json has "
            f"nothing at /tokens/access_token; {RUN_CODEX}",
        ),
        (
            "{file: plain/auth.json}",
            f"file plain/auth.json: the file plain/auth.json holds no login; {RUN_CODEX}",
        ),
        (
            "{file: plain/auth.json, pointer: /github/access}",
            "file plain/auth.json pointer /github/access: the file plain/auth.json has nothing at "
            "/github/access; correct the pointer; each part of it is a key of the JSON",
        ),
    ],
)
def test_a_credential_that_cannot_be_read_is_the_state_of_its_account(
    token: str, expected: str
) -> None:
    found = unreadable(f"{{provider: openai, label: work, token: {token}}}")
    assert found == [f"accounts.yaml:3: openai/work: {expected}"]
    assert "sk-" not in found[0] and "ghp_" not in found[0]


@pytest.mark.skipif(os.name != "posix", reason="modes are a matter of posix")
@pytest.mark.parametrize(("name", "mode"), [("open", "644"), ("writable", "620")])
def test_a_credential_file_others_may_use_is_not_used(name: str, mode: str) -> None:
    assert unreadable(f"{{provider: openai, label: work, token: {{file: {name}}}}}") == [
        f"accounts.yaml:3: openai/work: file {name}: the file {name} can be read or changed by "
        f"other users (mode {mode}); run: chmod 600 {name}"
    ]


@pytest.mark.parametrize(
    ("account", "expected"),
    [
        (
            "{provider: codex, label: a, token: sk-proj-abcdefgh}",
            "accounts.yaml: this token is not one for codex; it is an API key: write provider: "
            "openai",
        ),
        (
            "{provider: codex, label: a, token: fake-token}",
            "accounts.yaml: this token alone is not enough; the token does not name its ChatGPT "
            "account; write account_id: beside it (tokens.account_id in ~/.codex/auth.json)",
        ),
        (
            "{provider: codex, label: a, token: {oauth: {refresh_token: '${NOPE}'}}}",
            f"accounts.yaml: the environment variable NOPE is not set; {SET}",
        ),
    ],
)
def test_what_its_provider_cannot_use(account: str, expected: str) -> None:
    assert unreadable(account) == [f"accounts.yaml:3: codex/a: {expected}"]


@pytest.mark.parametrize(
    "account",
    [
        "{provider: codex, label: a, token: sk-proj-abcdefgh, enabled: false}",
        "{provider: openai, label: a, token: {file: pipe}, enabled: false}",
        # A command is run by the proxy only.
        "{provider: openai, label: a, token: {command: /nonexistent/program}}",
        "{provider: claude-code, label: a, token: {file: good/.credentials.json}}",
        "{provider: codex, label: a, token: {oauth: {refresh_token: fake}}}",
    ],
)
def test_what_is_not_read_or_good_is_not_listed(account: str) -> None:
    assert unreadable(account) == []


def test_an_end_that_cannot_be_true_is_told() -> None:
    Path("expired").touch(mode=0o600)
    Path("expired").write_text('{"claudeAiOauth": {"accessToken": "fake", "expiresAt": 1000000}}')
    Path("accounts.yaml").write_text(
        "accounts: [{provider: claude-code, label: a, token: {file: expired}}]"
    )
    config = load(Path("accounts.yaml"), {})
    assert review(config, wall_now=9e5).notices == ()
    (notice,) = review(config, wall_now=1.8e9).notices
    assert str(notice) == (
        "accounts.yaml:1: claude-code/a: file expired: its token ends on 1970-01-12 13:46 UTC "
        "already, according to its expiry date; that may be wrong, so it is used when no other "
        "account can serve"
    )


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (7.1, None),
        (6.9, "its login ends on 2026-06-07 21:36 UTC"),
        (-0.1, "its login ended on 2026-05-31 21:36 UTC"),
    ],
)
def test_the_end_of_a_login_is_told_for_a_week(days: float, said: str | None) -> None:
    now = 1780272000.0  # 2026-06-01
    ends = now + days * 86400
    login = {"accessToken": "sk-ant-oat-fake", "refreshTokenExpiresAt": int(ends * 1000)}
    Path("good/.credentials.json").write_text(json.dumps({"claudeAiOauth": login}))
    Path("accounts.yaml").write_text(
        "accounts:\n"
        "  - {provider: claude-code, label: tool, token: {file: good/.credentials.json}}\n"
        "  - provider: claude-code\n"
        "    label: my own\n"
        f"    token: {{oauth: {{refresh_token: fake, refresh_expires_at: {int(ends)}}}}}\n"
        "  - {provider: openai, label: a, token: sk-fake}\n"
    )
    notices = review(load(Path("accounts.yaml"), {}), wall_now=now).notices
    again = "log in again: account-pool login claude --label my-own --renew"
    assert [(one.key, one.wrong, one.remedy) for one in notices] == (
        [
            ("claude-code/tool", said, "log in with claude again"),
            ("claude-code/my-own", said, again),
        ]
        if said
        else []
    )


def test_the_places_of_the_environment_are_judged_alike() -> None:
    Path("github_token").write_text("ghu_file")
    Path("github_token").chmod(0o644)
    config = from_environment(
        {"OPENAI_API_KEY": "sk-a b"}, github_token=None, account_type=None, directories=[Path()]
    )
    assert [str(entry.account.key) for entry in config.accounts] == [
        "openai/default",
        "copilot/default",
    ]
    assert [str(problem).split(";")[0] for problem in review(config, wall_now=0.0).unreadable] == [
        "environment: openai/default: env OPENAI_API_KEY: the environment variable OPENAI_API_KEY "
        "has a space, a line break or a character outside ASCII in it",
        "environment: copilot/default: file github_token: the file github_token can be read or "
        "changed by other users (mode 644)",
    ]


def test_a_file_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr(files, "AT_ONCE_S", 0.01)
    monkeypatch.setattr(files, "read_private", lambda *_: answers.wait(PATIENCE_S) and "sk-fake")
    Path("accounts.yaml").write_text(
        "accounts:\n  - {provider: openai, label: a, token: {file: away}}\n"
    )
    [problem] = review(load(Path("accounts.yaml"), {}), wall_now=0.0).unreadable
    assert problem.wrong == "file away: the file away is still being read"
    assert "check the disk or share that it is on" in problem.remedy
    answers.set()
