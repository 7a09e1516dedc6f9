"""Faults, by the ten thousand, between real clients and real proxies; judged from outside.

`python -m benchmarks.chaos` starts a scripted TLS provider in a process of its own, real
`mitmdump` processes with the addon, and clients over HTTP/1.1 and HTTP/2. Each request has
a row of `faults` that says what goes wrong with it and what must be true afterwards.

Reading order: `faults` (the rows), `replies` (what is answered), `plan` (which request meets
which row: a function of the seed), `site` (what the provider sees and does), `breaking`,
`http1`, `http2`, `provider` (how it misbehaves), `clients`, `oracle` (the verdict), `rig`
(processes), `campaign`, `logins` and `kills` (single-use refresh tokens and `kill -9`), `run`.
"""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
