"""What a provider of the user's own may say, and what `load` says when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from account_pool.config.configuration import Config
from account_pool.config.loader import load
from account_pool.config.problems import ConfigError
from account_pool.core.outcome import OutcomeClass, Scope, UpstreamResponse
from account_pool.core.sse import Verdict
from account_pool.providers.base import Provider, RequestHead, Route

HEAD = """\
accounts:
  - {provider: gw, label: a, token: sk-fake-a-000}
providers:
  gw:
    hosts: [llm.example.com]
"""
HOW_PATTERN = "write a regular expression of Python, such as quota.*exceeded"
CLASSES = (
    "rate_limit, quota, overloaded, request_error, auth_expired, auth_invalid, "
    "forbidden_account, server_error"
)


def written(directory: Path, text: str) -> Path:
    path = directory / "accounts.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def loaded(directory: Path, text: str) -> Config:
    return load(written(directory, text), {})


def problems_of(directory: Path, text: str) -> list[str]:
    path = written(directory, text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    return [str(p).removeprefix(f"{path}:") for p in caught.value.problems]


@pytest.fixture
def gateway(tmp_path: Path) -> Provider:
    text = f"""{HEAD}
    paths: [/chat, "GET /models*"]
    credential: {{query: key}}
    drop: [X-Team]
    companions: {{workspace: X-Workspace}}
    owner: X-Org
    limits:
      - {{status: [418], class: rate_limit, scope: account+model, model: /model,
          reset: {{header: X-Back, as: milliseconds}}}}
      - {{pointer: /code, equals: [1302, busy], class: overloaded}}
      - {{status: [200], pointer: /code, regex: "^9", class: quota, reset: none}}
      - {{header: {{X-Kind: ^day$}}, message: used up, class: quota,
          reset: {{pointer: /back, as: rfc3339}}}}
