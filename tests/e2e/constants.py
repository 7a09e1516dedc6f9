"""A mitmproxy script that sets one of our own constants, as `set_constant` says.

What a test wants to see must not happen by time instead: it makes that time endless.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from mitmproxy import ctx
from mitmproxy.addonmanager import Loader


class Constants:
    def load(self, loader: Loader) -> None:
        loader.add_option("set_constant", Sequence[str], [], "module:NAME=seconds")

    def running(self) -> None:
        for said in ctx.options.set_constant:
            path, _, value = said.partition("=")
            module, _, name = path.partition(":")
            owner = importlib.import_module(module)
            assert hasattr(owner, name), said
            setattr(owner, name, float(value))


addons = [Constants()]
