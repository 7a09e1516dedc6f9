"""What is kept of a request that has ended, and what is not."""

from __future__ import annotations

import weakref

import pytest

from account_pool.core import instruments
from account_pool.core.account import AccountKey
from account_pool.core.decisions import session_hash
from account_pool.core.instruments import Ended, Mark, RequestLog
from account_pool.core.lease import Conversation, RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass
from account_pool.core.request_rows import (
    LazyRows,
    RequestRow,
    Status,
    endpoint_of,
    row_of,
    tool_name,
)
from account_pool.core.steps import Attempt
from account_pool.core.usage import Usage

ONE, TWO = AccountKey("openai", "one"), AccountKey("openai", "two")
OK, LIMIT = Outcome(cls=OutcomeClass.OK), Outcome(cls=OutcomeClass.RATE_LIMIT)
FACTS = RequestFacts(
    provider="openai",
    kind="key",
    model="gpt-5",
    path="/v1/responses/resp_68a1",
    conversation=Conversation(session="conversation-of-a-client"),
    agent="codex_cli_rs/0.44.0 (Ubuntu 24.04; x86_64) xterm",
)
MARKS = [
    (Mark.BEGAN, 100.0), (Mark.WAITED, 2.0), (Mark.SENT, 102.5), (Mark.HEAD, 103.0),
    (Mark.SENT, 103.5), (Mark.HEAD, 104.0), (Mark.FIRST_BYTE, 104.0), (Mark.HANDED_ON, 104.25),
]  # fmt: skip


def ended(**changes: object) -> Ended:
    """A request that was refused by one account and served by another."""
    return Ended(
        facts=FACTS,
        history=[Attempt(1, ONE, LIMIT), Attempt(2, TWO, OK)],
        marks=MARKS,
        at=110.0,
        wall_at=1_800_000_010.0,
        http_status=200,
        whole=True,
        usage=Usage(120, 100, 30, 20, 5),
        counted=("2027-01-15", "openai/two", "gpt-5"),
    )._replace(**changes)


def test_a_row():
    assert row_of(ended()) == RequestRow(
        wall_at=1_800_000_000.0,
        provider="openai",
        account="openai/two",
        model="gpt-5",
        endpoint="/v1/responses/{id}",
        tool="codex",
        session=session_hash("conversation-of-a-client"),
        status="ok",
        http_status=200,
        attempts=2,
        failovers=1,
        wait_s=2.0,
        first_byte_s=4.25,
        duration_s=10.0,
        counted=1,
        input_tokens=120,
        cached_tokens=100,
        cache_write_tokens=5,
        output_tokens=30,
        reasoning_tokens=20,
    )


class Marks(list):
    """Marks that can be seen to go."""


def test_rows_leave_nothing_of_what_they_are_about():
    """A proxy keeps those of 2,000 requests: in 1 MB, not in 3."""
    marks = Marks(MARKS)
    left, rows = weakref.ref(marks), LazyRows([ended(marks=marks)])
    del marks
    assert len(rows) == 1 and left() is not None
    assert [*rows, *rows] == [row_of(ended())] * 2
    assert len(rows) == 1 and left() is None


def test_a_part_of_rows_is_made_without_the_others():
    """A request that has no row keeps no other back: the batch is divided until it is found."""
    rows = LazyRows([ended(), ended(history=None)])
    with pytest.raises(TypeError):
        rows[0]
    assert list(rows[:1]) == [row_of(ended())]


REFUSED = {"history": [Attempt(1, ONE, LIMIT)], "usage": None, "counted": None}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "ok"),
        ({"whole": False}, "aborted"),
        ({**REFUSED, "http_status": 429}, "refused"),
        # An error inside a stream that began well.
        (REFUSED, "refused"),
        ({**REFUSED, "history": [Attempt(1, ONE)], "http_status": None}, "aborted"),
        ({**REFUSED, "history": (), "http_status": 503}, "refused"),
        ({"http_status": 101}, "ok"),
        ({"http_status": None, "status": Status.REFUSED}, "refused"),
    ],
)
def test_how_it_ended(changes, status):
    assert row_of(ended(**changes)).status == status


def test_what_was_not_told_is_not_zero():
    row = row_of(ended(usage=None))
    assert (row.counted, row.input_tokens, row.cost_usd) == (1, None, None)


def test_nobody_was_asked():
    row = row_of(ended(history=(), counted=None, usage=None, http_status=503))
    assert (row.account, row.attempts, row.failovers, row.counted) == (None, 0, 0, 0)


