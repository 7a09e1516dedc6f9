"""The owner's own prices: what `pool: {prices: [...]}` says, checked."""

from __future__ import annotations

import json
import sys
from typing import Any

from account_pool.config.problems import shown
from account_pool.core.account import AccountKey
from account_pool.core.prices import Price, PriceRule, Rate
from account_pool.core.wrong import Wrong

_RATES = ("input", "output", "cached", "cache_write")
_TEXTS = ("account", "provider", "model")
_NUMBERS = (*_RATES, "monthly", "premium")
_KEYS = (*_TEXTS, *_NUMBERS)
_ACCEPTED = (
    "write a list such as [{provider: openai, model: my-model, input: 1.25, output: 10}], in USD "
    "for a million tokens, or {account: codex/work, monthly: 20}"
)


def read_prices(text: str) -> tuple[PriceRule, ...]:
    """Return the rules of `pool_prices`, a list in JSON. Raises Wrong."""
    if not text.strip():
        return ()
    try:
        value = json.loads(text)
    except ValueError:
        raise Wrong("it is no list in JSON", _ACCEPTED) from None
    return tuple(map(_rule, value if isinstance(value, list) else [value]))


def write_prices(value: list[Any] | dict[str, Any]) -> str:
    """Return the text of the option for a *value* of accounts.yaml. Raises Wrong."""
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        _rule(entry)
    return json.dumps(entries) if entries else ""


def _rule(entry: Any) -> PriceRule:
    if not isinstance(entry, dict):
        raise Wrong("an entry is no mapping", _ACCEPTED)
    if unknown := [key for key in entry if key not in _KEYS]:
        raise Wrong(f"there is no key {shown(unknown[0])}", f"the keys are {', '.join(_KEYS)}")
    numbers = {key: _number(key, entry[key]) for key in _NUMBERS if key in entry}
    texts = {key: _text(key, entry[key]) for key in _TEXTS if key in entry}
    if not numbers:
        raise Wrong("an entry has no price", _ACCEPTED)
    if "account" in texts and "provider" in texts:
        raise Wrong(
            "an entry has account and provider", "an account names its provider: openai/work"
        )
    if "account" in texts:
        try:
            AccountKey.parse(texts["account"])
        except ValueError as error:
            raise Wrong(f"account: {error}", "write provider/label") from None
    rates: dict[str, Rate] = {key: ((0, numbers[key]),) for key in _RATES if key in numbers}
    if rates and not {"input", "output"} <= rates.keys():
        raise Wrong("a price lacks input or output", "write both; 0 is free")
    return PriceRule(
        account=texts.get("account", texts.get("provider")),
        model=texts.get("model", "*"),
        price=_price(rates) if rates else None,
        monthly_usd=numbers.get("monthly"),
        premium=numbers.get("premium"),
    )


def _price(rates: dict[str, Rate]) -> Price:
    return Price(rates["input"], rates["output"], rates.get("cached"), rates.get("cache_write"))


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Wrong(f"{key} is no number", "write USD, such as 1.25")
    # Whole numbers have no end in Python and in JSON.
    if not 0 <= value <= sys.float_info.max:
        raise Wrong(f"{key} is less than 0 or not finite", "write USD, such as 1.25")
    return float(value)


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Wrong(f"{key} is no text", _ACCEPTED)
    return value.strip()
