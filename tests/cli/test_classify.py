"""The recorded answers, changed in every way that must not matter, and bad input.

`tests/data/*.jsonl` are samples of what providers answered; each line names its source.
`plans.jsonl` holds those of coding plans and gateways. The shares required are lower than
100 % on purpose: a rule must not be bent to a single recording.
"""

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from account_pool.cli.classify import classify, classify_file, classify_line
from account_pool.cli.main import run
from account_pool.config.loader import load_providers

DATA = Path(__file__).parent.parent / "data"
LINES: list[dict[str, Any]] = [
    json.loads(line)
    for name in ("limits.jsonl", "limits-2.jsonl", "limits-3.jsonl", "plans.jsonl")
    for line in (DATA / name).read_text(encoding="utf-8").splitlines()
]
HARMLESS = {"ok", "request_error", "overloaded", "server_error"}


def agreement(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Return the share of lines that agree, by field of `expected`."""
    right = {"class": 0, "scope": 0, "replayable": 0}
    waits = timed = 0
    for line in lines:
        got, expected = classify_line(json.dumps(line)), line["expected"]
        for field in right:
            accepted = line.get("accept", {}).get(field, ())
            right[field] += got[field] in (expected[field], *accepted)
        if (wait := expected["cooldown_s"]) is not None:
            timed += 1
            near = max(1.0, wait / 100)
            waits += got["cooldown_s"] is not None and abs(got["cooldown_s"] - wait) <= near
    shares = {field: count / len(lines) for field, count in right.items()}
    return {**shares, "cooldown_s": waits / timed if timed else 1.0}


def require(lines: list[dict[str, Any]]) -> None:
    got = agreement(lines)
    assert got["class"] >= 0.98, got
    assert got["scope"] >= 0.95, got
    assert got["replayable"] >= 0.95, got
    assert got["cooldown_s"] >= 0.95, got


@pytest.mark.parametrize("provider", sorted({line["provider"] for line in LINES}))
def test_recorded_answers_of(provider: str) -> None:
    require([line for line in LINES if line["provider"] == provider])


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["id"])
def test_what_is_no_limit_benches_nobody(line: dict[str, Any]) -> None:
    if line["expected"]["class"] in HARMLESS:
        got = classify_line(json.dumps(line))
        assert got["class"] in HARMLESS
        assert got["scope"] in ("none", "server")


def test_each_line_names_its_source_once() -> None:
    assert len({line["id"] for line in LINES}) == len(LINES)
    assert all(line["source"] and line["provenance"] for line in LINES)


@pytest.mark.parametrize("provider", sorted({line["provider"] for line in LINES}))
def test_the_vocabulary_needs_no_vendor(provider: str) -> None:
    """Without the vendor's own rules nobody is benched for money by an innocent answer."""
    lines = [line for line in LINES if line["provider"] == provider]
    got = [classify_line(json.dumps(line), provider="nobody-knows-it") for line in lines]
    for line, told in zip(lines, got, strict=True):
        if line["expected"]["class"] in ("ok", "request_error") and line["status"] != 429:
            assert told["class"] not in ("quota", "rate_limit"), line["id"]


# -- mutations: what may differ in an answer that has not been seen


def edited(line: dict[str, Any], edit: Any) -> dict[str, Any]:
    """Return *line* with *edit* applied to the JSON of its body or frames."""
    line = dict(line)
    if line.get("ws"):
        line["ws"] = [json.dumps(edit(json.loads(frame))) for frame in line["ws"]]
    try:
        body = json.loads(line["body"])
    except (TypeError, ValueError):
        return line
    line["body"] = json.dumps(edit(body), indent=2)
    return line


def other_casing_and_order(line: dict[str, Any]) -> dict[str, Any]:
    headers = list(line["headers"].items())
    random.Random(7).shuffle(headers)
    return {**line, "headers": {name.title(): value for name, value in headers}}


def unknown_fields(line: dict[str, Any]) -> dict[str, Any]:
    def add(value: Any) -> Any:
        if isinstance(value, list):
            return [add(item) for item in value]
        if not isinstance(value, dict):
            return value
        added = {"trace": ["x", {"y": None}], "ray": 429, **value, "zone": "rate limit", "n": 5}
        if isinstance(value.get("error"), dict):
            added["error"] = {"hint": "a7", **value["error"], "doc_url": "https://x/429"}
        return added

    extra = {"x-request-id": "429", "cf-ray": "8f-AMS", "server": "cloudflare", "via": "1.1 x"}
    return edited({**line, "headers": {**extra, **line["headers"]}}, add)


def reversed_fields(line: dict[str, Any]) -> dict[str, Any]:
    def turn(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: turn(value[name]) for name in reversed(value)}
        return value

    return edited(line, turn)


def other_wrapper(line: dict[str, Any]) -> dict[str, Any]:
    """Take the `error` wrapper off, or put one on."""

    def change(body: Any) -> Any:
        if not isinstance(body, dict) or line["status"] < 400:
            return body
        error = body.get("error")
        if isinstance(error, dict):
            return error
        # Here the neighbours of `error` or the lack of a wrapper are the vendor's own.
        if isinstance(error, str) or "error_details" in body:
            return body
        return {"error": body}

    return edited({**line, "ws": line.get("ws")}, change) if not line.get("ws") else line


def other_names(line: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(line)
    for old, new in (
        ("gpt-4o", "gpt-7-turbo-2027-01-01"),
        ("gemini-2.5-pro", "gemini-9-ultra"),
        ("org-redacted", "org-Zz9"),
        ("pro_plus", "max"),
        ("COPILOT_PLAN_INDIVIDUAL", "COPILOT_PLAN_ENTERPRISE"),
        ("_oi", "_haiku"),
        ("Fable", "Haiku"),
    ):
        text = text.replace(old, new)
    return json.loads(text)


def code_is_null(line: dict[str, Any]) -> dict[str, Any]:
    """A code that only repeats the type may be null."""

    def change(body: Any) -> Any:
        error = body.get("error") if isinstance(body, dict) else None
        if isinstance(error, dict) and error.get("code") == error.get("type") is not None:
            return {**body, "error": {**error, "code": None}}
        return body

    return edited(line, change)


MUTATIONS = [
    *(other_casing_and_order, unknown_fields, reversed_fields, other_wrapper),
    *(other_names, code_is_null),
]


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_what_must_not_matter_does_not(mutate: Any) -> None:
    require([mutate(line) for line in LINES])


# -- the providers of accounts.yaml


def test_a_definition_is_read_as_the_proxy_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "accounts.yaml"
    path.write_text(
        "accounts: []\n"
        "providers:\n"
        "  acme:\n"
        "    hosts: [llm.example.com]\n"
        "    time_zone: +09:00\n"
        "    owner: {pointer: /org}\n"
        "    limits:\n"
        "      - {codes: [7001, plan.*], class: quota, scope: account, why: the plan is spent}\n"
        "  my-gateway: {like: new-api, hosts: [gw.example.com]}\n"
    )
    known = load_providers(path)
    now = "2026-10-01T00:00:00Z"
    body = {"org": "o-1", "state": {"code": 7001}, "code": 7001, "msg": "until 2026-10-01 10:00:00"}
    line = json.dumps({"provider": "acme", "status": 200, "body": body, "now": now})
    assert classify_line(line, providers=known)["class"] == "quota"
    named = {"error": {"code": "plan.week", "message": "It resets at 2026-10-01 10:00:00"}}
    told = classify({"provider": "acme", "status": 403, "body": named, "now": now}, known)
    assert (told.cls, told.scope, told.cooldown_s) == ("quota", "account", 3600)
    assert told.signal == "403 code=plan.week: the plan is spent"
    channel = {
        "error": {"message": "当前分组 default 下对于模型 m 无可用渠道", "code": "model_not_found"}
    }
    line = json.dumps({"provider": "my-gateway", "status": 503, "body": channel})
    assert classify_line(line, providers=known)["class"] == "overloaded"


def test_provider_and_accounts_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers, accounts = tmp_path / "a.jsonl", tmp_path / "mine.yaml"
    answers.write_text('{"provider": "openai", "status": 409, "body": {"code": "odd"}}\n')
    accounts.write_text(
        "providers:\n  odd: {hosts: [odd.example.com], limits: [{codes: odd, class: quota}]}\n"
    )
    monkeypatch.chdir(tmp_path)
    asked = ["classify", "--jsonl", str(answers)]
    assert run(asked) == 0
    assert json.loads(capsys.readouterr().out)["class"] == "request_error"
    assert run([*asked, "--provider", "odd", "--accounts-file", str(accounts)]) == 0
    assert json.loads(capsys.readouterr().out)["class"] == "quota"
    accounts.write_text("providers:\n  odd: {hosts: 3}\n")
    assert run([*asked, "--accounts-file", str(accounts)]) == 1
    assert "mine.yaml:2" in capsys.readouterr().err


# -- the command


def test_classify_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(
        '{"id":"a","provider":"openai","status":429,"headers":{"Retry-After":"5"},"body":null}\n'
        "\n"
        "{nonsense\n"
        '{"id":"b","provider":"openai","status":200,"body":{"id":"x"}}\n'
    )
    out = io.StringIO()
    assert classify_file(path, out) == 1
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {
            "id": "a",
            "class": "rate_limit",
            "scope": "account+model",
            "cooldown_s": 5.0,
            "replayable": True,
        },
        {"id": "b", "class": "ok", "scope": "none", "cooldown_s": None, "replayable": False},
    ]
    assert capsys.readouterr().err.startswith(f"{path}: line 3: not JSON")


def test_answers_can_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"provider": "openai", "status": 429}\n'))
    out = io.StringIO()
    assert classify_file(Path("-"), out) == 0
    assert json.loads(out.getvalue())["class"] == "rate_limit"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("[]", "expected an object"),
        ("{}", '"provider"'),
        ('{"provider":"openai"}', '"status"'),
        ('{"provider":"openai","status":"429"}', '"status"'),
        ('{"provider":"openai","status":9999}', '"status"'),
        ('{"provider":"openai","status":429,"headers":[]}', '"headers"'),
        ('{"provider":"openai","status":101,"ws":"x"}', '"ws"'),
        ('{"provider":"openai","status":200,"sse":5}', '"sse"'),
        ('{"provider":"openai","status":429,"now":"yesterday"}', '"now"'),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_says_what_is_wrong(
    line: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(line + "\n")
    assert classify_file(path, io.StringIO()) == 1
    error = capsys.readouterr().err
    assert "line 1: " in error
    assert why in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("provider", ["bedrock", "vertex"])
def test_what_passes_through_is_never_replayed(provider: str) -> None:
    line = {"provider": provider, "status": 429, "headers": {"retry-after": "5"}, "body": "{}"}
    got = classify_line(json.dumps(line))
    assert (got["class"], got["scope"], got["cooldown_s"]) == ("rate_limit", "account+model", 5)
    assert got["replayable"] is False


def test_an_unknown_provider_is_read_as_openai_compatible() -> None:
    line = {"provider": "acme", "status": 402, "headers": {}, "body": "{}"}
    assert classify_line(json.dumps(line))["class"] == "quota"
