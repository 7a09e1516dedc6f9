"""The providers of `builtin.yaml`: each compiles, with its paths, its key and its language."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml

from account_pool.config.shapes import ProviderShape
from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.core.outcome import UpstreamResponse
from account_pool.core.sse import Verdict
from account_pool.providers import registry
from account_pool.providers.base import RequestHead, Route
from account_pool.providers.registry import BUILT_IN, HostIndex

ADDON = Path(registry.__file__).parents[2]
WRITTEN = registry.parse(registry.source())
NAMES = pytest.mark.parametrize("name", WRITTEN)
#: Name: a host, paths that are pooled, and one that is not.
PATHS = {
    "zai": (
        "api.z.ai",
        ["/api/paas/v4/chat/completions", "/api/coding/paas/v4/chat/completions",
         "/api/anthropic/v1/messages"],
        "/api/paas/v4/files",
    ),
    "moonshot": (
        "api.moonshot.cn", ["/v1/chat/completions", "/anthropic/v1/messages"], "/v1/files"
    ),
    "kimi-code": (
        "api.kimi.com", ["/coding/v1/chat/completions", "/coding/v1/messages"],
        "/coding/v1/usages",
    ),
    "minimax": (
        "api.minimax.io", ["/v1/chat/completions", "/anthropic/v1/messages"], "/v1/t2a_v2"
    ),
    "dashscope": (
        "coding.dashscope.aliyuncs.com",
        ["/compatible-mode/v1/chat/completions", "/apps/anthropic/v1/messages",
         "/v1/chat/completions"],
        "/api/v1/uploads",
    ),
    "ark": (
        "ark.cn-beijing.volces.com",
        ["/api/v3/chat/completions", "/api/coding/v3/chat/completions",
         "/api/coding/v1/messages"],
        "/api/v3/contents/generations/tasks",
    ),
    "opencode-zen": (
        "opencode.ai",
        ["/zen/v1/chat/completions", "/zen/v1/messages", "/zen/go/v1/chat/completions",
         "/zen/v1/models/gemini-3-pro:streamGenerateContent"],
        "/workspace/wrk_1/billing",
    ),
    "ollama-cloud": ("ollama.com", ["/v1/chat/completions", "/api/chat"], "/api/pull"),
    "siliconflow": (
        "api.siliconflow.cn", ["/v1/chat/completions", "/v1/messages"], "/v1/user/info"
    ),
    "wandb": ("api.inference.wandb.ai", ["/v1/chat/completions"], "/graphql"),
    "github-models": (
        "models.github.ai", ["/inference/chat/completions", "/orgs/o/inference/chat/completions"],
        "/user",
    ),
}  # fmt: skip
#: Their host is one of the user's own.
FAMILIES = {"new-api", "litellm"}


def head(path: str, method: str = "POST") -> RequestHead:
    return RequestHead(method=method, host="h", port=443, path=path)


def test_the_file_holds_the_languages_own_keys() -> None:
    assert set(WRITTEN) == set(PATHS) | FAMILIES
    for name, written in WRITTEN.items():
        msgspec.convert({k: v for k, v in written.items() if k != "env"}, ProviderShape)
        assert all(rule.get("why") for rule in written["limits"]), name


def test_the_file_is_read_the_same_without_libyaml() -> None:
    assert yaml.load(registry.source(), Loader=yaml.SafeLoader) == WRITTEN


@NAMES
def test_names_hosts_and_variables_are_known_without_compiling(name: str) -> None:
    fresh = registry.BuiltIn({}, BUILT_IN._bases)
    assert fresh.env(name) == tuple(WRITTEN[name]["env"]) == fresh[name].env
    assert fresh.hosts(name) == fresh[name].hosts
    assert [rule.host for rule in fresh[name].hosts] == WRITTEN[name]["hosts"]
    assert fresh[name].name == name in list(fresh)


@pytest.mark.parametrize("name", PATHS)
def test_host_and_paths(name: str) -> None:
    host, pooled, own = PATHS[name]
    provider = BUILT_IN[name]
    assert [found.name for found in HostIndex([provider]).find(host, 443)] == [name]
    for path in pooled:
        assert provider.route(head(path)) is Route.POOL
        assert provider.route(head("/x" + path)) is Route.PASS
    assert provider.route(head(own)) is Route.PASS
    assert provider.route(head(pooled[0], "DELETE")) is Route.PASS


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_has_no_host_and_any_prefix(name: str) -> None:
    provider = BUILT_IN[name]
    assert provider.hosts == ()
    for path in ("/v1/chat/completions", "/api/openai/v1/chat/completions", "/v1/messages"):
        assert provider.route(head(path)) is Route.POOL
    assert provider.route(head("/api/user/self")) is Route.PASS


@NAMES
def test_the_key_replaces_whatever_the_client_sent(name: str) -> None:
    provider = BUILT_IN[name]
    account = Account(provider=name, label="a")
    swap = provider.swap(account, Credential(kind="key", secret=Secret("sk-fake-new")))
    assert dict(swap.headers) == {b"authorization": b"Bearer sk-fake-new"}
    assert {b"authorization", b"x-api-key", b"api-key"} <= swap.drop <= provider.credential_headers


def test_zen_takes_the_key_where_each_dialect_has_it() -> None:
    account = Account(provider="opencode-zen", label="a")
    swap = BUILT_IN["opencode-zen"].swap(account, Credential(kind="key", secret=Secret("k")))
    expected = {
        "/zen/v1/messages": (b"x-api-key", b"k"),
        "/zen/v1/models/gemini-3-pro:generateContent": (b"x-goog-api-key", b"k"),
        "/zen/go/v1/chat/completions": (b"authorization", b"Bearer k"),
    }
    for path, header in expected.items():
        made = swap.for_path(path)
        assert made.headers == (header,)
        assert {b"authorization", b"x-api-key", b"x-goog-api-key"} <= made.drop


def test_wandb_sends_the_accounts_project() -> None:
    account = Account(provider="wandb", label="a", companions={"openai_project": "team/p"})
    swap = BUILT_IN["wandb"].swap(account, Credential(kind="key", secret=Secret("k")))
    assert dict(swap.headers)[b"openai-project"] == b"team/p"
    assert b"openai-project" in swap.drop


@NAMES
@pytest.mark.parametrize("status", [401, 429, 503])
def test_a_refusal_of_ours_is_read_by_both_sdks(name: str, status: int) -> None:
    body = json.loads(BUILT_IN[name].refusal(status, "no account", 30).body)
    assert body["type"] == "error"
    assert body["error"]["message"] == "no account"
    assert body["error"]["type"].endswith("_error")
    assert {"param", "code"} <= body["error"].keys()


@NAMES
def test_what_is_an_answer_stays_one(name: str) -> None:
    provider = BUILT_IN[name]
    good = {"id": "x", "choices": [{"message": {"content": "quota exceeded, code 1308"}}]}
    assert provider.judge(None, good) is Verdict.COMMIT
    assert provider.judge(None, {**good, "code": 0, "msg": "ok", "success": True}) is Verdict.COMMIT
    assert provider.judge(None, {"data": [{"id": "m"}], "object": "list"}) is Verdict.COMMIT
    message = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "Hi"}]}
    assert provider.judge(None, message) is Verdict.COMMIT
    assert provider.judge("message_start", {"type": "message_start"}) is Verdict.CONTINUE


def test_an_organisation_that_a_sentence_names_shares_its_limit() -> None:
    message = "Your account org-0abc1234<ak-x> request reached organization TPM rate limit"
    payload = {"error": {"message": message, "type": "rate_limit_reached_error"}}
    told = BUILT_IN["moonshot"].classify(UpstreamResponse(status=429, payload=payload))
    assert (told.owner, told.shared) == ("org-0abc1234", True)


def test_a_code_that_names_the_key_needs_no_witness() -> None:
    payload = {"error": {"code": "1002", "message": "x"}}
    told = BUILT_IN["zai"].classify(UpstreamResponse(status=401, payload=payload))
    assert told.names_credential
    assert not told.unknown


def test_a_start_that_uses_none_reads_nothing() -> None:
    """Neither the YAML nor its parser is touched by importing the providers."""
    code = (
        f"import sys; sys.path.insert(0, {str(ADDON)!r})\n"
        "from account_pool.providers import registry\n"
        "assert registry.BUILT_IN['openai'].env == ('OPENAI_API_KEY',)\n"
        "assert registry.BUILT_IN.env('openai') == ('OPENAI_API_KEY',)\n"
        "assert not registry._sections.cache_info().currsize\n"
        "assert not [name for name in sys.modules if name.startswith('ruamel')]\n"
        "registry.BUILT_IN.env('zai')\n"
        "assert not [name for name in sys.modules if name.startswith('ruamel')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
