"""What accounts have served, by model and day."""

from __future__ import annotations

from account_pool.core.account import AccountKey
from account_pool.core.usage import MAX_MODELS, OTHER, UNNAMED, Tally, Usage, Usages

WORK, HOME = AccountKey("openai", "work"), AccountKey("openai", "home")
#: 2026-11-21 23:59:59 UTC
EVENING = 1_795_305_599.0


def kept() -> tuple[Usages, list]:
    book: list = []
    return Usages(lambda key, amounts: book.append((key, dict(amounts)))), book


def test_tokens_are_added_by_account_and_model():
    usages, book = kept()
    usages.count(WORK, "gpt-5", Usage(120, 100, 30, 20), EVENING)
    usages.count(WORK, "gpt-5", Usage(1, 1, 1, 1), EVENING)
    usages.count(HOME, "gpt-5", Usage(5), EVENING)
    assert usages.totals == {
        ("openai/work", "gpt-5"): Tally(2, 121, 101, 31, 21),
        ("openai/home", "gpt-5"): Tally(1, 5),
    }
    assert book[0] == (
        ("2026-11-21", "openai/work", "gpt-5"),
        {
            "requests": 1,
            "input_tokens": 120,
            "cached_tokens": 100,
            "output_tokens": 30,
            "reasoning_tokens": 20,
            "cache_write_tokens": 0,
        },
    )


def test_a_request_counts_although_nothing_was_told():
    usages, book = kept()
    usages.count(WORK, None, None, EVENING)
    assert usages.totals == {("openai/work", UNNAMED): Tally(1)}
    assert book == [(("2026-11-21", "openai/work", UNNAMED), {"requests": 1})]


def test_a_turn_whose_request_was_counted_before():
    usages, _book = kept()
    usages.count(WORK, "gpt-6", None, EVENING)
    usages.count(WORK, "gpt-6", Usage(9, 0, 4), EVENING, requests=0)
    assert usages.totals == {("openai/work", "gpt-6"): Tally(1, 9, 0, 4)}


def test_days_are_those_of_utc():
    usages, book = kept()
    for later in (0, 1, 86_400, 86_401):
        usages.count(WORK, "m", None, EVENING + later)
    assert [key[0] for key, _ in book] == ["2026-11-21", "2026-11-22", "2026-11-22", "2026-11-23"]


def test_a_client_cannot_make_up_models_without_end():
    usages, book = kept()
    for number in range(MAX_MODELS + 50):
        usages.count(WORK, f"model-{number}", None, EVENING)
    usages.count(WORK, "model-7", None, EVENING)
    usages.count(HOME, "model-1000", None, EVENING)
    names = [model for account, model in usages.totals if account == "openai/work"]
    assert len(names) == MAX_MODELS + 1
    assert usages.totals["openai/work", OTHER].requests == 50
    assert usages.totals["openai/work", "model-7"].requests == 2
    assert ("openai/home", "model-1000") in usages.totals
    usages.count(HOME, "x" * 10_000, None, EVENING)
    assert max(len(key[2]) for key, _ in book) == 128
