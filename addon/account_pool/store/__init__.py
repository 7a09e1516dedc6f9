"""What survives a restart.

Reading order: `store` (the protocols, and how they fail), `pool_state` (what names one),
`machine` (its clock and its processes), then `schema`, `database`, `sqlite` and
`sqlite_state`, of which the other `sqlite_` are parts.
"""
