"""Is a function of mitmproxy's still the one that was read when a step was written?"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from typing import Any


@functools.cache
def digest(*functions: Callable[..., Any]) -> str:
    """Return eight hexadecimal digits of SHA-256 of the source of *functions*; "" if unread.

    A step compares it with those of the sources that it was written for. What other addons
    have put in their place has a source of its own.
    """
    try:
        sources = [inspect.getsource(function).strip() for function in functions]
    except (OSError, TypeError):
        return ""
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:8]
