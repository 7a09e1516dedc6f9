"""A scripted provider, and a failover to watch without an account.

In reading order: `exchange` (what is asked, answered and recorded), `http1`, `http2` and
`provider` (the server), `certificates`, `replies` (what a vendor's server says), `mitmdump`
(the proxy as a child process); then the demo itself: `scenario` (what it shows), `runner` (runs
it). The end-to-end tests use all but the last two.
"""


def run() -> int:
    """Run `account-pool demo`; return its exit code."""
    # Here and not above: the tests and the command line want only parts of this package.
    from account_pool.demo.runner import run_demo  # noqa: PLC0415

    return run_demo()
