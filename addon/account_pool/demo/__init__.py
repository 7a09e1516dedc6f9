"""A scripted provider, and a failover to watch without an account.

In reading order: `exchange` (what is asked, answered and recorded), `provider` (the server),
`certificates`, `replies` (what a vendor's server says), `mitmdump` (the proxy as a child process);
then the demo itself, `failover`. The end-to-end tests use all but that.
"""