def test_a_name_of_a_model_can_be_written_whatever_it_is():
    facts = RequestFacts(provider="openai", kind="key", model="m\ud800\n" + "x" * 500)
    model = row_of(ended(facts=facts, counted=None)).model
    assert model is not None
    model.encode()
    assert model.isprintable() and len(model) <= 128


def test_too_many_are_not_kept_and_counted(monkeypatch):
    monkeypatch.setattr(instruments, "MAX_WAITING", 2)
    log = RequestLog()
    for _ in range(5):
        log.add(ended())
    assert (len(log.waiting), log.lost) == (2, 3)
    assert (len(log.take()), log.waiting) == (2, [])


def test_none_is_kept_where_none_is_wanted():
    log = RequestLog(kept_days=0)
    log.add(ended())
    assert (log.waiting, log.lost) == ([], 0)


@pytest.mark.parametrize(
    ("agent", "tool"),
    [
        ("claude-cli/2.0.14 (external, cli)", "claude-code"),
        ("codex_cli_rs/0.44.0 (Mac OS 15.6.1; arm64) iTerm.app/3.6.2", "codex"),
        ("codex_vscode/0.44.0", "codex"),
        ("GeminiCLI/v0.1.9 (linux; x64)", "gemini-cli"),
        ("GitHubCopilotChat/0.31.2", "copilot-chat"),
        ("copilot/0.0.339 (linux v22.1.0)", "copilot-cli"),
        ("opencode/0.15.2", "opencode"),
        ("OpenAI/Python 1.109.1", "openai-python"),
        ("AsyncOpenAI/Python 1.109.1", "openai-python"),
        ("OpenAI/JS 5.12.2", "openai-node"),
        ("Anthropic/Python 0.71.0", "anthropic-python"),
        ("google-genai-sdk/1.41.0 gl-python/3.13.0", "google-genai"),
        ("litellm/1.77", "litellm"),
        ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36", "browser"),
        ("python-requests/2.32.5", "python-requests"),
        ("curl/8.5.0", "curl"),
        ("Go-http-client/1.1", "go-http-client"),
        ("", "other"),
        ("/", "other"),
        # What may be a credential, or anybody's text.
        ("sk-fake-0000000000000000", "other"),
        ("eyJhbGciOi.J9.fake", "other"),
        ("ghp_fakefakefakefake", "other"),
        ("my prompt is: hello", "other"),
        ("9f86d081884c7d659a2feaa0c55ad015", "other"),
        ("\x00\n/1", "other"),
        ("x" * 5000, "other"),
    ],
)
def test_tools(agent, tool):
    assert tool_name(agent) == tool


@pytest.mark.parametrize(
    ("user", "tool"),
    [
        ("ci-runner", "ci-runner"),
        ("openai/work", "openai/work"),
        ("", "curl"),
        ("sk-fake-0000000000000000", "curl"),
        ("a" * 40, "curl"),
        ("two words", "curl"),
    ],
)
def test_who_has_a_name_for_proxyauth_is_called_by_it(user, tool):
    assert tool_name("curl/8.5.0", user) == tool


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/messages", "/v1/messages"),
        ("/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/v1/messages?beta=true", "/v1/messages"),
        ("/v1/messages/batches/msgbatch_01/results", "/v1/messages/batches/{id}/results"),
        ("/v1/responses", "/v1/responses"),
        ("/v1/responses/compact", "/v1/responses/compact"),
        ("/v1/responses/resp_0a1/input_items", "/v1/responses/{id}/input_items"),
        ("/backend-api/codex/responses", "/backend-api/codex/responses"),
        ("/v1beta/models/gemini-3.5-flash:streamGenerateContent",
            "/v1beta/models/{model}:streamGenerateContent"),
        ("/v1internal:streamGenerateContent", "/v1internal:streamGenerateContent"),
        ("/v1/models/gpt-5", "/v1/models/{model}"),
        ("/openai/deployments/my-own/chat/completions",
            "/openai/deployments/{model}/chat/completions"),
        ("/v1/files/file-abc/content", "/v1/files/{id}/content"),
        ("/v1/files/secret", "/v1/files/{id}"),
        ("/v1/audio/transcriptions", "/v1/audio/transcriptions"),
        ("/v1/threads/thread_1/runs/run_1", "/v1/threads/{id}/runs/{id}"),
        ("/v1/sk-fake-0000", "/v1/{id}"),
        ("/v1/%2e%2e/keys", "/v1/{id}/keys"),
        ("/", "/"),
        ("*", "/"),
    ],
)  # fmt: skip
def test_endpoints(path, endpoint):
    assert endpoint_of(path) == endpoint
