"""Is a function of mitmproxy's still the one that was read when a step was written?"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable
from typing import Any

#: What a patch version of Python may word anew.
_DOCSTRING = re.compile(r'^\s*""".*?"""\n', re.DOTALL | re.MULTILINE)


@functools.cache
def digest(*functions: Callable[..., Any], docs: bool = True) -> str:
    """Return eight hexadecimal digits of SHA-256 of the source of *functions*; "" if unread.

    Args:
        docs: their docstrings count too.

    A step compares it with those of the sources that it was written for. What other addons
    have put in their place has a source of its own.
    """
    try:
        sources = [inspect.getsource(function).strip() for function in functions]
        if not docs:
            sources = [_DOCSTRING.sub("", source) for source in sources]
    except (OSError, TypeError):
        return ""
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:8]
