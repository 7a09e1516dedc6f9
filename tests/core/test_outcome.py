"""Envelopes of every shape."""

from typing import Any

import pytest

from account_pool.core.outcome import UpstreamResponse, read_facts


@pytest.mark.parametrize(
    ("payload", "words", "message"),
    [
        ({"error": {"code": "A", "type": "b", "message": "m"}}, {"a", "b"}, "m"),
        ({"code": "a", "type": "b", "message": "m"}, {"a", "b"}, "m"),
        ({"type": "error", "error": {"type": "b", "message": "m"}}, {"b"}, "m"),
        ({"type": "error", "code": "a", "message": "m"}, {"a"}, "m"),
        ({"type": "response.failed", "response": {"error": {"code": "a"}}}, {"a"}, ""),
        ([{"error": {"code": 429, "status": "A"}}], {"429", "a"}, ""),
        ({"code": "a", "error": "m"}, {"a", "m"}, "m"),  # xAI
        ({"error": "invalid_grant", "error_description": "m"}, {"invalid_grant"}, None),
        ({"error": {"error": {"code": "a", "message": "m"}}}, {"a"}, "m"),
        ({"error": {"code": "user:pro"}}, {"user:pro", "user"}, ""),
        ({"error": {"details": [{"reason": "R"}, 5, None]}}, {"r"}, ""),
        ({"error": {"metadata": {"limit_source": "s"}}}, {"s"}, ""),
        ({"detail": "m"}, set(), "m"),
        ({"detail": {"code": "C", "message": "m"}}, {"c"}, "m"),
        ({"error": {"code": None, "type": True, "message": 5}}, set(), ""),
        ({"error": {"code": "x" * 500, "message": "m"}}, set(), "m"),
        # details as an object, a list or text
        (
            {"error": {"code": "c", "message": "m", "details": {"reason": "R", "message": "n"}}},
            {"c", "r"},
            "m\nn",
        ),
        ({"error": {"message": "m", "details": [{"code": 7, "msg": "n"}]}}, {"7"}, "m\nn"),
        ({"error": {"message": "m", "details": "n"}}, set(), "m\nn"),
        # MiniMax: beside an answer without content
        (
            {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "m"}},
            {"1008"},
            "m",
        ),
        ({"code": 1113, "msg": "m", "success": False}, {"1113"}, "m"),
        # an envelope inside a sentence, as JSON and as Python prints it
        ({"error": {"message": 'upstream: {"error": {"code": "a", "message": "m"}}'}}, {"a"}, "m"),
        ({"message": '{"code": 30001, "message": "m"}'}, {"30001"}, "m"),
        (
            {"error": {"message": "Error code: 429 - {'error': {'code': 'a', 'message': 'm'}}"}},
            {"a"},
            "m",
        ),
        ({"message": "an object such as {'error': oops"}, set(), None),
        ({"errors": [{"code": "a", "message": "m"}, {"code": "b"}]}, {"a", "b"}, "m"),
        ({"errors": ["m", "n"]}, set(), "m"),
        ({"message": {"code": "a", "message": "m"}}, {"a"}, "m"),
        # an object of another name around it: Apigee, Tencent, Volcengine, iFlytek
        (
            {"fault": {"faultstring": "m", "detail": {"errorcode": "policies.QuotaViolation"}}},
            {"policies.quotaviolation", "policies.quota_violation"},
            "m",
        ),
        ({"Response": {"Error": {"Code": "A", "Message": "m"}, "RequestId": "r"}}, {"a"}, "m"),
        ({"ResponseMetadata": {"Error": {"Code": "A", "Message": "m"}}}, {"a"}, "m"),
        ({"header": {"code": 11203, "message": "m"}}, {"11203"}, "m"),
        ({"result": {"error": {"code": "a", "message": "m"}}}, {"a"}, "m"),
        ({"status": "fail", "data": {"message": "m"}}, {"fail"}, "m"),
        # what says something itself is not looked behind
        ({"message": "m", "data": {"message": "n"}}, set(), "m"),
        # a code before its sentence
        ({"error": {"message": "QUOTA_EXCEEDED: m"}}, {"quota_exceeded"}, "QUOTA_EXCEEDED: m"),
        ({"error": {"message": "An API_KEY is missing"}}, set(), "An API_KEY is missing"),
        ("plain", set(), "plain"),
        ([], set(), ""),
        (None, set(), ""),
        (7, set(), ""),
    ],
)
def test_envelopes(payload: Any, words: set[str], message: str | None) -> None:
    facts = read_facts(UpstreamResponse(status=429, payload=payload))
    assert facts.words == words
    assert message is None or facts.message == message


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        ({"type": "error", "status": 429, "error": {}}, 429),
        ({"type": "error", "status_code": 429, "error": {}}, 429),
        ({"error": {"code": 503}}, 503),
        ({"error": {"code": "429"}}, 429),
        ({"error": {"code": 200}}, 0),
        ({"error": {"code": True, "status": "FAILED"}}, 0),
        ({"error": {"message": "A429B"}}, 0),  # never out of text
    ],
)
def test_status_inside_a_stream(payload: Any, status: int) -> None:
    assert (
        read_facts(UpstreamResponse(status=200, payload=payload, in_stream=True)).status == status
    )
