"""A fleet of agents on a few accounts, in simulated time: what a storm costs.

No proxy and no socket: the accounts are scripted (`fleet`), the pool is the real core
(`ways`), time is a queue of events (`clock`). `python -m benchmarks.storm` prints the table
of docs/storms.md.
"""
