"""Costs go into rows, and into the sums of their day, once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from account_pool.core.prices import Price, PriceRule, Prices
from account_pool.proxy import price_child, pricing
from account_pool.proxy.pricing import NoList, Pricing, ask_child
from account_pool.store.sqlite_state import SqliteState
from account_pool.store.store import RequestQuery, StoreError
from tests.proxy.helpers import FakeClock
from tests.store.request_samples import DAY, row, write

RATES = {"input": [[0, 2.0]], "output": [[0, 10.0]], "cached": None, "cache_write": None}
COST = (100 * 2 + 10 * 10) / 1e6


class List:
    """A list that knows one model."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.fails = False

    def __call__(self, asked: Any) -> Any:
        self.asked += asked
        if self.fails:
            raise NoList("it cannot be read")
        prices = [RATES if model == "gpt-5" else None for _, model, _ in asked]
        return {"version": "1.0", "prices": prices}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteState]:
    with closing(SqliteState(tmp_path / "pool.sqlite")) as made:
        yield made


def asking(store: SqliteState) -> Callable[..., Any]:
    async def ask(question: Callable[[SqliteState], Any]) -> Any:
        return question(store)

    return ask


def costs(store: SqliteState) -> list[tuple[float | None, str | None]]:
    rows = store.requests.read(RequestQuery()).rows
    return [(one.cost_usd, one.price) for _, one in reversed(rows)]


async def test_rows_and_sums_get_their_cost_once(store):
    listed, clock = List(), FakeClock()
    made = Pricing(listed, clock.now)
    write(store, row(), row(), row(model="unknown"), row(counted=0, price=""))
    for _ in range(2):
        await made.round(asking(store))
    assert costs(store) == [
        (pytest.approx(COST), "genai-prices 1.0"), (pytest.approx(COST), "genai-prices 1.0"),
        (None, ""), (None, ""),
    ]  # fmt: skip
    key = ("2027-01-15", "openai/one", "gpt-5")
    assert store.read_counts("usage") == {
        key: {"cost_usd": pytest.approx(2 * COST), "priced_requests": 2}
    }
    # One question for both, and none for what is known, in this hour.
    assert sorted(model for _, model, _ in listed.asked) == ["gpt-5", "unknown"]
    write(store, row(DAY + 3599))
    await made.round(asking(store))
    assert len(listed.asked) == 2
    write(store, row(DAY + 3600))
    clock.advance(pricing.READ_EVERY_S)
    await made.round(asking(store))
    assert listed.asked[2:] == [("openai", "gpt-5", int(DAY) + 3600)]


async def test_a_client_that_asks_one_model_after_another_starts_no_process_for_each(store):
    listed, clock = List(), FakeClock()
    made = Pricing(listed, clock.now)
    for n in range(5):
        write(store, row(model=f"model-{n}"), row(model="model-0"))
        await made.round(asking(store))
        clock.advance(1.0)
    # What is known, and what needs no list, does not wait.
    assert [model for _, model, _ in listed.asked] == ["model-0"]
    assert [price for _, price in costs(store)].count(None) == 4
    assert made.pause_s() == pytest.approx(pricing.READ_EVERY_S - 5.0)
    await made.round(asking(store))
    assert sorted(model for _, model, _ in listed.asked[1:]) == [f"model-{n}" for n in range(1, 5)]
    assert None not in [price for _, price in costs(store)]
    assert made.pause_s() == pricing.RETRY_S


async def test_new_prices_of_the_owner_do_not_wait_for_the_list(store):
    listed, clock = List(), FakeClock()
    made = Pricing(listed, clock.now)
    listed.fails = True
    write(store, row(model="mine"))
    await made.round(asking(store))
    assert [price for _, price in costs(store)] == [None]
    made.use(Prices([PriceRule(model="mine", price=Price(((0, 1.0),), ((0, 1.0),)))]))
    await made.round(asking(store))
    assert [price for _, price in costs(store)] == ["accounts.yaml"]


