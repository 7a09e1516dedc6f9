"""Sums over all proxies, in the state database: what is added, each batch once.

Functions over a connection; `sqlite_state.py` lends it.
"""

from __future__ import annotations

import json
import sqlite3

from account_pool.core.usage import Counted
from account_pool.store.store import Numbered


def note_batch(connection: sqlite3.Connection, batch: Numbered, wall_now: float) -> bool:
    """Note that *batch* is added; say whether it was not before."""
    done = connection.execute(
        "INSERT INTO batches VALUES (?, ?, ?) ON CONFLICT (proxy) DO UPDATE SET "
        "number = excluded.number, at = excluded.at WHERE number < excluded.number",
        (batch.proxy, batch.number, wall_now),
    )
    return done.rowcount > 0


def add(connection: sqlite3.Connection, name: str, added: Counted, wall_now: float) -> None:
    """Add amounts to the sums under *name*. Call it in a transaction."""
    connection.executemany(
        "INSERT INTO counts VALUES (?, ?, ?, ?, ?) ON CONFLICT (name, key, field) DO UPDATE SET "
        "amount = amount + excluded.amount, added_at = excluded.added_at",
        (
            (name, json.dumps(key), field, amount, wall_now)
            for key, amounts in added.items()
            for field, amount in amounts.items()
        ),
    )


def read(connection: sqlite3.Connection, name: str) -> Counted:
    """Return the sums under *name*. Raises TypeError or ValueError."""
    rows = connection.execute("SELECT key, field, amount FROM counts WHERE name = ?", (name,))
    sums: Counted = {}
    for key, field, amount in rows:
        sums.setdefault(tuple(json.loads(key)), {})[field] = amount
    return sums
