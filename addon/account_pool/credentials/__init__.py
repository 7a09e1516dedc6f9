"""Where secrets come from and how they stay fresh.

Reading order: `sources`, `files` and `keychain` (value, env, command, file, keychain item),
`reading` (what a text holds), `copilot` (the token
exchange; `exchange_answer` reads what GitHub says, `placeholder` answers clients),
`oauth` (a login as it was written), `token_answer` (what a token endpoint says), `login`
(the newest tokens of a login), `ways` (how one account has its credentials), `held` (one
account), `keeper` (all of them; what the addon talks to).

Beside them: `http` (one request of our own), `code_assist` (the project of a gemini-cli
account), `vendors` (their logins), `vendor_files` (what their tools left on disk), `notices` (what
looks wrong with credentials that can be read).
"""
