"""`account-pool classify`: ask the rules what recorded answers mean.

Reads JSON lines in the form of a recording: `id, provider, status, headers` and one of
`body` (text), `sse` (text of an event stream) or `ws` (list of text frames); `now`
(RFC 3339) or the header `date` is when it was recorded. Without either, resets that
name a moment cannot be turned into a wait and the cooldown is null.

An answer goes the way it goes in the proxy: through the first-event gate of its provider,
built in or of accounts.yaml, and that provider's rules. A name that is neither is read as
one that is `like: compatible`: how far its limits reach is not known.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from msgspec.structs import replace

from account_pool.cli.accounts import find
from account_pool.config.accounts_file import require_confirmed
from account_pool.config.loader import load_providers
from account_pool.core.outcome import Outcome, UpstreamResponse
from account_pool.core.sse import Gate, Verdict
from account_pool.providers.base import Provider
from account_pool.providers.copilot import EXCHANGE_PATH, classify_exchange
from account_pool.providers.definition import like
from account_pool.providers.registry import BASES, BUILT_IN
from account_pool.providers.unswappable import BEDROCK, VERTEX, named

#: Those that are recognised and passed through.
_UNSWAPPABLE = {"bedrock": BEDROCK, "vertex": VERTEX}


class BadLine(ValueError):
    """A line that is not a recorded answer; the text says why."""


def classify_recorded(path: Path, provider: str, accounts_file: Path | None) -> int:
    """Classify the lines of *path* with the providers there are here.

    Returns as `classify_file`. Raises ConfigError, OSError.
    """
    found = find(accounts_file, os.environ)
    found.require()
    if found.confirm and found.path is not None:
        require_confirmed(found.path)
    known = load_providers(found.path) if found.path else None
    return classify_file(path, sys.stdout, provider=provider, providers=known)


def classify_file(
    path: Path,
    out: TextIO,
    *,
    provider: str = "",
    providers: Mapping[str, Provider] | None = None,
) -> int:
    """Write what each line of *path* means to *out*, one JSON object a line.

    `{id, class, scope, cooldown_s, replayable}`. A line that cannot be read is reported
    on stderr with its number and skipped. Returns 0, or 1 if there was one. The path `-`
    is standard input. Raises OSError.

    Args:
        provider: the provider of all of them, whatever they say; "": as they say.
        providers: those there are; None: the built-in ones.
    """
    failed = 0
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                meaning = classify_line(line, provider=provider, providers=providers)
                out.write(json.dumps(meaning) + "\n")
            except BadLine as error:
                failed = 1
                print(f"{path}: line {number}: {error}", file=sys.stderr)
    return failed


def _opened(path: Path) -> AbstractContextManager[Iterable[str]]:
    if str(path) == "-":
        return nullcontext(sys.stdin)
    return path.open(encoding="utf-8", errors="replace")


def classify_line(
    line: str, *, provider: str = "", providers: Mapping[str, Provider] | None = None
) -> dict[str, Any]:
    """Return what one recorded answer means. Raises BadLine."""
    try:
        recorded = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadLine(f"not JSON: {error}") from None
    if not isinstance(recorded, dict):
        raise BadLine("expected an object with id, provider, status, headers and a body")
    if provider:
        recorded["provider"] = provider
    outcome = classify(recorded, providers)
    return {
        "id": recorded.get("id"),
        "class": outcome.cls.value,
        "scope": outcome.scope.value,
        "cooldown_s": outcome.cooldown_s,
        "replayable": outcome.replayable,
    }


def classify(
    recorded: Mapping[str, Any], providers: Mapping[str, Provider] | None = None
) -> Outcome:
    """Return what a recorded answer means. Raises BadLine."""
    name = recorded.get("provider")
    if not isinstance(name, str) or not name:
        raise BadLine('"provider": expected a name such as "openai"')
    provider = _provider(name, BUILT_IN if providers is None else providers)
    answer = read_answer(recorded, provider)
    # The exchange answers on another host, where a 404 is about the token.
    if name == "copilot" and recorded.get("api") == EXCHANGE_PATH.lstrip("/"):
        return classify_exchange(answer)
    outcome = provider.classify(answer)
    # What cannot be made another account's is never sent again.
    return outcome if named(name) is None else replace(outcome, replayable=False)


def _provider(name: str, providers: Mapping[str, Provider]) -> Provider:
    """Return the provider of that name, as the proxy would have it."""
    if name in providers:
        return providers[name]
    unknown = like(BASES["compatible"], name, ())
    if (signals := _UNSWAPPABLE.get(name)) is not None:
        return replace(unknown, judge=signals.judge, classify=signals.classify)
    return unknown


def read_answer(recorded: Mapping[str, Any], provider: Provider) -> UpstreamResponse:
    """Return the answer as the proxy would have read it. Raises BadLine."""
    status = recorded.get("status")
    if not isinstance(status, int) or isinstance(status, bool) or not 100 <= status < 600:
        raise BadLine('"status": expected an HTTP status')
    headers = recorded.get("headers")
    headers = {} if headers is None else headers
    if not isinstance(headers, dict):
        raise BadLine('"headers": expected an object of names and values')
    text, payload, event, in_stream = _content(recorded, provider, status)
    model = recorded.get("model")
    return UpstreamResponse(
        status=status,
        headers={str(name).lower(): str(value) for name, value in headers.items()},
        text=text,
        payload=payload,
        in_stream=in_stream,
        event=event,
        model=model if isinstance(model, str) else None,
        wall_now=_wall_now(recorded.get("now")),
    )


def _content(
    recorded: Mapping[str, Any], provider: Provider, status: int
) -> tuple[str, Any, str | None, bool]:
    """Return (text, payload, event, in stream), as the first-event gate leaves them."""
    frames, stream, body = recorded.get("ws"), recorded.get("sse"), recorded.get("body")
    if frames is not None:
        if not isinstance(frames, list):
            raise BadLine('"ws": expected a list of frames')
        return "", _refusing_frame((_json(frame) for frame in frames), provider), None, True
    if stream is not None:
        if not isinstance(stream, str):
            raise BadLine('"sse": expected the text of an event stream')
        gate = Gate(provider.judge, "sse")
        decision = gate.feed(stream.encode()) or gate.end()
        return "", decision.payload, decision.event, True
    if body is not None and not isinstance(body, str):
        # Somebody pasted the parsed body.
        body = json.dumps(body)
    text = body or ""
    if 200 <= status < 300:
        gate = Gate(provider.judge, "json", marks=provider.error_marks)
        decision = gate.feed(text.encode()) or gate.end()
        return text, decision.payload, decision.event, True
    return text, _json(body), None, False


def _refusing_frame(frames: Iterable[Any], provider: Provider) -> Any:
    """Return the first frame that refuses, None if an answer begins before."""
    for frame in frames:
        verdict = provider.judge(None, frame)
        if verdict is Verdict.REFUSE:
            return frame
        if verdict is Verdict.COMMIT:
            return None
    return None


def _json(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _wall_now(text: Any) -> float:
    if text is None:
        return 0.0
    try:
        at = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise BadLine('"now": expected a time such as "2026-10-01T10:00:00Z"') from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