"""
    text = text.replace("label: a,", "label: a, workspace: w1,")
    config = loaded(tmp_path, text)
    assert config.accounts[0].account.companions == {"workspace": "w1"}
    return config.providers["gw"]


def head(method: str, path: str) -> RequestHead:
    return RequestHead(method=method, host="llm.example.com", port=443, path=path)


def test_paths_are_those_written(gateway: Provider) -> None:
    assert gateway.route(head("POST", "/chat")) is Route.POOL
    assert gateway.route(head("GET", "/models/a")) is Route.POOL
    assert gateway.route(head("GET", "/chat")) is Route.PASS
    assert gateway.route(head("POST", "/v1/chat/completions")) is Route.PASS
    assert gateway.posts == frozenset()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/models/../keys", Route.PASS),
        ("/models/%2E%2e/keys", Route.PASS),
        ("/models/a%2f..%2fkeys", Route.PASS),
        ("/models\\..\\keys", Route.PASS),
        ("/models/..;/keys", Route.PASS),
        ("/models/./..", Route.PASS),
        ("/models/gpt..4.1", Route.POOL),
        ("/models/.hidden", Route.POOL),
    ],
)
def test_no_path_leads_out_of_those_written(gateway: Provider, path: str, expected: Route) -> None:
    assert gateway.route(head("GET", path)) is expected


def test_limits_are_those_written_before_those_of_like(gateway: Provider) -> None:
    told = gateway.classify(
        UpstreamResponse(status=418, headers={"x-back": "2500"}, payload={"model": "m1"}, text="{}")
    )
    assert (told.cls, told.scope, told.cooldown_s) == (
        OutcomeClass.RATE_LIMIT,
        Scope.MODEL,
        2.5,
    )
    assert (told.model, told.explicit, told.replayable) == ("m1", True, True)
    assert told.signal == "418: accounts.yaml:13"
    assert (
        gateway.classify(UpstreamResponse(status=400, payload={"code": 1302})).cls == "overloaded"
    )
    usual = UpstreamResponse(status=429, payload={"error": {"code": "insufficient_quota"}})
    assert gateway.classify(usual).cls == "quota"
    assert gateway.classify(UpstreamResponse(status=418)).cls == "rate_limit"


def test_an_error_inside_a_good_status(gateway: Provider) -> None:
    inside = {"code": 910, "retry_after": 5}
    told = gateway.classify(UpstreamResponse(status=200, payload=inside))
    assert (told.cls, told.cooldown_s) == (OutcomeClass.QUOTA, None)
    assert gateway.judge(None, inside) is Verdict.REFUSE
    assert gateway.judge(None, {"code": 110, "choices": [1]}) is Verdict.COMMIT
    assert gateway.classify(UpstreamResponse(status=200, payload={"code": 110})).cls == "ok"


def test_every_condition_must_hold(gateway: Provider) -> None:
    def cls(kind: str, message: str) -> str:
        payload = {"message": message, "back": "2026-12-01T00:00:00Z"}
        answer = UpstreamResponse(
            status=409, headers={"x-kind": kind}, payload=payload, wall_now=1796083100
        )
        return gateway.classify(answer).cls

    assert cls("day", "All USED up.") == "quota"
    assert cls("today", "used up") == "request_error"
    assert cls("day", "unused") == "request_error"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("paths: /chat", '6: {}.paths: "/chat" is not a list; write a list such as '
         '["/v1/chat/completions", "GET /v1/models*"]'),
        ("paths: [chat]", '6: {}.paths[0]: "chat" is not a path; start it with /, without host '
         "or query; * matches any text"),
        ("paths: ['GTE /a']", "6: {}.paths[0]: does not start with a known method; write one of "
         "GET, POST, PUT, PATCH, DELETE"),
        ("credential: {}", "6: {}.credential: names neither header nor query; write {{header: "
         'authorization, prefix: "Bearer "}} or {{query: key}}'),
        ("credential: {header: Host}", "6: {}.credential.header: host belongs to the request, not "
         "to an account; name another header"),
        ("credential: {header: a, prefix: \"x\\n\"}", "6: {}.credential.prefix: cannot be used in "
         'a header; write one such as "Bearer "'),
        ("credential: {query: k, prefix: x}", "6: {}.credential.prefix: belongs to a header; "
         "remove it"),
        ("credential: {query: 'a b'}", '6: {}.credential.query: "a b" is not the name of a '
         "parameter; write one such as key"),
        ("credential: {query: k, heder: a}", "6: {}.credential.heder: unknown key; did you mean "
         "header?"),
        ("drop: ['a b']", '6: {}.drop[0]: "a b" is not the name of a header; write one such as '
         "x-team"),
        ("companions: {label: x-a}", "6: {}.companions.label: cannot be a key of its accounts; "
         "write a name of its own such as workspace, in lower case"),
        ("owner: 3", "6: {}.owner: 3 is not text; put it in quotes"),
        ("limits: [{status: [429]}]", "6: {}.limits[0].class: is missing; write one of " + CLASSES),
        ("limits: [{class: quota}]", "6: {}.limits[0]: has no condition; add one of status, "
         "header, codes, pointer, message"),
        ("time_zone: Mars/Phobos", '6: {}.time_zone: "Mars/Phobos" is not a time zone; write one '
         "such as Asia/Shanghai or +08:00"),
        ("owner: {header: x-a, pointer: /b}", "6: {}.owner: names no one place; write one of "
         "header, pointer, message"),
        ("owner: {heder: x-a}", "6: {}.owner.heder: unknown key; did you mean header?"),
        ("owner: {message: org}", "6: {}.owner.message: has not one group; put the part that is "
         "meant in parentheses: team (\\w+)"),
        ("credential: {header: a, by_path: {messages: {header: b}}}", "6: {}.credential.by_path."
         "messages: is not part of a path; start it with /"),
        ("limits: [{codes: {a: b}, class: quota}]", "6: {}.limits[0].codes: a mapping is not a "
         "value; write text, a number, or a list of them"),
        ("limits: [{codes: a, class: quota, missing_model: true}]", "6: {}.limits[0]."
         "missing_model: belongs to a request_error; write class: request_error"),
        ("limits: [{status: [429], class: rate_limt}]", '6: {}.limits[0].class: "rate_limt" is not '
         "accepted; did you mean rate_limit?"),
        ("limits: [{status: [429], class: quota, scope: acount}]", '6: {}.limits[0].scope: '
         '"acount" is not accepted; did you mean account?'),
        ("limits: [{status: 429, class: quota}]", "6: {}.limits[0].status: 429 is not a list; "
         "write a list of statuses such as [429]"),
        ("limits: [{status: [4290], class: quota}]", "6: {}.limits[0].status[0]: 4290 is more than "
         "599; write a list of statuses such as [429]"),
        ("limits: [{status: [200], class: quota}]", "6: {}.limits[0].status: a success "
         "status is not an error by itself; add pointer: /error/code, or whatever "
         "identifies the error inside"),
        ("limits: [{message: '(', class: quota}]", "6: {}.limits[0].message: is not a regular "
         "expression: missing ), unterminated subpattern at character 1; " + HOW_PATTERN),
        ("limits: [{message: '(a+)+b', class: quota}]", "6: {}.limits[0].message: repeats a group "
         "that repeats or chooses inside, which can take for ever; " + HOW_PATTERN),
        ("limits: [{pointer: error, class: quota}]", "6: {}.limits[0].pointer: a pointer starts "
         "with /; write one such as /error/code"),
        ("limits: [{status: [429], equals: a, class: quota}]", "6: {}.limits[0].equals: has no "
         "pointer to a value; add pointer: /error/code"),
        ("limits: [{pointer: /a, equals: {}, class: quota}]", "6: {}.limits[0].equals: a mapping "
         "is not a value; write text, a number, or a list of them"),
        ("limits: [{status: [429], class: quota, reset: soon}]", '6: {}.limits[0].reset: "soon" is '
         "not accepted; write message, none, or {{header: retry-after, as: seconds}}"),
        ("limits: [{status: [429], class: quota, reset: {as: seconds}}]",
         "6: {}.limits[0].reset: names neither header nor pointer; write one of {{header: NAME}}, "
         "{{pointer: /a/b}}"),
        ("limits: [{status: [429], class: quota, reset: {header: a, as: secs}}]",
         '6: {}.limits[0].reset.as: "secs" is not accepted; did you mean seconds?'),
        ("limits: [{statuss: [429], status: [429], class: quota}]",
         "6: {}.limits[0].statuss: unknown key; did you mean status?"),
        ("hots: [a]", "6: {}.hots: unknown key; did you mean hosts?"),
    ],
)  # fmt: skip
def test_a_wrong_definition_is_explained(tmp_path: Path, lines: str, expected: str) -> None:
    assert problems_of(tmp_path, f"{HEAD}    {lines}\n") == [expected.format("providers.gw")]


def test_what_a_built_in_provider_takes(tmp_path: Path) -> None:
    text = (
        "accounts: [{provider: openai, label: a, token: x}]\n"
        "providers: {openai: {limits: [{status: [418], class: quota}]}}\n"
    )
    openai = loaded(tmp_path, text).providers["openai"]
    assert openai.classify(UpstreamResponse(status=418)).cls == "quota"
    assert problems_of(tmp_path, text.replace("limits:", "drop: [a], limits:")) == [
        "2: providers.openai.drop: openai is built in, and takes hosts and limits only; define a "
        "provider of another name with like: openai"
    ]


def test_logins_of_vendors_keep_their_place(tmp_path: Path) -> None:
    text = HEAD + "    like: copilot\n    credential: {header: x-key}\n"
    assert problems_of(tmp_path, text) == [
        "7: providers.gw.credential: the credential of copilot has its own place; remove this key"
    ]


def test_without_like_it_is_like_openai(tmp_path: Path) -> None:
    provider = loaded(tmp_path, HEAD).providers["gw"]
    assert provider.route(head("POST", "/v1/chat/completions")) is Route.POOL


def test_companions_of_its_own_must_be_text(tmp_path: Path) -> None:
    text = HEAD.replace("label: a,", "label: a, workspace: 3,")
    assert problems_of(tmp_path, text + "    companions: {workspace: x-w}\n") == [
        "2: accounts[0].workspace: 3 is not text; write text, in quotes"
    ]
