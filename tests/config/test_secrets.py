"""Whatever is wrong with the file, no token of it is in the error."""

from __future__ import annotations

import string
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.config.loader import load
from account_pool.config.problems import ConfigError
from account_pool.config.review import review

#: Without vowels, so that no part of a token is in a message by chance. Each token has a
#: small letter: all capitals cannot be told from a variable's name, which is worth showing.
ALPHABET = string.digits + "QXZVqxzv_-"
tokens = st.builds(
    "{}{}q{}".format,
    st.sampled_from(["", "sk-", "ghp_", "tid=", "Q7z"]),
    st.text(ALPHABET, min_size=12, max_size=40),
    st.text(ALPHABET, min_size=11, max_size=20),
)

GOOD = "accounts: [{provider: openai, label: a, token: x}]"

#: T is the token: in its place, in a wrong one, and in files that are no YAML.
FILES = [
    "accounts: [{provider: openai, label: a, token: T, priority: high}]",
    "accounts: [{provider: openai, label: a, token: 'T T'}]",
    "accounts: [{provider: openai, label: a, token: [T]}]",
    "accounts: [{provider: openai, label: a, token: {T}}]",
    "accounts: [{provider: openai, label: a, token: {T: T, 'T': 1}}]",
    "accounts: [{provider: openai, label: a, token: {env: T}}]",
    "accounts: [{provider: openai, label: a, token: '${T}'}]",
    "accounts: [{provider: openai, label: a, token: '${T'}]",
    "accounts: [{provider: openai, label: a, token: {env: T, command: T}}]",
    "accounts: [{provider: openai, label: a, token: {value: T}}]",
    "accounts: [{provider: openai, label: a, token: {oauth: {access_token: T}}}]",
    "accounts: [{provider: openai, label: a, token: {file: T}}]",
    "accounts: [{provider: openai, label: a, token: {file: T, pointer: /T}}]",
    "accounts: [{provider: openai, label: a, token: {file: ~/T}}]",
    "accounts: [{provider: openai, label: T, token: x, models: [T], host: T}]",
    "accounts: [{provider: openai, label: a, token: {token:T}}]",
    "accounts: [{provider: openai, label: a, tokn: T}]",
    "accounts: [{provider: openai, label: a, T: T}]",
    "accounts: [{provider: openai, label: a, token:T}]",
    "accounts: [{provider: T, label: T, priority: T, models: T, enabled: T, host: T, token: x}]",
    "accounts: [{provider: sk-T, label: sk-T, priority: sk-T, token: x}]",
    "accounts: [T]",
    "accounts: T",
    "T",
    "- T",
    "T: T",
    "T: 1\nT: 2",
    "accounts: [{provider: openai, label: a, token: T]",
    "accounts: [{provider: openai, label: a, token: *T}]",
    "accounts: [{provider: openai, label: a, token: !T x}]",
    "accounts: [{provider: openai, label: a, token: 'T}]",
    'accounts: [{provider: openai, label: a, token: "T\\q"}]',
    "accounts:\n  - token: T\n   label: T\n",
    "accounts:\n  - provider: openai\n    token:T\n    label: a\n",
    "accounts:\n  - label: a\n    token: |\n      T\n      T\n",
    "%T\n---\naccounts: []",
    f"{GOOD}\npool: {{github_token: T, gate: T, strategy: T, T: 1}}",
    f"{GOOD}\nproviders: {{openai: {{hosts: ['T T'], T: 1}}, T: {{like: T}}}}",
]


@pytest.mark.parametrize("file", FILES)
@given(token=tokens)
def test_no_part_of_a_token_is_in_any_error(file: str, token: str) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory, "accounts.yaml")
        path.write_text(file.replace("T", token))
        said = said_of(path).replace(directory, "")
    assert said
    core = token[-24:]
    parts = [core[i : i + 8] for i in range(0, 24, 8)]
    assert not [part for part in parts if part in said]


def said_of(path: Path) -> str:
    """Return what is wrong with the file, or else with the credentials it names."""
    try:
        config = load(path, {})
    except ConfigError as error:
        assert error.__cause__ is None
        assert error.__suppress_context__ or error.__context__ is None
        return str(error)
    return "\n".join(map(str, review(config, wall_now=0.0).unreadable))
