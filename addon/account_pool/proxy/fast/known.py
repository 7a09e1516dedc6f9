"""What is known of others: is a function of mitmproxy's the one that a step was written for?

And is a script ours?
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

#: What a patch version of Python may word anew.
_DOCSTRING = re.compile(r'^\s*""".*?"""\n', re.DOTALL | re.MULTILINE)
#: All that pool.py has of its own, wherever it is.
_OUR_SCRIPT = frozenset({"addon", "addons", "name"})


def is_our_script(addon: object) -> bool:
    """Say whether *addon* is pool.py, as mitmproxy has loaded it."""
    if type(addon) is not ModuleType:
        return False
    return {name for name in vars(addon) if not name.startswith("__")} == _OUR_SCRIPT


@functools.cache
def digest(*functions: Callable[..., Any], docs: bool = True) -> str:
    """Return eight hexadecimal digits of SHA-256 of the source of *functions*; "" if unknown.

    Args:
        docs: their docstrings count too.

    A step compares it with those of the sources that it was written for. What other addons
    have put in their place has a source of its own, and one that they have wrapped has none.
    """
    if not all(map(_is_bare, functions)):
        return ""
    try:
        sources = [inspect.getsource(function).strip() for function in functions]
        if not docs:
            sources = [_DOCSTRING.sub("", source) for source in sources]
    except (OSError, TypeError):
        return ""
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:8]


def _is_bare(function: Callable[..., Any]) -> bool:
    """Say whether *function* is one of Python's, with nothing of another package around it.

    `inspect` reads what was wrapped (`functools.wraps`), and not what is around it. mitmproxy
    has decorators of its own.
    """
    packages = set()
    at: Any = function
    while at is not None:
        if type(at) is not FunctionType:
            return False
        packages.add(str(at.__globals__.get("__name__")).partition(".")[0])
        at = getattr(at, "__wrapped__", None)
    return len(packages) == 1
