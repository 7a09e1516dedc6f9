"""The dashboard as one page: markup, style and scripts put together, and its policy.

The page loads nothing from anywhere and runs nothing but what is in it: the policy names
the hashes of its own style and script (CSP level 3, section 2.3.1).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources

#: In the order they are run; they share one scope.
SCRIPTS = (
    "dom",
    "api",
    "live",
    "standing",
    "accounts",
    "drawer",
    "activity",
    "charts",
    "add",
    "main",
)


@dataclass(frozen=True, slots=True)
class Page:
    """What a browser gets.

    Attributes:
        body: HTML in UTF-8.
        headers: its type and the policies that hold for it.
    """

    body: bytes
    headers: Mapping[str, str]


@cache
def dashboard() -> Page:
    """Return the page; it is put together once."""
    style = _read("style.css")
    script = "\n".join(_read(f"{name}.js") for name in SCRIPTS)
    html = _read("page.html").replace("{{style}}", style).replace("{{script}}", script)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
    }
    return Page(html.encode(), headers)


def _read(name: str) -> str:
    return (resources.files(__package__) / "dashboard" / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
