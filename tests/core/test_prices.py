"""What requests cost."""

from __future__ import annotations

import json

import pytest

from account_pool.config.loader import load
from account_pool.config.options import BY_NAME
from account_pool.core.prices import (
    OWN,
    Price,
    PriceRule,
    Prices,
    cost_usd,
    read_prices,
    write_prices,
)
from account_pool.core.wrong import Wrong
from tests.store.request_samples import row

#: USD for a million tokens.
PLAIN = Price(input=((0, 2.0),), output=((0, 10.0),))
FULL = Price(((0, 2.0), (200_000, 4.0)), ((0, 10.0), (200_000, 15.0)), ((0, 0.5),), ((0, 2.5),))
LIST = "genai-prices 1.0"


@pytest.mark.parametrize(
    ("price", "tokens", "cost"),
    [
        (PLAIN, {}, (100 * 2 + 10 * 10) / 1e6),
        # What is not said to be cheaper costs as all input.
        (FULL, {"cached_tokens": 0}, (100 * 2 + 10 * 10) / 1e6),
        (FULL, {}, (60 * 2 + 40 * 0.5 + 10 * 10) / 1e6),
        (FULL, {"cache_write_tokens": 20}, (40 * 2 + 40 * 0.5 + 20 * 2.5 + 10 * 10) / 1e6),
        # The whole request is billed at the rate of its size.
        (FULL, {"input_tokens": 200_000, "cached_tokens": 0}, (200_000 * 2 + 100) / 1e6),
        (FULL, {"input_tokens": 200_001, "cached_tokens": 0}, (200_001 * 4 + 150) / 1e6),
        (PLAIN, {"cached_tokens": None, "output_tokens": None}, 100 * 2 / 1e6),
        (PLAIN, {"input_tokens": None}, None),
    ],
)
def test_cost(price, tokens, cost):
    found = cost_usd(price, row(**tokens))
    assert found == (None if cost is None else pytest.approx(cost))


def test_the_owners_price_comes_first():
    prices = Prices(
        [
            PriceRule(account="openai/one", model="gpt-5*", price=PLAIN),
            PriceRule(account="openai", price=Price(((0, 0.0),), ((0, 0.0),))),
        ]
    )
    assert prices.cost(row(), FULL, LIST).price == OWN
    assert prices.cost(row(account="openai/two"), FULL, LIST).cost_usd == 0.0
    other = prices.cost(row(account="gemini/one", provider="gemini"), FULL, LIST)
    assert (other.price, other.covered) == (LIST, 0)


def test_what_has_no_price_costs_nothing_that_is_known():
    assert Prices().cost(row(), None, LIST) == (None, "", 0, None)


def test_subscriptions_save_what_they_serve():
    rules = [PriceRule(account="zai/plan", monthly_usd=30.0)]
    for account, covered in (("codex/one", 1), ("zai/plan", 1), ("zai/key", 0), ("openai/one", 0)):
        asked = row(account=account, provider=account.partition("/")[0])
        assert Prices(rules).cost(asked, PLAIN, LIST).covered == covered


@pytest.mark.parametrize(
    ("model", "premium"),
    [
        ("gpt-4.1", 0.0), ("gpt-5-mini", 0.0), ("gpt-5", 1.0), ("claude-sonnet-4.5", 1.0),
        ("claude-opus-4.1", 10.0), ("claude-opus-4.5", 3.0), ("claude-haiku-4.5", 0.33),
        ("", 1.0),
    ],
)  # fmt: skip
def test_premium_requests_of_copilot(model, premium):
    asked = row(account="copilot/one", provider="copilot", model=model)
    assert Prices().cost(asked, None, "").premium_requests == premium
    own = Prices([PriceRule(account="copilot", model=model or "*", premium=7.0)])
    assert own.cost(asked, None, "").premium_requests == 7.0
    # What its agent sends on its own takes none.
    agent = asked._replace(premium_requests=0.0)
    assert own.cost(agent, None, "").premium_requests == 0.0


# -- The owner's own prices, as accounts.yaml writes them.


def test_a_file_has_them_as_a_list(tmp_path):
    path = tmp_path / "accounts.yaml"
    path.write_text(
        "accounts:\n  - {provider: openai, label: a, token: sk-fake-0000}\n"
        "pool:\n  prices:\n"
        "    - {provider: openai, model: my-*, input: 1, output: 2.5, cached: 0}\n"
        "    - {account: codex/work, monthly: 20}\n"
        "    - {model: gpt-5, premium: 2}\n"
    )
    text = load(path, {}).options["prices"]
    assert read_prices(str(text)) == (
        PriceRule(
            account="openai", model="my-*", price=Price(((0, 1.0),), ((0, 2.5),), ((0, 0.0),))
        ),
        PriceRule(account="codex/work", monthly_usd=20.0),
        PriceRule(model="gpt-5", premium=2.0),
    )


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ("gpt-5", "no mapping"),
        ({}, "has no price"),
        ({"model": "gpt-5"}, "has no price"),
        ({"model": "gpt-5", "input": 1}, "lacks input or output"),
        ({"input": "1", "output": 1}, "input is no number"),
        ({"input": True, "output": 1}, "input is no number"),
        ({"input": -1, "output": 1}, "less than 0"),
        ({"monthly": float("inf")}, "not finite"),
        ({"monthly": float("nan")}, "not finite"),
        ({"monthly": 10**400}, "not finite"),
        ({"model": 5, "monthly": 1}, "model is no text"),
        ({"account": "work", "monthly": 1}, "account: "),
        ({"account": "openai/a", "provider": "openai", "monthly": 1}, "account and provider"),
        ({"prize": 1}, "there is no key"),
    ],
)
def test_mistakes_are_named(entry, wrong):
    with pytest.raises(Wrong, match=wrong):
        write_prices([entry])


def test_on_the_command_line_they_are_json():
    option = BY_NAME["prices"]
    assert option.read("") == ""
    text = json.dumps([{"monthly": 20}])
    assert option.read(text) == text
    with pytest.raises(Wrong, match="no list in JSON"):
        option.read("cheap")
