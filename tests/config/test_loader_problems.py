"""What `load` says about a broken accounts.yaml: exact texts, all problems at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from account_pool import filesystem
from account_pool.config import edit, yaml_nodes
from account_pool.config.edit import add_account, put_in_place
from account_pool.config.loader import load
from account_pool.config.options import FAST_STEPS
from account_pool.config.problems import CannotEdit, ConfigError, Problem
from account_pool.config.providers import unknown_provider

ENVIRON = {"A_KEY": "sk-abcdefgh"}
ACCOUNT = "accounts:\n  - provider: openai\n    label: work\n    token: ${A_KEY}\n"
HOW_TOKEN = (
    "write token: ${NAME_OF_A_VARIABLE}, or one of {env: ...}, {file: ...}, {command: ...}, "
    "{keychain: ...}, {oauth: ...}"
)
KEYS = (
    "provider, label, token, account_type, priority, weight, models, max_concurrent, "
    "min_interval, enabled, reserve, account_id, project, organization, openai_project, host, "
    "deployments"
)
HOW_ACCOUNTS = "list accounts below it, each beginning with `- provider: ...`"
HOSTS = 'write a list such as ["llm.example.com", "localhost:9443"]'
DIFFER = "YAML 1.1 and 1.2 read this value differently"
DECIMALS = "write a number in decimals, or put it in quotes if it is text"
STEPS = ", ".join(FAST_STEPS)
NO_CHARACTER = "an escape such as \\ud800 stands for no character; write the character itself"
UNREAD = "check indentation, quotes and brackets on this line and the ones before"


@pytest.fixture(autouse=True, params=["C", "Python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines without PyYAML's C parser say the same."""
    if request.param == "Python":
        monkeypatch.setattr(yaml_nodes, "PARSERS", (yaml.SafeLoader,))
    elif not yaml.__with_libyaml__:
        pytest.skip("PyYAML has no C parser here")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)
    Path("binary").write_bytes(b"\xff\xfe\x00")


