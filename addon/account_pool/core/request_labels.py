"""What may be kept of a request's path and of who asked: names that are public anyway.

A path has ids in it, a `User-Agent` whatever a client likes. What is not known to be a name
is left out.
"""

from __future__ import annotations

import re
from functools import lru_cache

#: Of a request that does not say who asks, or not in a way that could be kept.
UNKNOWN_TOOL = "other"

#: How tools and SDKs call themselves, the first that fits; matched where the text begins
#: unless a row says otherwise. Sources: what they send.
_TOOLS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("claude-code", r"claude-(?:cli|code)\b"),
        ("claude-agent-sdk", r"claude-agent-sdk\b"),
        ("codex", r"codex[-_ ]?(?:cli|tui|exec|vscode|desktop|mcp)?\w*[/ ]|codex\b"),
        ("gemini-cli", r"gemini-?cli\b"),
        ("copilot-chat", r"github ?copilot ?chat\b"),
        ("copilot-cli", r"(?:github-?)?copilot(?:-cli|-developer-cli)?[/ ]"),
        ("opencode", r".*\bopencode\b"),
        ("qwen-code", r"qwen-?code\b"),
        ("aider", r".*\baider\b"),
        ("cline", r".*\bcline\b"),
        ("roo-code", r".*\broo-?code\b"),
        ("kilo-code", r".*\bkilo-?code\b"),
        ("cursor", r"cursor\b"),
        ("zed", r"zed\b"),
        ("litellm", r".*\blitellm\b"),
        ("openai-python", r"(?:async)?openai/python\b"),
        ("openai-node", r"(?:async)?openai/js\b"),
        ("anthropic-python", r"(?:async)?anthropic(?:bedrock|vertex|foundry)?/python\b"),
        ("anthropic-node", r"(?:async)?anthropic(?:bedrock|vertex|foundry)?/js\b"),
        ("google-genai", r"google-genai-sdk\b"),
        ("vercel-ai-sdk", r".*\bai-sdk/|ai/\d"),
        ("browser", r"mozilla/"),
    )
)
#: The first product of a `User-Agent` (RFC 9110, 10.1.5) as far as it is plainly a name.
_PRODUCT = re.compile(r"([A-Za-z][A-Za-z._-]{1,30}[A-Za-z]\d?)(?=/| \(|$)")
#: The same of a user name of `proxyauth`: an account's key, too (openai/work).
_USER = re.compile(r"(?!.*[A-Za-z0-9]{16})[A-Za-z0-9][A-Za-z0-9._@/-]{0,47}")
#: What begins like a credential is none of both.
_CREDENTIAL = re.compile(
    r"(?:sk|pk|key|gh[opsu]|github_pat|glpat|xai|gsk|AIza|ya29|eyJ)[-_.A-Z0-9]"
)

#: A segment of a path that names a thing of an API. Ids have digits, capitals or no word.
_WORD = re.compile(r"[a-z]+(?:[_-][a-z]+){0,4}|[a-z]+(?:[A-Z][a-z]+){1,3}")
_VERSION = re.compile(r"v\d{1,2}(?:(?:alpha|beta|internal)\d?)?|api|v1internal")
_MAX_WORD, _MAX_SEGMENTS = 28, 12
#: Collections whose members have ids that a client or an owner may have chosen.
_MEMBERS_OF = re.compile(
    r"models|deployments|files|batches|responses|conversations|items|assistants|threads|messages|"
    r"runs|steps|vector_stores|fine_tuning|jobs|checkpoints|uploads|containers|evals|videos|"
    r"cachedContents|tunedModels|operations|interactions|users|organizations|projects|publishers|"
    r"locations|engines|skills|agents"
)
#: What follows them and is no member.
_NOT_MEMBERS = re.compile(
    r"completions|chat|responses|messages|embeddings|images|audio|batch(?:es)?|count_tokens|cancel|"
    r"content|results|compact|input_items|input_tokens|files|items|runs|steps|submit_tool_outputs|"
    r"search|jobs|checkpoints|events|pause|resume|parts|complete|remix|models|session|"
    r"transcriptions|translations|speech|generations|edits|rerank"
)


def tool_name(agent: str, user: str = "") -> str:
    """Return the name of the product that sends *agent*, a `User-Agent`, in lower case.

    *user* is the name it gave to `proxyauth`, which its owner has chosen, and is taken first.
    """
    return _tool_name(agent[:512], user)


@lru_cache(maxsize=1024)
def _tool_name(agent: str, user: str) -> str:
    if user and _USER.fullmatch(user) and not _CREDENTIAL.match(user):
        return user
    for name, pattern in _TOOLS:
        if pattern.match(agent):
            return name
    found = _PRODUCT.match(agent)
    if found is None or _CREDENTIAL.match(agent):
        return UNKNOWN_TOOL
    return found[1].lower()


def endpoint_of(path: str) -> str:
    """Return *path* with `{id}` for whatever may be one, `{model}` for the name of a model."""
    return _endpoint_of(path.partition("?")[0][:512])


@lru_cache(maxsize=1024)
def _endpoint_of(path: str) -> str:
    kept: list[str] = []
    before = ""
    for segment in path.split("/")[1 : _MAX_SEGMENTS + 1]:
        name, colon, verb = segment.partition(":")
        is_word = len(name) <= _MAX_WORD and bool(_WORD.fullmatch(name) or _VERSION.fullmatch(name))
        is_member = _MEMBERS_OF.fullmatch(before) and not _NOT_MEMBERS.fullmatch(name)
        if name and (is_member or not is_word):
            name = "{model}" if before in ("models", "deployments", "engines") else "{id}"
        if colon and len(verb) <= _MAX_WORD and _WORD.fullmatch(verb):
            name = f"{name}:{verb}"
        kept.append(name)
        before = segment
    return "/" + "/".join(kept)
