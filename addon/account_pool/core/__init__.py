"""The pure core: decides from values, knows no mitmproxy, clock, chance or I/O.

Reading order: `account`, `credential`, `outcome` (the values), `cooldown`,
`selection`, `pool` (the only mutable state), `attempts` (one request), then
`reset_hints` and `sse` (how answers are read).
"""