def problems_of(text: str) -> list[str]:
    """Return what is wrong with *text*, without the name of the file."""
    path = Path("accounts.yaml")
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, ENVIRON)
    lines = str(caught.value).split("\n")
    assert len(lines) == len(caught.value.problems)
    assert all(line.startswith("accounts.yaml:") for line in lines)
    return [line.removeprefix("accounts.yaml:") for line in lines]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("priority: high", '"high" is not a whole number; write a number such as 0 or 1'),
        ("priority: 1.5", "1.5 is not a whole number; write a number such as 0 or 1"),
        ("priority: true", "true is not a whole number; write a number such as 0 or 1"),
        ("priority:", "has no value; write a number such as 0 or 1"),
        ("weight: 0", "0 is less than 1; write a number such as 1 or 2"),
        (
            "models: gpt-*",
            '"gpt-*" is not a list; write a list such as ["gpt-*", "!gpt-5-pro*"]',
        ),
        (
            'max_concurrent: "8"',
            '"8" is not a whole number; write a number such as 8, or leave it out for no limit',
        ),
        (
            "max_concurrent: 0",
            "0 is less than 1; write a number such as 8, or leave it out for no limit",
        ),
        ("min_interval: -1", "-1 is less than 0; write seconds, such as 0.5"),
        ("min_interval: .inf", "inf is not a finite number; write seconds, such as 0.5"),
        ("min_interval: [1]", "a list is not a number; write seconds, such as 0.5"),
        ('enabled: "yes"', '"yes" is not true or false; write true or false'),
        ("enabled: yes", f"{DIFFER}; write true or false, or put it in quotes if it is text"),
        ("organization: 012", f"{DIFFER}; {DECIMALS}"),
        ("max_concurrent: 1_000", f"{DIFFER}; {DECIMALS}"),
        ("min_interval: 1e3", f"{DIFFER}; {DECIMALS}"),
        ("host: 22:30", f"{DIFFER}; {DECIMALS}"),
        ("models: 2026-12-01", f"{DIFFER}; put it in quotes"),
        ("models: =", f"{DIFFER}; put it in quotes"),
        ("models: !!python/name:os.system [a]", "a tag (!name) is not accepted here; remove it"),
        ("on: 1", "YAML 1.1 and 1.2 read this key differently; put it in quotes"),
        (
            "account_type: pro",
            '"pro" is not accepted; write one of individual, business, enterprise',
        ),
        (
            'organization: "a\\nb"',
            "has a line break or a character outside ASCII in it; write it as the provider shows "
            "it",
        ),
        ("organization: 007", "7 is not text; put it in quotes"),
        (
            "account_id: abc",
            "does not belong to an account of openai; its accounts may set organization, "
            "openai_project, host",
        ),
        ("host: a b", '"a b" is not a host; write host or host:port, without a scheme or a path'),
        ("host: https://x.y", '"https://x.y" is an address; write its host or host:port only'),
        (
            "host: x.example.com",
            '"x.example.com" is not a host of openai; add it to providers.openai.hosts',
        ),
        ('host: "*.x.example.com"', "is not a single host; write it without *"),
        ("prioritty: 3", "unknown key; did you mean priority?"),
        ("colour: red", f"unknown key; write one of {KEYS}"),
        ("label: again", "label appears twice, first on line 3; keep one of them"),
    ],
)
def test_a_wrong_key_of_an_account_is_named_with_line_and_remedy(line: str, expected: str) -> None:
    key = line.partition(":")[0]
    assert problems_of(f"{ACCOUNT}    {line}\n") == [f"5: accounts[0].{key}: {expected}"]


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("", f"has no value; {HOW_TOKEN}"),
        ('""', f"is empty; {HOW_TOKEN}"),
        ("12345", "is not text; put it in quotes"),
        ("true", "is not text; put it in quotes"),
        ("[sk-abc]", f"is a list, not one token; {HOW_TOKEN}"),
        (
            '"sk-abc def"',
            "the value has a space, a line break or a character outside ASCII in it; put the "
            "token there alone, on one line",
        ),
        (
            "${A_KEY",
            "a ${...} in it is not the name of a variable; write ${NAME}, or $$ for a dollar sign",
        ),
        (
            "${a-b}",
            "a ${...} in it is not the name of a variable; write ${NAME}, or $$ for a dollar sign",
        ),
        (
            "{env: sk-abc}",
            "the value of env is not the name of a variable; write {env: OPENAI_API_KEY}",
        ),
        (
            "{sk-abc}",
            "has an unknown key; write one of env, file, pointer, command, keychain, oauth",
        ),
        (
            "{token:sk-abc}",
            "has an unknown key; write one of env, file, pointer, command, keychain, oauth",
        ),
        ("{comand: x}", "has an unknown key; did you mean command?"),
        ("{env: 1}", 'the value of env is not text; write {env: "..."}'),
        ("{}", f"names no source; {HOW_TOKEN}"),
        ("{pointer: /x}", f"names no source; {HOW_TOKEN}"),
        (
            "{env: A_KEY, command: gh auth token}",
            "names two sources, env and command; keep one of them",
        ),
        (
            "{env: A_KEY, pointer: /x}",
            "pointer needs a file or a keychain; write {file: PATH, pointer: /json/pointer}",
        ),
        (
            "{file: tokens.json, pointer: a}",
            "the pointer does not start with /; write one such as /tokens/access",
        ),
        (
            "{keychain: Some item, pointer: a}",
            "the pointer does not start with /; write one such as /tokens/access",
        ),
        ("{keychain: ' '}", 'the value of keychain is not text; write {keychain: "..."}'),
        (
            "{keychain: a, file: b}",
            "names two sources, keychain and file; keep one of them",
        ),
        (
            '{command: "gh \'auth"}',
            "the command has an unclosed quote; close it",
        ),
        (
            "{oauth: {access_token: sk-abc}}",
            "oauth has no token_url and no client_id; write it: the refresh of openai is not "
            "built in",
        ),
        (
            "{oauth: sk-abc}",
            "the value of oauth is not a mapping; write {oauth: {refresh_token: ..., "
            "access_token: ..., expires_at: ...}}",
        ),
        (
            "{oauth: {refresh_token: sk-abc}, env: A_KEY}",
            "oauth cannot be combined with another key; keep oauth only",
        ),
        (
            "{oauth: {sk-abc}}",
            "oauth has an unknown key; its keys are access_token, refresh_token, expires_at, "
            "refresh_expires_at, token_url, client_id, client_secret, scope, style",
        ),
        (
            "{oauth: {access_token: sk-abc, token_url: 'https://x.example/token', client_id: c}}",
            "oauth has no refresh_token; write oauth: {refresh_token: ..., access_token: ..., "
            "expires_at: ...}",
        ),
        (
            "{oauth: {refresh_token: sk-abc, token_url: 'http://x.example/', client_id: c}}",
            "the token_url cannot be used: a token would travel unencrypted; write an https "
            "address",
        ),
        (
            "{oauth: {refresh_token: sk-abc, token_url: 'https://x.example/', client_id: c, "
            "expires_at: soon}}",
            "expires_at is not a point in time; write it as 2026-12-01T00:00:00Z, or leave it out",
        ),
    ],
)
def test_a_wrong_token_is_explained_and_not_repeated(token: str, expected: str) -> None:
    text = f"accounts:\n  - provider: openai\n    label: work\n    token: {token}\n"
    found = problems_of(text)
    assert found == [f"4: accounts[0].token: {expected}"]
    assert "sk-" not in found[0] and "ghp_" not in found[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [" the file is empty; list accounts in it, or run account-pool add PROVIDER LABEL"]),
        (
            "# no\n",
            [" the file is empty; list accounts in it, or run account-pool add PROVIDER LABEL"],
        ),
        ("accounts:\n", [f"1: accounts: has no value; {HOW_ACCOUNTS}"]),
        ("accounts: {}\n", [f"1: accounts: a mapping is not a list; {HOW_ACCOUNTS}"]),
        ("accounts: sk-abc\n", [f"1: accounts: text is not a list; {HOW_ACCOUNTS}"]),
        ("accounts: []\n", [f"1: accounts: the list is empty; {HOW_ACCOUNTS}"]),
        ("pool: {}\n", [f"1: accounts: is missing; add it and {HOW_ACCOUNTS}"]),
        ("- a\n", ["1: the file is not a mapping; start it with `accounts:`"]),
        (
            "accounts:\n  - sk-abc\n  -\n",
            [
                "2: accounts[0]: text is not an account; write its keys as a mapping",
                "3: accounts[1]: no value is not an account; write its keys as a mapping",
            ],
        ),
        (
            "accounts:\n  - {}\n",
            [
                "2: accounts[0].provider: is missing; write the name of a provider, such as openai",
                "2: accounts[0].label: is missing; write a name for the account, such as work",
                f"2: accounts[0].token: is missing; {HOW_TOKEN}",
            ],
        ),
        (
            f"{ACCOUNT}acounts: []\n",
            ["5: acounts: unknown key; did you mean accounts?"],
        ),
        (
            "accounts:\n  - provider: opnai\n    label: ' '\n    token: x\n",
            [
                '2: accounts[0].provider: "opnai" is not a provider; did you mean openai?',
                "3: accounts[0].label: is empty; a label needs at least one character other "
                "than a space",
            ],
        ),
        (
            "accounts:\n  - {provider: claude-code, label: a, token: x, reserve: {5h: 150%}}\n",
            [
                '2: accounts[0].reserve.5h: "150%" is not a share of the window; write a '
                "percentage below 100, such as 15%"
            ],
        ),
        (
            'accounts:\n  - {provider: openai, label: "a\\e[31mb", token: x}\n',
            [
                "2: accounts[0].label: a label cannot have a control character in it; write a "
                "name for the account, such as work"
            ],
        ),
        (
            f"{ACCOUNT}  - {{provider: OpenAI, label: ' WORK ', token: x}}\n",
            [
                '5: accounts[1].label: " WORK " is the label of accounts[0] on line 3 as well '
                '(both read as "work"); give each account of a provider a label of its own',
            ],
        ),
    ],
)
def test_a_wrong_file_is_explained(text: str, expected: list[str]) -> None:
    assert problems_of(text) == expected


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lable", "label"),
        ("name", "label"),
        ("Label", "label"),
        ("provder", "provider"),
        ("tokn", "token"),
        ("api-key", "token"),
        ("api_key", "token"),
    ],
)
def test_a_misspelt_key_is_one_mistake(written: str, meant: str) -> None:
    text = ACCOUNT.replace(f"{meant}: ", f"{written}: ")
    line = text.splitlines().index(next(x for x in text.splitlines() if written in x)) + 1
    assert problems_of(text) == [
        f"{line}: accounts[0].{written}: unknown key; did you mean {meant}?"
    ]


