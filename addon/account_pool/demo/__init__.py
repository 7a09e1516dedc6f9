"""A scripted provider, and a failover to watch without an account.

In reading order: `exchange` and `journal` (what is asked, answered and recorded),
`http1`, `http2`, `websocket` and `provider` (the server), `certificates`, `scripts`
(what the vendors' servers say), `mitmdump` (the proxy as a child process); then the
demo itself: `story` (who says what), `screen` (what one sees), `stage` (runs it).
The end-to-end tests use all but the last three.
"""


def run() -> int:
    """Run `account-pool demo`; return its exit code."""
    # Here and not above: the tests and the command line want only parts of this package.
    from account_pool.demo.stage import perform  # noqa: PLC0415

    return perform()
