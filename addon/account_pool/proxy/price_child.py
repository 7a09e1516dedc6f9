"""Reads prices from the package genai-prices, in a process of its own, and ends.

The list takes 100 MB and half a second of a core, for a few numbers: neither is spent where
requests are served. Run as a program: pairs of a provider and a model with a time come on its
input as JSON, prices go to its output. It asks nothing of the network: what would
(`UpdatePrices`) is only ever started by hand, and is not here.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from datetime import UTC, datetime
from typing import Any

_NAMES = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cached": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
}


def price_of(provider: str, model: str, at: float) -> dict[str, Any] | None:
    """Return the rates of *model* at a time (seconds since the epoch), None if it has none."""
    from genai_prices import Usage, calc_price  # noqa: PLC0415 - it may not be installed

    try:
        found = calc_price(
            Usage(input_tokens=1, output_tokens=1),
            model,
            provider_id=provider,
            genai_request_timestamp=datetime.fromtimestamp(at, UTC),
        ).model_price
        rates = {name: _rate(getattr(found, key, None)) for name, key in _NAMES.items()}
    except Exception:
        # Neither a name that a client chose, nor a price in a form of its own, keeps those of
        # others back.
        return None
    if rates["input"] is None:
        return None  # it is billed by something else than tokens
    # Embeddings have no output.
    return {**rates, "output": rates["output"] or [[0, 0.0]]}


def _rate(value: Any) -> list[list[float]] | None:
    if value is None:
        return None
    tiers = [[tier.start, float(tier.price)] for tier in getattr(value, "tiers", ())]
    return [[0, float(getattr(value, "base", value))], *tiers]


def main() -> None:
    with contextlib.suppress(AttributeError, OSError):
        os.nice(10)
    from genai_prices import __version__  # noqa: PLC0415 - it may not be installed

    prices = [price_of(*asked) for asked in json.load(sys.stdin)]
    json.dump({"version": __version__, "prices": prices}, sys.stdout)


if __name__ == "__main__":
    main()