def test_a_misspelt_section_is_one_mistake() -> None:
    assert problems_of(ACCOUNT.replace("accounts", "acounts")) == [
        "1: acounts: unknown key; did you mean accounts?"
    ]


def test_a_misspelt_key_beside_one_that_is_missing_is_two() -> None:
    assert problems_of("accounts:\n  - {lable: a, token: x}\n") == [
        "2: accounts[0].provider: is missing; write the name of a provider, such as openai",
        "2: accounts[0].lable: unknown key; did you mean label?",
    ]


@pytest.mark.parametrize(
    ("provider", "remedy"),
    [
        ("google", "gemini"),
        ("Google-AI", "gemini"),
        ("claude", "claude-code or anthropic"),
        ("chatgpt", "codex or openai"),
        ("grok", "xai"),
        ("azure-openai", "azure"),
        ("opnai", "openai"),
    ],
)
def test_a_provider_by_another_name(provider: str, remedy: str) -> None:
    text = f"accounts: [{{provider: {provider}, label: a, token: x}}]"
    assert problems_of(text) == [
        f'1: accounts[0].provider: "{provider}" is not a provider; did you mean {remedy}?'
    ]


def test_github_is_one_of_what_there_is_of_it() -> None:
    (found,) = problems_of("accounts: [{provider: github, label: a, token: x}]")
    assert "; did you mean copilot" in found
    assert unknown_provider("github", ["copilot", "github-models"]) == (
        "did you mean copilot or github-models?"
    )
    assert unknown_provider("github", ["openai"]) == "write one of openai"


