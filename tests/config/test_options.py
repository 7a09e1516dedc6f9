"""The table of options, and that mitmproxy takes it as it is."""

from __future__ import annotations

import pytest
from mitmproxy.options import Options

from account_pool.config.options import (
    BY_NAME,
    FAST_STEPS,
    POOL_OPTIONS,
    read_fast,
    set_options,
    settings,
)
from account_pool.core.wrong import Wrong


def test_the_table_is_the_contract() -> None:
    assert {option.name: option.default for option in POOL_OPTIONS} == {
        "accounts": "",
        "strategy": "round-robin",
        "max_attempts": 10,
        "max_wait": 30.0,
        "max_waiting": 1000,
        "patience": 3.0,
        "cooldown": 300.0,
        "state": "",
        "github_token": "",
        "account_type": "individual",
        "show_tokens": False,
        "gate": 5.0,
        "websockets": "",
        "retry_broken": False,
        "editor_version": "",
        "manual_approve": False,
        "intercept": "providers",
        "allow_remote": False,
        "drain": 10.0,
        "fast": "on",
        "notify": "",
        "look_up": False,
        "view_kept": 500,
        "requests_kept": 30,
        "prices": "",
        "count_streams": False,
        "allow_origins": "",
        "allow_hosts": "",
    }
    for option in POOL_OPTIONS:
        assert type(option.default) is option.type
        assert option.check(option.default) == option.default
        assert option.help.endswith(".") and "\n" not in option.help


@pytest.fixture
def options() -> Options:
    """Return mitmproxy's options with ours among them, as the addon adds them."""
    options = Options()
    for option in POOL_OPTIONS:
        options.add_option(
            option.option,
            option.typespec,
            option.option_default,
            option.help,
            option.choices,
        )
    return options


def test_mitmproxy_takes_every_option_and_its_default(options: Options) -> None:
    for option in POOL_OPTIONS:
        value = getattr(options, option.option)
        assert option.read(value) == option.default


def test_a_fraction_can_be_set_on_the_command_line(options: Options) -> None:
    options.set("pool_max_wait=2.5", "pool_max_attempts=3", "pool_retry_broken")
    assert BY_NAME["max_wait"].read(options.pool_max_wait) == 2.5
    assert BY_NAME["max_attempts"].read(options.pool_max_attempts) == 3
    assert BY_NAME["retry_broken"].read(options.pool_retry_broken) is True


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("max_wait", "soon", '"soon" is not a number; write a number such as 30'),
        ("max_wait", "", '"" is not a number; write a number such as 30'),
        ("max_wait", "inf", "it is not a finite number; write a number such as 30"),
        ("max_wait", "-1", "-1 is less than 0; write a number such as 30"),
        ("cooldown", "0.5", "0.5 is less than 1; write a number of 1 or more such as 300"),
        ("max_attempts", 0, "0 is less than 1; write a number of 1 or more such as 10"),
        ("github_token", 3, "the value is not text; write text, in quotes"),
    ],
)
def test_a_wrong_value_of_the_command_line(name: str, text: object, expected: str) -> None:
    with pytest.raises(Wrong) as caught:
        BY_NAME[name].read(text)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("fast", True, "on"),
        ("fast", False, "off"),
        ("fast", ["table"], "table"),
        ("fast", ["inline", "table"], "inline, table"),
        ("allow_hosts", ["one.example", "two.example:8080"], "one.example, two.example:8080"),
        ("allow_hosts", [], ""),
        ("allow_origins", ["http://localhost:3000"], "http://localhost:3000"),
    ],
)
def test_what_a_file_has_instead_of_commas(name: str, value: object, expected: str) -> None:
    assert BY_NAME[name].check(value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("on", set(FAST_STEPS)),
        ("off", set()),
        ("table", {"table"}),
        ("inline", {"table", "inline"}),
        (" table ,inline", {"table", "inline"}),
        ("direct", {"table", "inline", "direct"}),
    ],
)
def test_steps_build_on_those_before_them(text: str, expected: set[str]) -> None:
    assert read_fast(text) == expected


def test_the_command_line_comes_before_the_file_and_that_before_the_defaults() -> None:
    merged = settings({"max_wait": 1.0, "gate": 2.0}, {"gate": 3.0})
    assert (merged["max_wait"], merged["gate"], merged["patience"]) == (1.0, 3.0, 3.0)
    assert merged.keys() == BY_NAME.keys()


# -- what a command line of mitmproxy sets


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", []),
        ("-s pool.py --set a=1 -w x --set=b=2=3", [("a", "1"), ("b", "2=3")]),
        ("--set flag", [("flag", "")]),
        ("--se a=1", [("a", "1")]),
        ("--setup-show -s --set-not x", []),
        ("--set", []),
        ("-nC dump ~q --set a=1 -- --set b=2", [("a", "1")]),
    ],
)
def test_set(arguments, expected):
    assert set_options(arguments.split()) == expected
