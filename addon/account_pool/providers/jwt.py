"""What a JSON Web Token says of itself (RFC 7519).

Nothing is verified: the token is the owner's own, and the vendor will judge it. Every
function is total: what is no JWT says nothing.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import msgspec


def claims(token: str) -> Mapping[str, Any]:
    """Return the claims of *token*, {} if it is no JWT."""
    parts = token.strip().split(".")
    if len(parts) != 3:
        return {}
    padded = parts[1] + "=" * (-len(parts[1]) % 4)
    try:
        value = msgspec.json.decode(base64.b64decode(padded, altchars="-_", validate=True))
    except (ValueError, binascii.Error, msgspec.MsgspecError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def expires_at(token: str) -> float | None:
    """Return `exp`, seconds since the epoch (RFC 7519 4.1.4); None if it names none."""
    value = claims(token).get("exp")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e11:
        return None
    return float(value)
