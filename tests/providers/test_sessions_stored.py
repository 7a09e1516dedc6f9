"""What only its account knows: which ids a request names, and which an answer tells."""

from __future__ import annotations

import json
from typing import Any

import pytest

from account_pool.core.lease import Conversation
from account_pool.providers import openai, registry, sessions
from account_pool.providers.base import Provider, RequestHead
from account_pool.providers.definition import like

OPENAI, ANTHROPIC, GEMINI = (registry.BUILT_IN[n] for n in ("openai", "anthropic", "gemini"))
GATEWAY = like(OPENAI, "gateway", OPENAI.hosts)
TOGETHER = Conversation(sticky=sessions.TOGETHER)


def head(
    path: str, body: Any = None, *, method: str = "POST", query: str = "", **headers: str
) -> RequestHead:
    text = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return RequestHead(
        method=method, host="api", port=443, path=path, query=query, headers=headers, body=text
    )


def get(path: str, query: str = "") -> RequestHead:
    return head(path, method="GET", query=query)


ASK = "/v1beta/models/gemini-2.5-pro:generateContent"


@pytest.mark.parametrize(
    ("provider", "request_head", "told"),
    [
        # created beside each other, as one request may name several
        (OPENAI, head("/v1/files", b"--boundary"), TOGETHER),
        (ANTHROPIC, head("/v1/messages/batches", {"requests": []}), TOGETHER),
        (GEMINI, head("/upload/v1beta/files"), TOGETHER),
        (GATEWAY, head("/team/v1/files", b"--boundary"), TOGETHER),
        # alone
        (OPENAI, head("/v1/conversations", {"items": []}), Conversation()),
        (GEMINI, head("/v1beta/cachedContents", {"contents": [{"parts": []}]}), Conversation()),
        # A tool that names its conversation makes them where that lives.
        (
            OPENAI,
            head("/v1/files", b"--boundary", **{"x-session-id": "s"}),
            TOGETHER._replace(session="s"),
        ),
    ],
)
def test_where_a_thing_is_best_made(
    provider: Provider, request_head: RequestHead, told: Conversation
) -> None:
    assert provider.conversation(request_head) == told


@pytest.mark.parametrize(
    ("provider", "request_head", "named"),
    [
        # in the path
        (OPENAI, get("/v1/files/file-1/content"), ("file-1",)),
        (OPENAI, get("/v1/responses/resp_1"), ("resp_1",)),
        (OPENAI, head("/v1/responses/resp_1/cancel"), ("resp_1",)),
        (OPENAI, get("/v1/containers/cntr_1/files/cfile_1/content"), ("cntr_1",)),
        (OPENAI, head("/v1/vector_stores/vs_1/search", {"query": "q"}), ("vs_1",)),
        (OPENAI, head("/v1/responses/compact", {"input": "Hi"}), ()),
        (GATEWAY, get("/team/v1/batches/batch_1"), ("batch_1",)),
        (ANTHROPIC, get("/v1/messages/batches/msgbatch_1/results"), ("msgbatch_1",)),
        (GEMINI, get("/v1beta/files/abc"), ("files/abc",)),
        (GEMINI, get("/download/v1beta/files/abc:download", "alt=media"), ("files/abc",)),
        (
            GEMINI,
            head("/v1beta/cachedContents/c", {"ttl": "9s"}, method="PATCH"),
            ("cachedContents/c",),
        ),
        (GEMINI, head("/v1beta/batches/12:cancel"), ("batches/12",)),
        (GEMINI, get("/v1beta/interactions/v1_a"), ("v1_a",)),
        (GEMINI, head("/v1beta/interactions/v1_a/cancel"), ("v1_a",)),
        (
            GEMINI,
            head(
                "/v1beta/interactions",
                {
                    "input": "Hi",
                    "previous_interaction_id": "v1_a",
                    "environment": "env_1",
                    "cached_content": "cachedContents/c",
                },
            ),
            ("v1_a", "env_1", "cachedContents/c"),
        ),
        (
            GEMINI,
            head(
                "/v1beta/interactions",
                {
                    "input": [
                        {"type": "document", "uri": "https://g/v1beta/files/a"},
                        {"type": "image", "uri": "https://example.com/profiles/x.png"},
                    ]
                },
            ),
            ("files/a",),
        ),
        # in the query: the next page of a list, the next piece of a file
        (OPENAI, get("/v1/files", "limit=100&after=file-1"), ("file-1",)),
        (ANTHROPIC, get("/v1/files", "after_id=file_1"), ("file_1",)),
        (GEMINI, get("/v1beta/files", "pageToken=t%3D"), ("t=",)),
        (GEMINI, head("/upload/v1beta/files", query="upload_id=u"), ("u",)),
        # in the body
        (OPENAI, head("/v1/batches", {"input_file_id": "file-1"}), ("file-1",)),
        (OPENAI, head("/v1/vector_stores", {"file_ids": ["file-1", "f-2"]}), ("file-1", "f-2")),
        (
            ANTHROPIC,
            head(
                "/v1/messages",
                {"messages": [{"content": [{"source": {"type": "file", "file_id": "file_1"}}]}]},
            ),
            ("file_1",),
        ),
        (
            OPENAI,
            head(
                "/v1/responses",
                {
                    "input": "Hi",
                    "tools": [
                        {"type": "file_search", "vector_store_ids": ["vs_1"]},
                        {"type": "code_interpreter", "container": "cntr_1"},
                    ],
                },
            ),
            ("vs_1", "cntr_1"),
        ),
        (
            GEMINI,
            head(
                ASK, {"contents": [{"parts": [{"fileData": {"fileUri": "https://g/v1/files/a"}}]}]}
            ),
            ("files/a",),
        ),
        # text that only looks like it
        (OPENAI, head("/v1/responses", {"input": 'say "file_id": "file-1"'}), ()),
        (OPENAI, head("/v1/responses", {"input": "say file_id"}), ()),
    ],
)
def test_ids_a_request_names(
    provider: Provider, request_head: RequestHead, named: tuple[str, ...]
) -> None:
    assert provider.conversation(request_head).named == named


