"""A scripted provider: what the tests have in the place of a vendor's servers.

In reading order: `exchange` (what is asked, answered and recorded), `provider` (the server),
`certificates`, `replies`.
"""