async def test_two_proxies_on_one_file_count_once(store, tmp_path):
    write(store, row())
    with closing(SqliteState(tmp_path / "pool.sqlite")) as other:
        found = store.requests.unpriced(0, 10)
        assert found == other.requests.unpriced(0, 10)
        for one, price in ((store, ((0, 1.0),)), (other, ((0, 9.0),))):
            listed = Price(price, price)
            one.requests.price([(n, Prices().cost(r, listed, "list")) for n, r in found])
        assert costs(other) == [(pytest.approx(110 / 1e6), "list")]
        [amounts] = other.read_counts("usage").values()
        assert amounts == {"cost_usd": pytest.approx(110 / 1e6), "priced_requests": 1}


async def test_a_list_that_cannot_be_read_is_asked_again(store, caplog):
    listed, clock = List(), FakeClock()
    listed.fails = True
    made = Pricing(listed, clock.now)
    made.prices = Prices([PriceRule(model="mine", price=Price(((0, 1.0),), ((0, 1.0),)))])
    write(store, row(), row(model="mine"), row(provider="my-own", account="my-own/a"))
    for _ in range(2):
        await made.round(asking(store))
    # What needs no list does not wait for it.
    assert [price for _, price in costs(store)] == [None, "accounts.yaml", ""]
    assert caplog.text.count("prices cannot be read: it cannot be read") == 1
    # To read it takes a process: not one for each request that ends meanwhile.
    write(store, row(), row(model="mine"))
    await made.round(asking(store))
    assert len(listed.asked) == 1
    assert [price for _, price in costs(store)[3:]] == [None, "accounts.yaml"]
    listed.fails = False
    clock.advance(pricing.RETRY_S)
    await made.round(asking(store))
    priced = (pytest.approx(COST), "genai-prices 1.0")
    assert (costs(store)[0], costs(store)[3]) == (priced, priced)


async def test_prices_are_looked_for_again_once_the_store_can_be_used(store):
    made = Pricing(List())
    write(store, row(model="mine"))
    await made.round(asking(store))
    made.use(Prices([PriceRule(model="mine", price=Price(((0, 1.0),), ((0, 1.0),)))]))

    async def unusable(_question: Any) -> None:
        return None

    async def failing(_question: Any) -> None:
        raise StoreError("the disk is full")

    await made.round(unusable)
    with pytest.raises(StoreError):
        await made.round(failing)
    await made.round(asking(store))
    assert costs(store) == [(pytest.approx(110 / 1e6), "accounts.yaml")]


