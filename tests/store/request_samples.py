"""Requests to be kept, and how tests write and read them."""

from __future__ import annotations

from typing import Any

from account_pool.core.request_rows import RequestRow
from account_pool.store.store import RequestQuery, StateStore

#: 2027-01-15 00:00:00 UTC
DAY = 1_799_971_200.0


def row(at: float = DAY, **changes: Any) -> RequestRow:
    return RequestRow(
        wall_at=at,
        provider="openai",
        account="openai/one",
        model="gpt-5",
        endpoint="/v1/responses",
        tool="codex",
        session="0123abcd",
        status="ok",
        http_status=200,
        attempts=1,
        failovers=0,
        wait_s=0.0,
        first_byte_s=0.5,
        duration_s=2.0,
        counted=1,
        input_tokens=100,
        cached_tokens=40,
        cache_write_tokens=0,
        output_tokens=10,
        reasoning_tokens=5,
    )._replace(**changes)


def write(store: StateStore, *rows: RequestRow, wall_now: float = DAY, **more: Any) -> None:
    store.exchange([], wall_now=wall_now, requests=rows, **more)


def numbers(store: StateStore, **query: Any) -> list[int]:
    return [number for number, _ in store.requests.read(RequestQuery(**query)).rows]