FILE = {"id": "file-1", "object": "file", "purpose": "batch"}
BATCH = {"id": "batch_1", "input_file_id": "file-1", "output_file_id": "file-2"}
UPLOAD = "https://generativelanguage.googleapis.com/upload/v1beta/files?upload_id=u&x=y"


@pytest.mark.parametrize(
    ("provider", "request_head", "answer", "made"),
    [
        (OPENAI, head("/v1/files"), FILE, ("file-1", sessions.TOGETHER)),
        (OPENAI, get("/v1/files"), {"data": [FILE, {"id": "file-2"}]}, ("file-1", "file-2")),
        (OPENAI, get("/v1/batches/batch_1"), BATCH, ("batch_1", "file-1", "file-2")),
        (OPENAI, head("/v1/conversations"), {"id": "conv_1"}, ("conv_1",)),
        (OPENAI, get("/v1/responses/resp_1"), {"id": "resp_1", "output": [{"id": "m"}]}, ()),
        # the content of a file, in which anything may stand
        (OPENAI, get("/v1/files/file-1/content"), {"id": "batch_req_1"}, ()),
        (
            ANTHROPIC,
            head("/v1/messages/batches"),
            {"id": "msgbatch_1", "type": "message_batch"},
            ("msgbatch_1", sessions.TOGETHER),
        ),
        (
            GEMINI,
            head("/upload/v1beta/files"),
            {"file": {"name": "files/a", "uri": "https://g/v1beta/files/a"}},
            ("files/a", sessions.TOGETHER),
        ),
        (
            GEMINI,
            get("/v1beta/cachedContents"),
            {"cachedContents": [{"name": "cachedContents/a"}], "nextPageToken": "t"},
            ("cachedContents/a", "t"),
        ),
        (
            GEMINI,
            head("/v1beta/models/m:batchGenerateContent"),
            {"name": "batches/1"},
            ("batches/1", sessions.TOGETHER),
        ),
        (
            GEMINI,
            head("/v1beta/interactions", {"input": "Hi"}),
            {"id": "v1_a", "status": "completed", "environment_id": "env_1"},
            ("v1_a", "env_1"),
        ),
        (GEMINI, head("/v1beta/interactions", {"store": False}), {"id": "v1_a"}, ()),
        # the container its tools ran in
        (
            OPENAI,
            head("/v1/responses", {"input": "Hi"}),
            {"id": "resp_1", "output": [{"container_id": "cntr_1"}, {"container_id": "cntr_1"}]},
            ("resp_1", "cntr_1"),
        ),
    ],
)
def test_ids_an_answer_tells(
    provider: Provider, request_head: RequestHead, answer: Any, made: tuple[str, ...]
) -> None:
    assert provider.created_ids(request_head, lambda: json.dumps(answer).encode(), {}) == made


def test_an_upload_in_pieces_goes_on_where_it_began() -> None:
    begun = head("/upload/v1beta/files", {"file": {"display_name": "f"}})
    made = GEMINI.created_ids(begun, lambda: b"", {"x-goog-upload-url": UPLOAD})
    assert made == ("u", sessions.TOGETHER)


def test_no_answer_tells_more_than_is_kept() -> None:
    listed = json.dumps({"data": [{"id": f"file-{n}"} for n in range(1000)]}).encode()
    assert len(OPENAI.created_ids(get("/v1/files"), lambda: listed, {})) == sessions.MAX_IDS


def test_garbage_fails_nobody() -> None:
    for garbage in (b"", b"{", b"\xff\xfe", b'{"file_id": ', b'"file_id": ["a", 7'):
        asked = head("/v1/files", garbage)
        sessions.ids_in_request(asked, asked.json, openai.STORED)
        sessions.ids_in_response(asked, lambda text=garbage: text, {}, openai.STORED)  # type: ignore[misc]
