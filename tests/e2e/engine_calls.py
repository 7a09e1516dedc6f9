"""A mitmproxy script: notes each call of the state engine, and may have it wait for ever.

A line a call in the file `ENGINE_CALLS`: `begin` or `end`, the thread, the function. With
`ENGINE_WAITS` an answer is waited for as long as it takes. `ENGINE_SETS` (JSON) sets constants:
names of modules, with values by name.
"""

from __future__ import annotations

import json
import math
import os
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

from account_pool.store.fleet.connection import BoundedSocket
from account_pool.store.fleet.engine import Engine

CALLS, SETS, WAITS = "ENGINE_CALLS", "ENGINE_SETS", "ENGINE_WAITS"

call, sendall = Engine.call, BoundedSocket.sendall


def noted(self: Engine, function: str, *args: Any, **how: Any) -> Any:
    with Path(os.environ[CALLS]).open("a", encoding="utf-8") as calls:
        thread = "loop" if threading.current_thread() is threading.main_thread() else "thread"
        print("begin", thread, function, file=calls, flush=True)
        try:
            return call(self, function, *args, **how)
        finally:
            print("end", thread, function, file=calls, flush=True)


def send(self: BoundedSocket, data: bytes) -> None:
    self._sock.settimeout(None)
    self._whole_s = math.inf
    sendall(self, data)


def load(_loader: object) -> None:
    """mitmproxy calls it; a test that imports this file for its path is not to be changed."""
    Engine.call = noted  # type: ignore[method-assign]  # on purpose
    if WAITS in os.environ:
        BoundedSocket.sendall = send  # type: ignore[method-assign]  # as above
    for module, values in json.loads(os.environ.get(SETS, "{}")).items():
        for name, value in values.items():
            setattr(import_module(module), name, float(value))
