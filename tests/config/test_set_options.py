"""What a command line of mitmproxy sets."""

from __future__ import annotations

import pytest

from account_pool.config.options import set_options


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
