"""Why a mitmdump did not start: what it printed, and the line that counts."""

from __future__ import annotations

import pytest

from account_pool.demo.mitmdump import cause

TRACEBACK = "Traceback (most recent call last):"
LOADING = "[18:04:36.314] Loading script /usr/lib/account_pool/script/pool.py"
LISTENING = "[18:04:36.464] HTTP(S) proxy listening at *:56969."
CONNECTED = "[18:04:36.465][127.0.0.1:50776] client connect"
EXITING = "Error logged during startup, exiting..."
IMPORT = [
    "[18:04:36.458] error in script /usr/lib/account_pool/script/pool.py",
    "Traceback (most recent call last):",
    '  File "pool.py", line 3, in <module>',
    "    from account_pool.proxy.addon import addon",
    "ModuleNotFoundError: No module named 'sortedcontainers'",
]
CANCELLED = [
    "[18:04:36.470] Task exception was never retrieved",
    "Traceback (most recent call last):",
    '  File "selector_events.py", line 1, in accept',
    "asyncio.exceptions.CancelledError",
]
AGAIN = "the installation is incomplete: install the package again"
CONFIG = 'accounts.yaml:2: accounts[0].provider: "opnai" is not a provider; did you mean openai?'


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            [LOADING, *IMPORT, LISTENING, CONNECTED, EXITING],
            f"ModuleNotFoundError: No module named 'sortedcontainers'; {AGAIN}",
        ),
        # What was cancelled when it ended is no cause.
        (
            [LOADING, *IMPORT, LISTENING, *CANCELLED, EXITING],
            f"ModuleNotFoundError: No module named 'sortedcontainers'; {AGAIN}",
        ),
        # mitmproxy itself is not there, or broken.
        (
            [
                "Traceback (most recent call last):",
                "  File x",
                "ImportError: cannot import name 'a'",
            ],
            f"ImportError: cannot import name 'a'; {AGAIN}",
        ),
        (
            [
                LOADING,
                "[18:04:36.458] account-pool: /w/accounts.yaml is skipped: it has not been ...",
                f"[18:04:36.458] account-pool: {CONFIG}",
                "[18:04:36.458] account-pool: accounts.yaml:3: another",
                LISTENING,
                CONNECTED,
                EXITING,
            ],
            f"{CONFIG} (and 1 more)",
        ),
        (
            [
                "[18:04:38.566] [Errno 98] HTTP(S) proxy failed to listen on 127.0.0.1:8080 with "
                "[Errno 98] error while attempting to bind: address already in use",
                "Try specifying a different port by using `--mode regular@8082`.",
                LOADING,
                "[18:04:38.700] account-pool: ready with 1 account of ~/a.yaml: openai/a",
                EXITING,
            ],
            "[Errno 98] HTTP(S) proxy failed to listen on 127.0.0.1:8080 with [Errno 98] error "
            "while attempting to bind: address already in use; name another port",
        ),
        (
            [
                "/v/bin/mitmdump: Error reading /h/config.yaml: Config error at line 2:",
                "    ",
                "    ^ (line: 2)",
                "expected the node content, but found '<stream end>'",
            ],
            "/v/bin/mitmdump: Error reading /h/config.yaml: Config error at line 2:",
        ),
        ([LOADING, CONNECTED, "something odd"], "something odd"),
        ([LOADING, CONNECTED], "it said nothing"),
        ([], "it said nothing"),
    ],
)
def test_the_line_that_says_why(lines, expected):
    assert cause(lines, 1) == expected


def test_a_process_that_was_killed_says_nothing():
    assert cause([LOADING], -9) == "it was ended by signal 9"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("ValueError: cannot use sk-ant-api03-fakefakefake here", "here"),
        ("ValueError: header authorization: Bearer abc.def", "authorization"),
        ("OSError: http://me:pa55word@proxy.example.com:3128 refused", "proxy.example.com:3128"),
        ("KeyError: 'a1b2c3d4e5f6a1b2c3d4e5f6a1b2c3d4e5f6'", "KeyError"),
    ],
)
def test_no_secret_comes_along(text, kept):
    found = cause(["Traceback (most recent call last):", text], 1)
    assert "[not shown]" in found
    assert kept in found
    for secret in ("fakefakefake", "abc.def", "pa55word", "a1b2c3d4e5"):
        assert secret not in found


def test_paths_stay_whatever_they_look_like():
    line = "PermissionError: '/tmp/pytest-of-root/test_a_mistake_in_the_accounts_is_one_line0/x'"
    assert cause(["Traceback (most recent call last):", line], 1) == line