@pytest.mark.parametrize("name", ["vertex", "vertex-ai", "google-vertex", "aws-bedrock"])
def test_what_cannot_be_pooled_says_so_by_any_name(name: str) -> None:
    (found,) = problems_of(f"accounts: [{{provider: {name}, label: a, token: x}}]")
    assert f'"{name}" cannot be pooled: ' in found


def test_a_provider_that_is_like_none() -> None:
    text = f"{ACCOUNT}providers: {{gw: {{like: claude, hosts: [a.b]}}}}\n"
    assert problems_of(text) == [
        "5: providers.gw.like: is not a built-in provider; did you mean claude-code or anthropic?"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a: b: c",
            "1: a key where none is allowed; check the indentation of this line and the one "
            'before, and put a value with ": " in it in quotes',
        ),
        (
            "accounts:\n\t- a",
            "2: a tab where YAML allows only spaces; indent with spaces",
        ),
        (
            "accounts:\n  - {token: ${A_KEY}}\n",
            "2: a { or [ is not closed; close it, and quote a ${...} inside it",
        ),
        ("a: 'sk-abc\nb: c\n", "1: a quote is not closed; close it"),
        (
            "a: b\ntoken:sk-abc\n",
            "2: neither a key nor a value; write `key: value`, with a space after the colon",
        ),
        ("a: b\n---\nc: d\n", "2: a second document begins; remove the line ---"),
        (
            "token: *secret-thing\n",
            "1: a value begins with *, the sign of an alias, and no alias has that name; put "
            "the value in quotes",
        ),
        (
            "token: @secret-thing\n",
            "1: a value begins with a character that has a meaning in YAML; put the value in "
            "quotes",
        ),
        ("a: 1\nb: \x07", "2: it contains a control character; remove it"),
        ("a: [", "1: a { or [ is not closed; close it, and quote a ${...} inside it"),
        (
            "%YAML 3.0\n---\na: 1\n",
            f"1: not YAML: found incompatible YAML document (version 1.* is required); {UNREAD}",
        ),
        (
            'token: "secret-thing" secret-thing\n',
            "1: not YAML: while parsing a block mapping expected <block end>, but found "
            f"'<scalar>'; {UNREAD}",
        ),
        (
            "token: !secret!thing a\n",
            f"1: not YAML: while parsing a node found undefined tag handle [...]; {UNREAD}",
        ),
        (
            "&a [*a]",
            "1: an alias stands for something that it is in; write it out, without aliases",
        ),
        (
            "accounts: " + "[" * 5000,
            "1: lists and mappings are nested more than 50 deep; check the brackets and the "
            "indentation",
        ),
        ('a: 1\nb: "secret-thing \\ud800"\n', f"2: {NO_CHARACTER}"),
        ('a: 1\n"\\ud83d\\ude00": b\n', f"2: {NO_CHARACTER}"),
        ('a: 1\nb: "secret-thing \\U00110000"\n', f"2: {NO_CHARACTER}"),
        ('a: 1\nb: "secret-thing \\Uffffffff"\n', f"2: {NO_CHARACTER}"),
    ],
)
def test_broken_yaml_is_explained_without_quoting_the_file(text: str, expected: str) -> None:
    assert problems_of(text) == [expected]


