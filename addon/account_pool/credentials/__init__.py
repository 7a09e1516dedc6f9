"""Where secrets come from and how they stay fresh.

Reading order: `sources`, `files` and `keychain` (value, env, command, file, keychain item),
`reading` (what a text holds), `copilot` (the token
exchange; `exchange_answer` reads GitHub's response, `placeholder` answers clients),
`oauth` (a login as configured), `token_answer` (the response of a token endpoint),
`refreshable_token` (the newest tokens of a login), `acquire` (how an account gets its
credentials), `account_credential` (those of one account), `keeper` (those of all; what the
addon talks to).

Beside them: `http` (one request of our own), `code_assist` (the project of a gemini-cli
account), `vendors` (their logins), `vendor_files` (what their tools left on disk), `notices` (what
looks wrong with credentials that can be read).
"""
