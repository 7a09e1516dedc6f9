"""A failover to watch without an account.

`mitmdump` is a proxy as a child process, which `run`, `serve` and the tests start, too.
"""