ALIASES = "aliases are used more than 100 times; write it out, without aliases"


def test_aliases_that_multiply_are_refused() -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert problems_of("\n".join(["a0: &a0 [x]", *levels])) == [f"4: {ALIASES}"]


def test_a_hundred_aliases_are_accepted_and_no_more() -> None:
    account = "  - {{provider: openai, label: a{}, token: x, models: {}}}\n".format
    text = "accounts:\n" + account(0, "&m [gpt-*]")
    text += "".join(account(number, "*m") for number in range(1, 101))
    assert len(load_accounts(text)) == 101
    assert problems_of(text + account(101, "*m")) == [f"103: {ALIASES}"]


def test_what_aliases_stand_for_is_bounded_too() -> None:
    text = f"a: &a [{'x, ' * 30_000}]\nb: [*a, *a, *a, *a]\n"
    assert problems_of(text) == [f"2: {ALIASES}"]


def test_aliases_in_aliases_are_not_nested_without_end() -> None:
    """Each level is shallow; it is the reader that would go down all of them."""
    text = "".join(
        f"a{n}: &a{n} {'[' * 40}{f'*a{n - 1}' if n else ''}{']' * 40}\n" for n in range(9)
    )
    assert problems_of(text) == [
        "1: lists and mappings are nested more than 50 deep; write it out, without aliases"
    ]


def test_a_point_in_time_needs_no_quotes_where_one_belongs() -> None:
    account = "{{provider: codex, label: a, token: {{oauth: {{refresh_token: r, {}}}}}}}"
    for instant in ("2026-12-01", "2026-12-01T00:00:00Z", "2026-12-01 00:00:00"):
        assert load_accounts(f"accounts: [{account.format(f'expires_at: {instant}')}]")
    assert problems_of(f"accounts: [{account.format('client_id: 2026-12-01')}]") == [
        f"1: accounts[0].token: {DIFFER}; put it in quotes"
    ]
    assert problems_of(f"accounts: [{account.format('expires_at: 22:30')}]") == [
        f"1: accounts[0].token: {DIFFER}; {DECIMALS}"
    ]


def test_each_value_that_is_misread_is_named_once() -> None:
    text = (
        "accounts:\n"
        "  - provider: on\n"
        "    label: 010\n"
        "    token: {oauth: {refresh_token: 0o7, client_id: yes, scope: ok}}\n"
        "    priority: 1_0\n"
        "    colour: red\n"
    )
    assert [problem.split(":")[:2] for problem in problems_of(text)] == [
        ["2", " accounts[0].provider"],
        ["3", " accounts[0].label"],
        ["4", " accounts[0].token"],
        ["4", " accounts[0].token"],
        ["5", " accounts[0].priority"],
        ["6", " accounts[0].colour"],
    ]


def test_anchors_and_merges_work_and_keep_their_lines() -> None:
    text = (
        "accounts:\n"
        "  - &one {provider: openai, label: a, token: x, priority: 1}\n"
        "  - <<: *one\n"
        "    label: b\n"
        "    weight: none\n"
    )
    assert problems_of(text) == [
        '5: accounts[1].weight: "none" is not a whole number; write a number such as 1 or 2'
    ]
    assert load_accounts(text.replace("none", "2")) == [("a", 1, 1), ("b", 1, 2)]


def load_accounts(text: str) -> list[tuple[str, int, int]]:
    Path("accounts.yaml").write_text(text)
    entries = load(Path("accounts.yaml"), ENVIRON).accounts
    return [(e.account.label, e.account.priority, e.account.weight) for e in entries]


