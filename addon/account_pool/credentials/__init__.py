"""Where secrets come from and how they stay fresh.

Reading order: `sources` (value, env, file, command), `copilot` (the token exchange;
`exchange_answer` reads what GitHub says, `placeholder` answers clients), `held` (one
account), `keeper` (all of them; what the addon talks to).
"""
