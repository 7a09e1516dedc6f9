"""How accounts are named, and which models they may serve."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.account import Account, AccountKey, ModelFilter, normalise_label


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ("work", "work"),
        ("Work", "work"),
        ("  Work  ", "work"),
        ("my work seat", "my-work-seat"),
        ("my \t\n work", "my-work"),
        ("no\N{NO-BREAK SPACE}break", "no-break"),
        ("a-b_c.d", "a-b_c.d"),
        ("team/one", "team/one"),
        ("ÄRGER", "ärger"),
    ],
)
def test_label_is_normalised(written: str, label: str) -> None:
    assert normalise_label(written) == label
    assert Account(provider="openai", label=written).label == label


@pytest.mark.parametrize("written", ["", " ", "\t\n", "\N{NO-BREAK SPACE}"])
def test_label_needs_a_character(written: str) -> None:
    with pytest.raises(ValueError, match="at least one character"):
        normalise_label(written)
    with pytest.raises(ValueError, match="at least one character"):
        Account(provider="openai", label=written)


@pytest.mark.parametrize("written", ["a\x1b[31mb", "\x00", "a\x9bm", "a\u202eb"])
def test_a_label_steers_no_terminal(written: str) -> None:
    with pytest.raises(ValueError, match="a label cannot have a control character in it"):
        normalise_label(written)


@given(st.text(min_size=1))
def test_normalising_twice_changes_nothing(text: str) -> None:
    try:
        once = normalise_label(text)
    except ValueError:
        assert not text.strip() or not text.isprintable()
        return
    assert normalise_label(once) == once
    assert not any(character.isspace() for character in once)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("openai/work", ("openai", "work")),
        ("OpenAI/Work Seat", ("openai", "work-seat")),
        (" openai / work ", ("openai", "work")),
        ("openai/team/one", ("openai", "team/one")),
    ],
)
def test_key_is_read(text: str, key: tuple[str, str]) -> None:
    assert AccountKey.parse(text) == key


@pytest.mark.parametrize("text", ["", "work", "/", "openai/", "/work", " / ", "openai/ "])
def test_key_that_is_none_says_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="write provider/label"):
        AccountKey.parse(text)


def test_key_prints_as_it_is_read() -> None:
    key = Account(provider="openai", label="Work Seat").key
    assert str(key) == "openai/work-seat"
    assert AccountKey.parse(str(key)) == key


@pytest.mark.parametrize(
    ("globs", "model", "allowed"),
    [
        ((), "gpt-5", True),
        ((), None, True),
        (("gpt-*",), "gpt-5", True),
        (("gpt-*",), "o3", False),
        (("gpt-*",), None, True),
        (("gpt-5",), "gpt-5", True),
        (("gpt-5",), "gpt-5-mini", False),
        (("gpt-?",), "gpt-5", True),
        (("gpt-[45]",), "gpt-4", True),
        (("gpt-*",), "GPT-5", False),
        (("gpt-*", "o*"), "o3", True),
        # exclusions
        (("gpt-*", "!gpt-5-pro*"), "gpt-5", True),
        (("gpt-*", "!gpt-5-pro*"), "gpt-5-pro-2026", False),
        (("gpt-*", "!gpt-5-pro*"), "o3", False),
        # the last match wins
        (("*", "!gpt-*", "gpt-5"), "gpt-5", True),
        (("*", "!gpt-*", "gpt-5"), "gpt-4", False),
        (("!gpt-5", "gpt-*"), "gpt-5", True),
        # only exclusions: the rest is allowed
        (("!gpt-5-pro*",), "gpt-5-pro", False),
        (("!gpt-5-pro*",), "gpt-5", True),
        (("!gpt-*", "!o*"), "claude-opus-5", True),
        # an exclusion first does not open the list
        (("!gpt-5-pro*", "gpt-*"), "claude-opus-5", False),
        (("!gpt-5-pro*", "gpt-5"), "gpt-5-pro", False),
    ],
)
def test_model_globs(globs: tuple[str, ...], model: str | None, allowed: bool) -> None:
    assert ModelFilter(globs).allows(model) is allowed


@pytest.mark.parametrize("weight", [0, -1])
def test_weight_that_could_never_serve_is_refused(weight: int) -> None:
    with pytest.raises(ValueError, match=f"openai/work: weight is {weight}"):
        Account(provider="openai", label="work", weight=weight)


@pytest.mark.parametrize("limit", [0, -1])
def test_max_concurrent_that_could_never_serve_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"openai/work: max_concurrent is {limit}"):
        Account(provider="openai", label="work", max_concurrent=limit)
