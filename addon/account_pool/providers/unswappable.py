"""APIs whose requests cannot be made another account's: they pass, and the log says why.

Hosts only; nothing of them is decrypted or pooled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Unswappable:
    """An API that is recognised and left alone.

    Attributes:
        name: as a user would write it under `provider:`.
        host: matched whole, lower case.
        why: in a few words.
        source: where the vendor says so.
    """

    name: str
    host: re.Pattern[str]
    why: str
    source: str


UNSWAPPABLE: tuple[Unswappable, ...] = (
    Unswappable(
        name="vertex",
        host=re.compile(r"(?:[a-z0-9-]+-)?aiplatform(?:\.[a-z0-9-]+\.rep)?\.googleapis\.com"),
        why="project and region are part of each request, and a token serves its own only",
        source="https://cloud.google.com/vertex-ai/docs/reference/rest",
    ),
    Unswappable(
        name="bedrock",
        host=re.compile(
            r"bedrock(?:-agent)?-runtime(?:-fips)?\.[a-z0-9-]+"
            r"\.(?:amazonaws\.com(?:\.cn)?|api\.aws)"
        ),
        why="each request is signed with the account's own key over host, headers and body",
        source="https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html",
    ),
)


def find(host: str) -> Unswappable | None:
    """Return the API that lives at *host*, None if it is none of these."""
    host = host.lower().rstrip(".")
    return next((one for one in UNSWAPPABLE if one.host.fullmatch(host)), None)


def named(provider: str) -> Unswappable | None:
    """Return the API a user calls *provider*, None if it is none of these."""
    return next((one for one in UNSWAPPABLE if one.name == provider), None)
