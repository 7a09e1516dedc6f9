"""Whose a key is by its form."""

from __future__ import annotations

import pytest

from account_pool.providers.forms import FORMS, foreign, form_of
from account_pool.providers.registry import BUILT_IN

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
