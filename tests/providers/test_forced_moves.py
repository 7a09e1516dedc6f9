"""What a vendor says of a thing it does not know is the request's fault, and benches nobody.

A conversation that had to move may name what its old account made.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from account_pool.core.outcome import OutcomeClass, Scope, UpstreamResponse
from account_pool.providers import registry

OPENAI = ("openai", "azure", "codex", "copilot")
ANTHROPIC = ("anthropic", "claude-code", "copilot")
GEMINI = ("gemini", "gemini-cli")


def openai(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": code}}


def anthropic(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def gemini(code: int, status: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status}}


CASES = [
    (OPENAI, 404, openai("Previous response not found.", "previous_response_not_found")),
    (OPENAI, 400, openai("Previous response not found.", "previous_response_not_found")),
    (
        OPENAI,
        400,
        openai("The encrypted content could not be verified.", "invalid_encrypted_content"),
    ),
    (OPENAI, 404, openai("Item with id 'rs_1' not found. Items are not persisted when ...")),
    (OPENAI, 404, openai("No such File object: file-1")),
    (OPENAI, 404, openai("Container with id 'cntr_1' not found.")),
    (OPENAI, 404, openai("Vector store with id 'vs_1' not found.")),
    (OPENAI, 404, openai("No batch found with id 'batch_1'.")),
    (ANTHROPIC, 400, anthropic("invalid_request_error", "Invalid `signature` in `thinking` block")),
    (ANTHROPIC, 404, anthropic("not_found_error", "File not found: file_1")),
    (GEMINI, 400, gemini(400, "INVALID_ARGUMENT", "Thought signature is not valid.")),
    (GEMINI, 403, gemini(403, "PERMISSION_DENIED", "CachedContent not found (or denied)")),
    (
        GEMINI,
        403,
        gemini(
            403,
            "PERMISSION_DENIED",
            "You do not have permission to access the File abc or it may not exist.",
        ),
    ),
    (GEMINI, 404, gemini(404, "NOT_FOUND", "Requested entity was not found.")),
]


@pytest.mark.parametrize("in_stream", [False, True])
@pytest.mark.parametrize(("providers", "status", "payload"), CASES)
def test_it_is_the_requests_fault(
    providers: tuple[str, ...], status: int, payload: Any, in_stream: bool
) -> None:
    for name in providers:
        outcome = registry.BUILT_IN[name].classify(
            UpstreamResponse(
                status=200 if in_stream else status,
                text=json.dumps(payload),
                payload=payload,
                in_stream=in_stream,
                model="gpt-5",
                wall_now=1_800_000_000.0,
            )
        )
        assert (outcome.cls, outcome.scope) == (OutcomeClass.REQUEST_ERROR, Scope.NONE), name
        assert not outcome.missing_model, name
