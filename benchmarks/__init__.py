"""What the project claims about speed, measured against bare mitmdump. Run `python -m benchmarks`.

Reading order: `figures` (what is reported), `cpu` and `instructions` (what is measured), `certs`,
`replies`, `upstream` (the provider), `requests`, `client`, `load` (the clients),
`proxies` (what is compared), `bench` (all of it, running), `scenarios/` (one
claim each), `run` (the command).
"""
