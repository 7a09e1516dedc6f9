"""The owner's own prices, as accounts.yaml writes them."""

from __future__ import annotations

import json

import pytest

from account_pool.config.loader import load
from account_pool.config.options import BY_NAME
from account_pool.config.prices import read_prices, write_prices
from account_pool.core.prices import Price, PriceRule
from account_pool.core.wrong import Wrong


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
