"""Patterns a user wrote: which are refused, and that none runs for long."""

from __future__ import annotations

import pytest

from account_pool.providers.definition import MAX_TEXT_CHARS, search
from account_pool.providers.definition_reader import compile_pattern


@pytest.mark.parametrize(
    "text",
    [
        "rate limit",
        r"limit (\d+), used (\d+)",
        "per (?:minute|hour|day)",
        "(?:daily )?quota",
        r"\(a+\)+",
        "[(a+)]+",
        "a{2}b{3}(?:c{2})+",
        "[]+]x",
        "(?:ab)+",
        ".*?exceeded",
    ],
)
def test_usual_patterns_are_taken(text: str) -> None:
    compile_pattern(text)


@pytest.mark.parametrize(
    "text",
    [
        "(a+)+b", "(?:a*)*", "(a|a)*b", "(a?){30}a", "((a+))+", "(?:x(a|b))+", "(a{1,9})+",
        "(a+){2,}", "(?P<n>a+)*", "(a+)*?", "([^)]+)+",
    ],
)  # fmt: skip
def test_repetitions_inside_repetitions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="for ever"):
        compile_pattern(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a" * 201, "longer than 200"),
        (".*a.*b.*c", "more than 2"),
        ("[", "unterminated character set at character 1"),
        ("a{99999999999}", "regular expression"),
    ],
)
def test_others_are_refused_with_a_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        compile_pattern(text)


def test_case_makes_no_difference_and_only_the_beginning_is_searched() -> None:
    pattern = compile_pattern("used UP")
    assert search(pattern, "All Used up.")
    assert not search(pattern, "x" * MAX_TEXT_CHARS + "used up")
