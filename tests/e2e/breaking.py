"""A mitmproxy script that breaks one of our own functions, named by `break_what`.

The exception carries a secret in its text: that must not be shown either.
"""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

from mitmproxy import ctx
from mitmproxy.addonmanager import Loader

SECRET = "sk-fake-exception-000"


class Breaking:
    def load(self, loader: Loader) -> None:
        loader.add_option("break_what", str, "", "module:attribute.attribute")

    def running(self) -> None:
        module, _, path = ctx.options.break_what.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)

        def broken(*_args: object, **_kwargs: object) -> NoReturn:
            raise RuntimeError(f"broken on purpose: {SECRET}")

        setattr(owner, name, broken)


addons = [Breaking()]
