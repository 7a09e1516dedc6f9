"""Where secrets come from and how they stay fresh.

Reading order: `sources` (a value, a variable; what a text holds; an account as it was written
down), `command`, `files` and `keychain` (the other sources), `copilot` (the token exchange),
`oauth` (a login as configured, and what renews it), `refreshable_token` (its newest tokens),
`acquire` (how an account gets its credentials), `keeper` (those that accounts have; what the
addon talks to).

Beside them: `http` (one request of our own), `vendor_logins` (how vendors' logins are refreshed,
and where their tools keep them), `new_logins` (what commands add: made at GitHub, or taken over
from a tool).
"""
