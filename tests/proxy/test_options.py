"""Options, and what requests need of them."""

from __future__ import annotations

import pytest
from mitmproxy import exceptions
from mitmproxy.addonmanager import Loader
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.options import Options
from mitmproxy.test import taddons

from account_pool.config.options import POOL_OPTIONS
from account_pool.config.options import settings as merged
from account_pool.providers.base import HostRule
from account_pool.proxy import options
from account_pool.proxy.options import conflicts


@pytest.fixture
def tctx():
    with taddons.context(Proxyserver()) as tctx:
        options.add(Loader(tctx.master))
        yield tctx


def test_every_option_is_declared_with_its_default(tctx):
    for option in POOL_OPTIONS:
        assert option.option.startswith("pool_")
        assert getattr(tctx.options, option.option) == option.option_default
    assert options.given(tctx.options) == {}


@pytest.mark.parametrize(
    ("spec", "name", "value"),
    [
        ("pool_max_wait=2.5", "max_wait", 2.5),
        ("pool_max_wait=7", "max_wait", 7.0),
        ("pool_max_attempts=3", "max_attempts", 3),
        ("pool_strategy=least-busy", "strategy", "least-busy"),
        ("pool_retry_broken=true", "retry_broken", True),
        ("pool_gate=0", "gate", 0.0),
    ],
)
def test_given_on_the_command_line(tctx, spec, name, value):
    tctx.options.set(spec)
    assert options.given(tctx.options) == {name: value}


def test_a_default_given_by_hand_is_given():
    with taddons.context() as tctx:
        tctx.options.set("pool_max_wait=30", "pool_other=1", defer=True)
        at_start = options.add(Loader(tctx.master))
        tctx.options.process_deferred()
        assert options.given(tctx.options, at_start) == {"max_wait": 30.0}


@pytest.mark.parametrize(
    "spec",
    [
        "pool_max_wait=soon",
        "pool_max_wait=-1",
        "pool_max_wait=nan",
        "pool_max_wait=inf",
        "pool_max_attempts=0",
        "pool_cooldown=0",
        "pool_gate=",
    ],
)
def test_a_wrong_value_is_named(tctx, spec):
    tctx.options.set(spec)
    name = spec.partition("=")[0]
    with pytest.raises(exceptions.OptionsError, match=f"^{name}: "):
        options.given(tctx.options)


@pytest.mark.parametrize("spec", ["pool_strategy=best", "pool_intercept=none", "pool_websockets=x"])
def test_a_wrong_choice_is_refused_by_mitmproxy_or_by_us(tctx, spec):
    with pytest.raises(exceptions.OptionsError):
        tctx.options.set(spec)
        options.given(tctx.options)


def test_the_text_of_a_wrong_token_is_not_shown(tctx):
    tctx.options.update(pool_github_token="ghp_secret")
    assert options.given(tctx.options) == {"github_token": "ghp_secret"}


def settings(tctx, **in_file):
    return options.settings(merged(in_file, options.given(tctx.options)), tctx.options)


def test_settings(tctx):
    made = settings(tctx)
    assert made.limits.max_attempts == 10
    assert made.limits.max_wait_s == 30.0
    assert made.limits.retry_broken is False
    assert made.gate_s == 5.0
    assert (made.intercept_all, made.remote, made.insecure, made.manual_approve) == (False,) * 4


def test_the_command_line_wins_over_the_file(tctx):
    tctx.options.set("pool_max_wait=2")
    made = settings(tctx, max_wait=9.0, gate=1.0)
    assert (made.limits.max_wait_s, made.gate_s) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("spec", "attribute"),
    [
        ("pool_intercept=all", "intercept_all"),
        ("pool_allow_remote=true", "remote"),
        ("ssl_insecure=true", "insecure"),
        ("pool_manual_approve=true", "manual_approve"),
    ],
)
def test_switches(tctx, spec, attribute):
    tctx.options.set(spec)
    assert getattr(settings(tctx), attribute) is True


def test_heads_are_taken_as_they_are(tctx):
    assert settings(tctx).validates
    tctx.options.set("validate_inbound_headers=false")
    assert not settings(tctx).validates


def test_proxyauth_lets_others_in(tctx):
    from mitmproxy.addons.proxyauth import ProxyAuth

    tctx.master.addons.add(ProxyAuth())
    tctx.options.update(proxyauth="user:pass")
    assert settings(tctx).remote


