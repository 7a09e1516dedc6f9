"""What survives a restart.

Reading order: `store` (the protocols, and how they fail), `pool_state` (what names one),
`machine` (its clock and its processes), then `schema`, `database`, `sqlite`, `sqlite_state` and
`sqlite_history`. `agreed` and `account_rows` are also used by the stores in `fleet`.
"""
