"""Where secrets come from and how they stay fresh.

Reading order: `sources` (a value, a variable; an account as it was written down), `command`,
`files` and `keychain` (the other sources), `reading` (what a text holds), `copilot` (the token
exchange; `copilot_token` reads GitHub's response and answers clients), `oauth` (a login as
configured), `token_endpoint` (what renews it), `refreshable_token` (its newest tokens),
`acquire` (how an account gets its credentials), `account_credential` (those of one account),
`keeper` (those of all; what the addon talks to).

Beside them: `http` (one request of our own), `code_assist` (the project of a gemini-cli
account), `vendor_logins` (how vendors' logins are refreshed, and where their tools keep them),
`device_flow` (a new login at GitHub), `notices` (what looks wrong with credentials that can be
read), `errors`.
"""