def test_the_command_line_comes_before_config_yaml(monkeypatch):
    """mitmproxy reads its config.yaml after the command line, and lets it win."""
    monkeypatch.setattr("sys.argv", ["mitmdump", "-s", "x", "--set", "pool_gate=1", "--set", "a=1"])
    with taddons.context() as tctx:
        tctx.options.set("pool_gate=1", "a=1", defer=True)
        tctx.options.update_defer(pool_gate="2", pool_cooldown="60", a="2")
        options.add(Loader(tctx.master))
        tctx.options.process_deferred()
        assert options.given(tctx.options) == {"gate": 1.0, "cooldown": 60.0}
        assert tctx.options.deferred["a"] == "2", "options of others are as mitmproxy has them"
        # A reload of pool.py declares them again, and what was set meanwhile stays.
        tctx.options.set("pool_gate=3")
        options.add(Loader(tctx.master))
        tctx.options.process_deferred()
        assert options.given(tctx.options)["gate"] == 3.0


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("pool_retry_broken", True),
        ("pool_retry_broken=", True),
        ("pool_retry_broken=toggle", True),
        ("pool_retry_broken=false", False),
        ("pool_max_attempts=3", 3),
        ("pool_max_wait=3", "3"),
    ],
)
def test_a_text_of_the_command_line(spec, value):
    with taddons.context() as tctx:
        tctx.options.set(spec, defer=True)
        options.add(Loader(tctx.master))
        tctx.options.process_deferred()
        assert getattr(tctx.options, spec.partition("=")[0]) == value


def test_values_of_config_yaml_may_be_written_as_in_accounts_yaml():
    with taddons.context() as tctx:
        written = {"pool_max_wait": 30, "pool_drain": 2.5, "pool_fast": True}
        tctx.options.update_defer(pool_notify=["desktop", "ntfy:topic"], **written)
        options.add(Loader(tctx.master))
        tctx.options.process_deferred()
        assert options.given(tctx.options, written) == {
            "max_wait": 30.0, "drain": 2.5, "fast": "on", "notify": '["desktop", "ntfy:topic"]'
        }  # fmt: skip


def test_what_is_of_no_type_is_all_named_at_once_and_never_shown_where_it_is_a_secret():
    with taddons.context() as tctx:
        tctx.options.set(
            "pool_max_attempts=abc",
            "pool_show_tokens=maybe",
            "pool_state",
            "pool_github_token=ghp-fake-one",
            "pool_github_token=ghp-fake-two",
            "pool_gate=1",
            defer=True,
        )
        tctx.options.update_defer(pool_view_kept=None, pool_look_up="true", pool_prices=3)
        with pytest.raises(exceptions.OptionsError) as caught:
            options.add(Loader(tctx.master))
        assert str(caught.value).splitlines() == [
            'pool_max_attempts: "abc" is not a whole number; write a number of 1 or more such '
            "as 10",
            "pool_state: no value is not text; write text, in quotes, a mapping, or a list of "
            "these",
            "pool_github_token: it is set 2 times; set it once",
            'pool_show_tokens: "maybe" is not true or false; write true or false',
            'pool_look_up: "true" is not true or false; write true or false',
            "pool_view_kept: no value is not a whole number; write a number such as 500",
            "pool_prices: 3 is not text; write text, in quotes, a mapping, or a list of these",
        ]
        # What is left is taken over, and mitmproxy does not stumble.
        tctx.options.process_deferred()
        assert tctx.options.pool_gate == "1"


# -- options of mitmproxy that requests of the pool do not follow


HOSTS = [HostRule("api.example.com"), HostRule("api.example.com", 8443)]


def test_a_name_that_no_option_has_is_said():
    with taddons.context() as tctx:
        tctx.options.set("pool_max_wiat=0", "pool_nonsense", "other=1", defer=True)
        options.add(Loader(tctx.master))
        tctx.options.process_deferred()
        lines = conflicts(tctx.options, [])
    assert lines[0] == "pool_max_wiat: the pool has no such option; did you mean pool_max_wait?"
    assert lines[1].startswith(
        "pool_nonsense: the pool has no such option; write one of accounts, "
    )
    assert len(lines) == 2


def options_with(**values) -> Options:
    options = Options()
    for name, value in values.items():
        if name not in options:
            options.add_option(name, object, value, "")
        else:
            options.update(**{name: value})
    return options


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({}, []),
        ({"map_remote": []}, []),
        ({"map_remote": ["|a|b"]}, ["map_remote"]),
        ({"websocket": True}, []),
        ({"websocket": False}, ["websocket"]),
        ({"ssl_insecure": True}, ["ssl_insecure"]),
        ({"proxyauth": "a:b"}, []),
        ({"proxyauth": "a:b", "mode": ["reverse:https://api.example.com"]}, ["proxyauth"]),
        ({"ignore_hosts": [r"example\.com:443"]}, ["ignore_hosts"]),
        ({"ignore_hosts": ["API.EXAMPLE"]}, ["ignore_hosts", "ignore_hosts"]),
        ({"allow_hosts": [r"example\.com:443"]}, ["allow_hosts"]),
        ({"allow_hosts": ["example"]}, []),
        ({"tcp_hosts": ["example"]}, ["tcp_hosts", "tcp_hosts"]),
        ({"tcp_hosts": ["localhost"]}, []),
    ],
)
def test_notes(values, lines):
    assert [note.partition(":")[0] for note in conflicts(options_with(**values), HOSTS)] == lines
