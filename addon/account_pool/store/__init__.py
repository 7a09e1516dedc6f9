"""What survives a restart.

Reading order: `tokens` (what is kept of a login, and the protocol), `memory`, then
`schema`, `database` and `sqlite`.
"""
