"""What survives a restart.

Reading order: `store` (the protocol as a whole), `tokens` (what is kept of a login),
`state` (what is kept of a pool), `memory`, then `schema`, `database`, `sqlite`,
`sqlite_rows` and `sqlite_state`.
"""
