"""What requests cost: prices by model, what a subscription has paid, Copilot's premium requests.

The owner's own prices (`pool: {prices: [...]}`, read here) come first. All others are of the list
that `proxy/price_child.py` reads; what is in neither has no cost, which is not nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from account_pool.core.account import AccountKey
from account_pool.core.request_rows import COPILOT, RequestRow
from account_pool.core.wrong import Wrong, as_json_list, shown

#: USD for a million tokens, by how many input tokens a request has more than: ascending.
Rate = tuple[tuple[int, float], ...]

#: Providers whose accounts are subscriptions: what they serve is paid already.
SUBSCRIPTIONS = frozenset({"claude-code", "codex", COPILOT, "gemini-cli", "kimi-code"})
#: How the list calls the providers.
LISTED_AS = {
    "anthropic": "anthropic",
    "azure": "azure",
    "cerebras": "cerebras",
    "claude-code": "anthropic",
    "codex": "openai",
    "cohere": "cohere",
    COPILOT: "github-copilot",
    "deepseek": "deepseek",
    "fireworks": "fireworks",
    "gemini": "google",
    "gemini-cli": "google",
    "groq": "groq",
    "kimi-code": "moonshotai",
    "minimax": "minimax",
    "mistral": "mistral",
    "moonshot": "moonshotai",
    "openai": "openai",
    "openrouter": "openrouter",
    "perplexity": "perplexity",
    "together": "together",
    "xai": "x-ai",
    "zai": "zai",
}
#: Premium requests that a prompt of a user takes, the first that fits:
#: https://docs.github.com/en/copilot/concepts/billing/copilot-requests
PREMIUM: tuple[tuple[str, float], ...] = (
    ("gpt-4.1*", 0.0),
    ("gpt-4o*", 0.0),
    ("gpt-5-mini*", 0.0),
    ("raptor-mini*", 0.0),
    ("grok-code-fast*", 0.25),
    ("gemini-*-flash*", 0.33),
    ("claude-haiku-*", 0.33),
    ("gpt-5.1-codex-mini*", 0.33),
    ("claude-opus-4.1*", 10.0),
    ("claude-opus-4", 10.0),
    ("claude-opus-*", 3.0),
    ("*", 1.0),
)


class Price(NamedTuple):
    """The price of a model. Reasoning is output; `None`: as input."""

    input: Rate
    output: Rate
    cached: Rate | None = None
    cache_write: Rate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRule:
    """What the owner has written about some accounts or models.

    Attributes:
        account: `provider/label`, or a provider; None: all.
        model: a name or a glob.
        price: of those models.
        monthly_usd: what a subscription costs.
        premium: how many of Copilot's premium requests a prompt takes.
    """

    account: str | None = None
    model: str = "*"
    price: Price | None = None
    monthly_usd: float | None = None
    premium: float | None = None

    def is_about(self, account: str, model: str) -> bool:
        of_account = self.account in (None, account, account.partition("/")[0])
        return of_account and fnmatchcase(model.lower(), self.model.lower())


class Cost(NamedTuple):
    """What one request costs; fields as in `RequestRow`."""

    cost_usd: float | None
    price: str
    covered: int
    premium_requests: float | None


#: Where an owner's price is from.
OWN = "accounts.yaml"


class Prices:
    """The owner's prices, the first rule that fits."""

    def __init__(self, rules: Sequence[PriceRule] = ()) -> None:
        self.rules = tuple(rules)

    def of_model(self, account: str, model: str) -> Price | None:
        """Return the owner's price of *model* at *account*, `provider/label`."""
        return next(
            (r.price for r in self.rules if r.price is not None and r.is_about(account, model)),
            None,
        )

    def monthly_usd(self, account: str) -> float | None:
        """Return what the subscription *account* costs a month, where that was written."""
        return next(
            (
                rule.monthly_usd
                for rule in self.rules
                if rule.monthly_usd is not None and rule.is_about(account, "")
            ),
            None,
        )

    def is_covered(self, account: str) -> bool:
        """Say whether what *account* serves is paid for by a subscription."""
        provider = account.partition("/")[0]
        return provider in SUBSCRIPTIONS or self.monthly_usd(account) is not None

    def premium_requests(self, row: RequestRow) -> float | None:
        """Return what *row* takes of Copilot's allowance, None where it is not of Copilot."""
        if row.provider != COPILOT or row.premium_requests is not None:
            return row.premium_requests
        account, model = row.account or COPILOT, row.model or ""
        for rule in self.rules:
            if rule.premium is not None and rule.is_about(account, model):
                return rule.premium
        return next(premium for glob, premium in PREMIUM if fnmatchcase(model.lower(), glob))

    def cost(self, row: RequestRow, listed: Price | None, source: str) -> Cost:
        """Return what *row* costs by the owner's price, else by the *listed* one of *source*."""
        account = row.account or row.provider
        own = self.of_model(account, row.model or "")
        price, source = (listed, source) if own is None else (own, OWN)
        value = None if price is None else cost_usd(price, row)
        return Cost(
            cost_usd=value,
            price="" if value is None else source,
            covered=int(self.is_covered(account)),
            premium_requests=self.premium_requests(row),
        )


def cost_usd(price: Price, row: RequestRow) -> float | None:
    """Return what the tokens of *row* cost; None where they were not told."""
    sent = row.input_tokens
    if sent is None:
        return None
    cached, written = row.cached_tokens or 0, row.cache_write_tokens or 0
    total = (
        (sent - cached - written) * _at(price.input, sent)
        + cached * _at(price.cached or price.input, sent)
        + written * _at(price.cache_write or price.input, sent)
        + (row.output_tokens or 0) * _at(price.output, sent)
    )
    return round(total / 1e6, 9)


def _at(rate: Rate, input_tokens: int) -> float:
    """Return the price at which a request of so many tokens is billed, as a whole."""
    return next((usd for above, usd in reversed(rate) if input_tokens > above), rate[0][1])


# -- what the owner has written

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
    return as_json_list(value, _rule)


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
