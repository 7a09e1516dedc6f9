"""Whether a tool ended because of a limit, by what it wrote to stderr. Pure.

The providers' own tables decide (`Provider.signals`): a line is read as the error
of an answer, whole and from each place where a tool may begin to quote. Only a code or
a sentence counts, never a status or a number. What the tools say in words of their own
is in `TOOLS_OWN`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from account_pool.core.outcome import OutcomeClass, UpstreamResponse
from account_pool.providers.base import Provider

#: How many of the last lines may say it, and how much of one is read.
LAST_LINES, LINE_CHARS = 40, 2000
_LIMITS = frozenset({OutcomeClass.RATE_LIMIT, OutcomeClass.QUOTA})
#: Rows may ask for a status, and tools seldom quote it.
_STATUSES = (429, 400, 403)
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
#: Where a tool begins to quote: "Error: 429 rate limit reached", "api - quota exceeded".
_BEGINNINGS = re.compile(r"(?:: |- |— |\d{3} |[\"'(\[│])\s*")
#: An identifier, not a word of a sentence: `insufficient_quota`, `RESOURCE_EXHAUSTED`.
_CODE = re.compile(r"\b[A-Za-z]+(?:_[A-Za-z]+)+\b")
#: Of this machine, not of a provider.
_DISK = re.compile(r"\bdisk quota\b", re.I)
_MAX_BEGINNINGS, _MAX_CODES = 12, 12

#: What tools say instead of the provider, measured with the tools in November 2026.
TOOLS_OWN: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("Claude Code", re.compile(r"you(?:'|’)ve hit your (?:[\w-]+ )*limit\b", re.I)),  # noqa: RUF001
    ("Claude Code", re.compile(r"\bcredit balance is too low\b", re.I)),
    ("Codex", re.compile(r"you(?:'|’)ve hit your usage limit\b", re.I)),  # noqa: RUF001
    ("Codex", re.compile(r"^(?:error: )?quota exceeded\b", re.I)),
    ("Codex", re.compile(r"\bexceeded retry limit, last status: 429\b", re.I)),
    ("Gemini CLI", re.compile(r"\bTerminalQuotaError\b")),
    ("Copilot CLI", re.compile(r"\byou(?:'|’)?(?:ve| have) exceeded your \w+ quota\b", re.I)),  # noqa: RUF001
    ("SDKs of OpenAI and Anthropic", re.compile(r"\bRateLimitError\b")),
    ("the reason phrase of 429 (RFC 6585)", re.compile(r"\btoo many requests\b", re.I)),
)


def limit_in(text: str, providers: Iterable[Provider]) -> str | None:
    """Return the line of *text* that speaks of a limit, the last one; None without one."""
    providers = tuple(providers)
    lines = _ESCAPES.sub("", text).replace("\r", "\n").splitlines()
    for line in reversed([line.strip() for line in lines if line.strip()][-LAST_LINES:]):
        if _speaks_of_limit(line[:LINE_CHARS], providers):
            return line[:200]
    return None


def _speaks_of_limit(line: str, providers: Iterable[Provider]) -> bool:
    if _DISK.search(line):
        return False
    if any(pattern.search(line) for _, pattern in TOOLS_OWN):
        return True
    errors = list(_errors(line))
    return any(_is_limit(provider, error) for provider in providers for error in errors)


def _errors(line: str) -> Iterator[Any]:
    """Yield what the provider may have said, as the body of its answer."""
    if (start := line.find("{")) >= 0 and isinstance(body := _json(line[start:]), dict):
        yield body
        return
    begins = [0, *(found.end() for found in _BEGINNINGS.finditer(line))][:_MAX_BEGINNINGS]
    for begin in dict.fromkeys(begins):
        yield {"error": {"message": line[begin:]}}
    for code in dict.fromkeys(_CODE.findall(line)[:_MAX_CODES]):
        yield {"error": {"message": "", "code": code, "type": code, "status": code}}


def _is_limit(provider: Provider, body: Any) -> bool:
    outcomes = (provider.classify(UpstreamResponse(status=s, payload=body)) for s in _STATUSES)
    return any(outcome.explicit and outcome.cls in _LIMITS for outcome in outcomes)


def _json(text: str) -> Any:
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None
