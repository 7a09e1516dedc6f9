"""Whose a key is by its form; a token where a name belongs is not shown, a name is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.providers.registry import BUILT_IN
from account_pool.providers.token_forms import FORMS, foreign, form_of, hidden, is_token, remedy

#: A key of each form, as vendors' pages show them, and who takes it.
KEYS = (
    ("sk-ant-api03-fake", {"anthropic"}),
    ("sk-ant-oat01-fake", {"claude-code"}),
    ("sk-ant-ort01-fake", set()),
    ("sk-ant-admin01-fake", set()),
    ("sk-or-v1-fake", {"openrouter"}),
    ("sk-proj-fake", {"openai"}),
    ("sk-svcacct-fake", {"openai"}),
    ("sk-admin-fake", set()),
    ("sk-fakefakefakefakefakeT3BlbkFJfake", {"openai"}),
    ("AIzaSyFake", {"gemini"}),
    ("ya29.fake", {"gemini-cli"}),
    ("1//fake", set()),
    ("ghp_fake", {"copilot", "github-models"}),
    ("gho_fake", {"copilot", "github-models"}),
    ("ghu_fake", {"copilot", "github-models"}),
    ("github_pat_fake", {"copilot", "github-models"}),
    ("gsk_fake", {"groq"}),
    ("xai-fake", {"xai"}),
    ("pplx-fake", {"perplexity"}),
    ("csk-fake", {"cerebras"}),
    ("fw_fake", {"fireworks"}),
    ("tgp_v1_fake", {"together"}),
    ("hf_fake", set()),
    ("AKIAABCDEFGHIJKLMNOP", set()),
)


@pytest.mark.parametrize(("token", "takers"), KEYS)
def test_a_key_is_foreign_to_all_but_its_own(token: str, takers: set[str]) -> None:
    for provider in BUILT_IN:
        assert (foreign(token, provider, BUILT_IN) is None) == (provider in takers), provider


@pytest.mark.parametrize(
    "token", ["sk-fake", "sk-1234abcd", "0123456789abcdef", "eyJ.fake.jwt", "Bearer", "skant-", ""]
)
def test_a_key_without_a_known_form_is_nobodys(token: str) -> None:
    """DeepSeek, Moonshot, gateways and old keys of OpenAI all begin with sk-."""
    assert form_of(token) is None


def test_the_remedy_names_who_takes_it() -> None:
    assert foreign("sk-ant-api03-x", "openai", BUILT_IN) == (
        "its token looks like an API key of Anthropic",
        "write provider: anthropic",
    )
    assert foreign("ghp_x", "openai", ["copilot", "github-models"]) == (
        "its token looks like a token of GitHub",
        "write provider: copilot or github-models",
    )
    assert foreign("AKIAABCDEFGHIJKLMNOP", "openai", BUILT_IN) == (
        "its token looks like an access key of AWS",
        "write a key of its own",
    )


def test_every_form_has_a_source() -> None:
    assert all(form.source for form in FORMS)
    assert {form_of(token) for token, _ in KEYS} == set(FORMS)


# -- a token where a name belongs

HIDDEN = "[not shown]"
NAMES = [
    "~/.claude/.credentials.json",
    "/home/someone/.config/github-copilot/apps.json",
    "/tokenClaude/accessToken",
    "credentials-of-claude-code-work2",
    "my-project-1a2b3c4d5e6f7a8b.json",
    "~/keys/sk-work.txt",
    "xai-key",
    "hf_token",
    "fw_config.json",
    "sk-work",
    "Claude Code-credentials",
    "com.example.my-tool.2026-11-28",
    "gh:github.com",
    "gh auth token",
    "pass show llm/openai-work",
    "security find-generic-password -s OpenAI -w",
    r"C:\Users\Someone\AppData\Roaming\token.txt",
    "OPENAI_API_KEY_WORK",
    "someone.with.a.long.name@example.com",
    "",
]
TOKENS = [
    "sk-fake-pasted-0001",
    "sk_live_abcdef123456",
    "sk-proj-abcdefghijkl",
    "AIzaSyFakeFakeFakeFake",
    "ya29.a0FakeFakeFake",
    "1//0gFakeFakeFakeFakeFake1234",
    "ghp_fakefakefake",
    "eyJhbGciOiJub25lIn0.eyJzdWIiOiJmYWtlIn0.c2lnbmF0dXJl",
    "tid=0123456789;exp=1",
    "a1b2c3d4e5f6a7b8c9d0e1f2a3b4c5d6",
    "0a1b2c3d4e5f60718293a4b5c6d7e8f9.AbCdEf0123456789",
    "qW3eR5tY7uI9oP1aS2dF/4gH6jK8lZ0xC+vB==",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown(name):
    assert hidden(name) == name
    assert not is_token(name)
    assert remedy(name, "create it") == "create it"


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_is_not(token):
    assert token[:12] not in hidden(token)
    assert hidden(token).startswith(HIDDEN)
    assert "a token seems to be pasted there" in remedy(token, "create it")


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_is_no_label(token):
    assert is_token(token) is ("/" not in token or token.startswith("1//"))


@pytest.mark.parametrize(
    "label", ["00000000-1a2b-4000-8000-00000000ffff", "org-AbCd1234EfGh5678IjKl"]
)
def test_an_id_is_a_label(label):
    assert not is_token(label)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/keys/sk-fake-pasted-0001", "/keys/[not shown]"),
        ("~/sk-fake-pasted-0001/x", "~/[not shown]/x"),
        ("echo sk-fake-pasted-0001", "echo [not shown]"),
        ("x --key=sk-fake-pasted-0001 -v", "x --key=[not shown] -v"),
        (
            "curl -H 'authorization: Bearer gsk_fake_0001_x'",
            "curl -H 'authorization: Bearer [not shown]'",
        ),
        (
            "op read op://Private/abcdefghijkl1nopqrstuvwxyz/key",
            "op read op://Private/[not shown]/key",
        ),
        ("/nix/store/3kq9z8x7c6v5b4n3m2l1k0j9h8g7f6d5-gh/bin/gh", "/nix/store/[not shown]/bin/gh"),
    ],
)
def test_of_a_path_or_a_command_only_the_token_is_hidden(text, shown):
    assert hidden(text) == shown


#: Made of what tokens are made of, and long enough to be one.
RANDOM = st.text("BCDFGHJKLMNPQRSTVWXZbcdfghjklmnpqrstvwxz0123456789", min_size=20, max_size=80)


@given(token=RANDOM)
def test_what_has_no_word_in_it_is_hidden(token):
    assert hidden(token) == HIDDEN


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.what)
@given(data=st.data())
def test_every_form_of_a_key_is_known(form, data):
    begin = data.draw(st.from_regex(re.compile(form.pattern.pattern)).filter(form.pattern.match))
    token = data.draw(st.just(form.pattern.match(begin)[0]))
    token += "" if form.pattern.pattern.endswith("Z") else "0123456789AbCdEf"
    assert hidden(token) == HIDDEN
    assert is_token(token)
