"""A failover to watch without an account: `failover`, and the `provider` in it.

`mitmdump` is a proxy as a child process, which `run`, `serve` and the tests start, too.
"""