def test_wrong_providers_are_all_named() -> None:
    text = (
        f"{ACCOUNT}  - {{provider: gw, label: a, token: x}}\n"
        "providers:\n"
        "  openai: {hosts: ['https://x', 'a:b', 3, ''], like: openai}\n"
        "  gw: {like: opnai, hosts: [a.b]}\n"
        "  opena: {hosts: [x.y]}\n"
        "  gw2: {like: openai, hots: [x.y]}\n"
        "  gw3: {like: openai, hosts: []}\n"
        "  A/b: {like: openai, hosts: [x.y]}\n"
        "  copilot: {token_url: 'http://x.y/'}\n"
        "  gemini: {token_url: 'https://x'}\n"
        "  anthropic:\n"
        "  gw4: [1]\n"
    )
    assert problems_of(text) == [
        "7: providers.openai.hosts[2]: 3 is not text; put it in quotes",
        f"7: providers.openai.hosts[3]: is empty; {HOSTS}",
        "7: providers.openai.like: openai is built in; remove this line",
        '7: providers.openai.hosts[0]: "https://x" is an address; write its host or host:port only',
        '7: providers.openai.hosts[1]: "a:b" is not a host; the port must be a number from 1 to '
        "65535",
        "8: providers.gw.like: is not a built-in provider; did you mean openai?",
        "9: providers.opena.like: is missing, and opena is not built in; did you mean openai? "
        "If not, add like: openai",
        "10: providers.gw2.hots: unknown key; did you mean hosts?",
        f"11: providers.gw3.hosts: the list is empty; {HOSTS}",
        "12: providers.[not shown]: is not a name for a provider; use lower-case letters, digits, "
        "- and . only",
        "13: providers.copilot.token_url: a token would travel unencrypted; write an https "
        "address; http is accepted to this machine only",
        "14: providers.gemini.token_url: only copilot exchanges tokens; remove this line",
        "15: providers.anthropic: has no value; write `hosts: [...]` below it",
        "16: providers.gw4: a list is not a mapping; write `hosts: [...]` below it",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "strategy: least-bussy",
            '"least-bussy" is not accepted; write one of round-robin, least-busy, least-recent, '
            "fill-first, most-headroom, soonest-reset",
        ),
        ("max_wiat: 3", "unknown option; did you mean max_wait?"),
        ("max_attempts: 1.5", "1.5 is not a whole number; write a number of 1 or more such as 10"),
        ("max_attempts: 0", "0 is less than 1; write a number of 1 or more such as 10"),
        ("max_wait: '3'", '"3" is not a number; write a number such as 30'),
        ("max_wait: .nan", "it is not a finite number; write a number such as 30"),
        ("max_wait:", "no value is not a number; write a number such as 30"),
        ("gate: -1", "-1 is less than 0; write a number such as 5"),
        ("retry_broken: 1", "1 is not true or false; write true or false"),
        ("accounts: x", "cannot be set here: it names this file; remove this line"),
        (
            "github_token: sk-abc",
            "cannot be set here: it is for use without this file; remove this line",
        ),
        ("pool_gate: 1", "the prefix pool_ is for the command line; write gate"),
        ("editor_version: 3", "3 is not text; write text, in quotes"),
        ('websockets: "no"', '"no" is not accepted; write one of "", refuse, pin'),
        ('fast: "yes"', f'"yes" is not a step; write on, off, or some of {STEPS}'),
        ("fast: on", f"{DIFFER}; write true or false, or put it in quotes if it is text"),
        (
            "fast: [table, tabel]",
            f'"tabel" is not a step; write on, off, or some of {STEPS}',
        ),
        ("fast: []", f"a step is missing; write on, off, or some of {STEPS}"),
        ("fast: 3", "3 is not text; write text, in quotes, or a list of texts"),
        ("fast:", "no value is not text; write text, in quotes, or a list of texts"),
        ("fast: [1]", "a list is not text; write text, in quotes, or a list of texts"),
        ("fast: {a: b}", "a mapping is not text; write text, in quotes, or a list of texts"),
        ("websockets: no", f"{DIFFER}; write true or false, or put it in quotes if it is text"),
    ],
)
def test_a_wrong_option_is_named(line: str, expected: str) -> None:
    name = line.partition(":")[0]
    assert problems_of(f"{ACCOUNT}pool:\n  {line}\n") == [f"6: pool.{name}: {expected}"]


def test_sections_that_are_no_mappings() -> None:
    assert problems_of(f"{ACCOUNT}pool: 3\nproviders: [x]\n") == [
        "5: pool: is not a mapping; write `option: value` below it",
        "6: providers: is not a mapping; write `name: {hosts: [...]}` below it",
    ]


