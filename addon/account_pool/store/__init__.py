"""What survives a restart.

Reading order: `tokens` (what is kept of a login, and the protocol), `memory`, `state`
(what is kept of a pool), then `schema`, `database`, `sqlite` and `sqlite_state`.
"""