def test_a_name_that_the_list_chokes_on_keeps_no_other_back(monkeypatch, tmp_path):
    (tmp_path / "genai_prices.py").write_text(
        "__version__, Usage = '1', dict\n"
        "def calc_price(_usage, model, **_how):\n"
        "    raise RecursionError if model == 'odd' else LookupError\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    asked = [("openai", "odd", 0), ("openai", "gpt-5", 0)]
    assert ask_child(asked) == {"version": "1", "prices": [None, None]}


async def test_what_had_no_price_gets_one_when_its_owner_writes_one(store):
    made = Pricing(List())
    write(store, row(model="mine"))
    await made.round(asking(store))
    assert costs(store) == [(None, "")]
    made.use(Prices([PriceRule(model="mine", price=Price(((0, 1.0),), ((0, 1.0),)))]))
    await made.round(asking(store))
    assert costs(store) == [(pytest.approx(110 / 1e6), "accounts.yaml")]
    # What has its price keeps that.
    made.use(Prices([PriceRule(model="mine", price=Price(((0, 9.0),), ((0, 9.0),)))]))
    await made.round(asking(store))
    assert costs(store) == [(pytest.approx(110 / 1e6), "accounts.yaml")]


async def test_a_subscription_saves(store):
    write(store, row(account="codex/one", provider="codex"))
    await Pricing(List()).round(asking(store))
    [amounts] = store.read_counts("usage").values()
    assert amounts == {"saved_usd": pytest.approx(COST), "priced_requests": 1}


async def test_premium_requests_are_counted_without_a_price(store):
    write(store, row(account="copilot/one", provider="copilot", model="claude-opus-4.1"))
    await Pricing(List()).round(asking(store))
    [amounts] = store.read_counts("usage").values()
    assert amounts == {"premium_requests": 10.0, "priced_requests": 1}


async def test_more_rows_than_are_looked_at_at_once(store, monkeypatch):
    monkeypatch.setattr(pricing, "AT_ONCE", 2)
    write(store, *[row()] * 5)
    await Pricing(List()).round(asking(store))
    assert {price for _, price in costs(store)} == {"genai-prices 1.0"}


def test_a_price_in_a_form_of_its_own_keeps_no_other_back(monkeypatch, tmp_path):
    (tmp_path / "genai_prices.py").write_text(
        "from types import SimpleNamespace as Made\n"
        "__version__, Usage = '1', dict\n"
        "def calc_price(_usage, model, **_how):\n"
        "    found = Made(input_mtok=1.5 if model == 'gpt-5' else 'by the hour', output_mtok=2)\n"
        "    return Made(model_price=found)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    odd, gpt = ask_child([("openai", "odd", 0), ("openai", "gpt-5", 0)])["prices"]
    assert odd is None
    assert (gpt["input"], gpt["output"]) == ([[0, 1.5]], [[0, 2.0]])


@pytest.mark.parametrize(
    "answer",
    [{}, []] + [{"version": "1", "prices": prices} for prices in ([], [5], [{"input": 5}])],
)
async def test_an_answer_that_was_never_seen(store, answer, caplog):
    write(store, row())
    await Pricing(lambda _asked: answer).round(asking(store))
    assert [price for _, price in costs(store)] == [None]
    assert "something else than expected" in caplog.text


# -- the list itself

NETWORK = """
import socket, sys
def refused(*_):
    sys.exit("it went to the network")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refused
import runpy
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_the_list_is_read_without_the_network():
    pytest.importorskip("genai_prices")
    asked = [["openai", "gpt-5", DAY], ["anthropic", "claude-sonnet-4-5", DAY], ["openai", "?", 0]]
    done = subprocess.run(
        [sys.executable, "-P", "-c", NETWORK, price_child.__file__],
        input=json.dumps(asked).encode(),
        capture_output=True,
        check=True,
    )
    gpt, sonnet, none = json.loads(done.stdout)["prices"]
    assert none is None
    assert gpt["input"][0][0] == 0 and 0 < gpt["input"][0][1] < gpt["output"][0][1]
    assert sonnet["cached"][0][1] < sonnet["input"][0][1] < sonnet["cache_write"][0][1]


def test_our_sum_is_that_of_the_package():
    genai_prices = pytest.importorskip("genai_prices")
    for provider, model, sent in (
        ("openai", "gpt-5", 1_000), ("anthropic", "claude-sonnet-4-5", 1_000),
        ("anthropic", "claude-sonnet-4-5", 300_000), ("google", "gemini-2.5-pro", 300_000),
    ):  # fmt: skip
        usage = genai_prices.Usage(input_tokens=sent, cache_read_tokens=400, output_tokens=90)
        wanted = genai_prices.calc_price(usage, model, provider_id=provider).total_price
        price = pricing._price(price_child.price_of(provider, model, DAY))
        asked = row(input_tokens=sent, cached_tokens=400, output_tokens=90)
        assert Prices().cost(asked, price, "").cost_usd == pytest.approx(float(wanted)), model


def test_a_list_that_is_not_installed(monkeypatch, tmp_path):
    (tmp_path / "genai_prices.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(NoList, match="ImportError: not here"):
        ask_child([("openai", "gpt-5", 0)])