def test_a_missing_file_says_so() -> None:
    with pytest.raises(ConfigError) as caught:
        load(Path("accounts.yaml"), {})
    assert caught.value.problems == (
        Problem(
            Path("accounts.yaml"),
            None,
            "",
            "the file does not exist",
            "create it, or correct the path",
        ),
    )


def test_a_directory_and_a_binary_file_say_so() -> None:
    for path, wrong in ((Path(), "cannot be read"), (Path("binary"), "is not text in UTF-8")):
        with pytest.raises(ConfigError, match=wrong):
            load(path, {})


@pytest.mark.parametrize(
    ("account", "expected"),
    [
        (
            "{provider: azure, label: a, token: x}",
            "2: accounts[0].host: is missing; write the name of the resource, such as "
            "my-resource.openai.azure.com",
        ),
        (
            "{provider: azure, label: a, token: x, host: a.example.com}",
            '2: accounts[0].host: "a.example.com" is not a host of azure; add it to '
            "providers.azure.hosts",
        ),
        (
            "{provider: anthropic, label: a, token: x, project: p}",
            "2: accounts[0].project: does not belong to an account of anthropic; its accounts may "
            "set host",
        ),
    ],
)
def test_what_does_not_belong_to_the_provider_is_told(account: str, expected: str) -> None:
    assert problems_of(f"accounts:\n  - {account}\n") == [expected]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "label: work",
            "label: sk-fake-pasted-0001",
            "3: accounts[0].label: [not shown] is not a name; ",
        ),
        (
            "token:",
            "models: [ghp_fakefakefake]\n    token:",
            "4: accounts[0].models[0]: [not shown] is ",
        ),
        (
            "token: ${A_KEY}",
            "token: {env: sk-fake-pasted}",
            "4: accounts[0].token: the value of env ",
        ),
        (
            "accounts:",
            "providers: {sk-fake-0001: {hosts: [a.example]}}\naccounts:",
            "1: providers.[not",
        ),
        (
            "accounts:",
            "providers: {gw: {hosts: [sk-fake-pasted]}}\naccounts:",
            "1: providers.gw.hosts[0]",
        ),
    ],
)
def test_a_token_where_a_name_belongs_is_reported_as_one(old: str, new: str, said: str) -> None:
    [problem] = problems_of(ACCOUNT.replace(old, new, 1))
    assert problem.startswith(said)
    assert "a token seems to be pasted there" in problem
    assert "fake" not in problem


def test_a_file_that_is_too_long_is_told() -> None:
    path = Path("accounts.yaml")
    with path.open("wb") as file:
        file.truncate(32 * 1024 * 1024 + 1)
    wrong = r"cannot be read \(it is larger than 32 MiB\); name the file of the accounts"
    with pytest.raises(ConfigError, match=wrong):
        load(path, ENVIRON)
    with pytest.raises(CannotEdit, match=wrong):
        add_account(path, {"provider": "openai", "label": "a", "token": "sk-fake"}, ENVIRON)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_what_is_not_a_file_is_told_and_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "WRITER_S", 0.0)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path.cwd()))
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    device = Path("/dev/null")
    wrongs = {"pipe": "a pipe", ".": "a directory", "loop": "Too many levels|too many levels"}
    for name, wrong in (wrongs | ({str(device): "a device"} if device.exists() else {})).items():
        with pytest.raises(ConfigError, match=wrong):
            load(Path(name), ENVIRON)
        monkeypatch.setattr(edit, "put_in_place", lambda *_: pytest.fail("it was replaced"))
        with pytest.raises(CannotEdit, match=wrong):
            add_account(
                Path(name), {"provider": "openai", "label": "a", "token": "sk-fake"}, ENVIRON
            )
    assert Path("pipe").is_fifo()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_what_becomes_a_pipe_while_it_is_edited_is_told() -> None:
    path = Path("accounts.yaml")
    os.mkfifo(path)
    new = Path("new")
    new.touch()
    with pytest.raises(CannotEdit, match="it is a pipe, not a file"):
        put_in_place(new, path)
    assert not Path("accounts.yaml.bak").exists()


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="pipes have no names")
def test_a_pipe_is_read_to_its_end() -> None:
    """As a shell names what a command writes: `<(sops decrypt ...)`."""
    ours, theirs = os.pipe()
    os.write(theirs, ACCOUNT.encode())
    os.close(theirs)
    assert len(load(Path(f"/dev/fd/{ours}"), ENVIRON).accounts) == 1
    os.close(ours)
