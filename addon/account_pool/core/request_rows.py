"""A row about each client request that has ended: what it was, who served it, what it took.

A row holds nothing that a client or a provider wrote but a product's name and that
of a model: no prompt, no answer, no value of a header. A request leaves one `Ended` behind, and
`row_of` makes the row of it in the thread that writes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, overload

from account_pool.core.decisions import one_line, session_hash
from account_pool.core.instruments import Ended, Mark
from account_pool.core.meaning import LazyPattern
from account_pool.core.outcome import OutcomeClass

COPILOT = "copilot"
#: The longest name of a model that is kept.
_MAX_MODEL = 128


class Status(StrEnum):
    """How a request ended."""

    #: it was answered, whole
    OK = "ok"
    #: its client got an error, the provider's or ours
    REFUSED = "refused"
    #: its client left, or its answer broke off
    ABORTED = "aborted"


class RequestRow(NamedTuple):
    """What is kept of a request. Times in seconds; `wall_at` since the epoch.

    Attributes:
        wall_at: when it was complete.
        provider, account: whose API; who served it, or refused it last, as `provider/label`.
        model: the model it asked for.
        endpoint: its path without ids (`/v1/responses/{id}`).
        tool: the product that asked.
        session: a hash that tells its conversation, as of decisions.
        http_status: of the response; 101 is the handshake of a WebSocket, of which each turn has a
            row of its own without a status.
        attempts, failovers: how often it was sent, and to another account than before.
        wait_s: how long it was held for an account or its credential.
        first_byte_s: from the complete request to the first byte of a good answer.
        duration_s: to its end.
        counted: 1 if usage counts it, else 0: what is only fetched, or was refused, is not.
        input_tokens ...: as in `usage.Usage`; None where the provider does not tell.
        cost_usd: at the price of that day; None where none is known.
        price: where the price is from ("accounts.yaml", "genai-prices 0.2.3"); "" where none is
            known or nothing is to be paid; None: it was not looked for yet.
        covered: 1 if a subscription has paid for it, so that `cost_usd` was saved; else 0.
        premium_requests: what it takes of Copilot's allowance; None elsewhere.
    """

    wall_at: float
    provider: str
    account: str | None
    model: str | None
    endpoint: str
    tool: str
    session: str | None
    status: str
    http_status: int | None
    attempts: int
    failovers: int
    wait_s: float
    first_byte_s: float | None
    duration_s: float
    counted: int
    input_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    price: str | None = None
    covered: int = 0
    premium_requests: float | None = None


def row_of(ended: Ended) -> RequestRow:
    """Return the row about *ended*, without its cost."""
    # In the thread that writes the first row: its patterns take a while to compile.
    facts, history, usage = ended.facts, ended.history, ended.usage
    model = ended.counted[2] if ended.counted else facts.model
    began_at = wait_s = 0.0
    first_byte_s = None
    for mark, value in ended.marks:
        if mark is Mark.BEGAN:
            began_at = value
        elif mark is Mark.WAITED:
            wait_s += value
        elif mark is Mark.HANDED_ON:
            first_byte_s = _seconds(value - began_at)
    duration_s = _seconds(ended.at - began_at)
    of_agent = facts.provider == COPILOT and facts.conversation.follow_up
    return RequestRow(
        wall_at=round(ended.wall_at - duration_s, 3),
        provider=facts.provider,
        account=str(history[-1].key) if history else None,
        model=_text(model) if model else None,
        endpoint=endpoint_of(facts.path),
        tool=tool_name(facts.agent, facts.user),
        session=session_hash(facts.conversation.session),
        status=ended.status or _status(ended).value,
        http_status=ended.http_status,
        attempts=len(history),
        failovers=sum(before.key != after.key for before, after in pairwise(history)),
        wait_s=_seconds(wait_s),
        first_byte_s=first_byte_s,
        duration_s=duration_s,
        counted=int(ended.counted is not None),
        **({} if usage is None else usage._asdict()),
        price=None if ended.counted else "",
        # What an agent sends on its own takes nothing of Copilot's allowance.
        premium_requests=0.0 if of_agent else None,
    )


class LazyRows(Sequence[RequestRow]):
    """The rows about requests that have *ended*, made once a thread asks for one of them.

    What the requests have left, three times as much as their rows, is let go of then.
    """

    def __init__(self, ended: Sequence[Ended]) -> None:
        self._count, self._ended = len(ended), ended
        self._made: Sequence[RequestRow] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> RequestRow: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[RequestRow]: ...
    def __getitem__(self, at: int | slice) -> RequestRow | Sequence[RequestRow]:
        # In this order: another thread may make them meanwhile.
        ended, made = self._ended, self._made
        if made is None:
            if isinstance(at, slice):
                return LazyRows(ended[at])
            made = self._made = [row_of(one) for one in ended]
            self._ended = ()
        return made[at]


def _status(ended: Ended) -> Status:
    """Return how *ended* ended."""
    status = ended.http_status
    if status is None:
        return Status.ABORTED
    last = ended.history[-1].outcome if ended.history else None
    # A refusal may come inside a response that began as a good one.
    if status >= 400 or (last is not None and last.cls is not OutcomeClass.OK):
        return Status.REFUSED
    return Status.OK if ended.whole else Status.ABORTED


def _seconds(value: float) -> float:
    return round(max(value, 0.0), 4)


def _text(name: str) -> str:
    """Return a name that a client chose as it can be written and shown in a line."""
    return one_line(name.encode("utf-8", "replace").decode(), _MAX_MODEL)


# -- what may be kept of a path and of who asked: names that are public anyway. A path has ids in
# it, a `User-Agent` whatever a client likes; what is not known to be a name is left out

#: Of a request that does not say who asks, or not in a way that could be kept.
UNKNOWN_TOOL = "other"

#: How tools and SDKs call themselves, the first that fits; matched where the text begins
#: unless a row says otherwise. Sources: what they send.
_TOOLS: tuple[tuple[str, LazyPattern[str]], ...] = tuple(
    (name, LazyPattern(pattern, re.IGNORECASE))
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
_PRODUCT = LazyPattern(r"([A-Za-z][A-Za-z._-]{1,30}[A-Za-z]\d?)(?=/| \(|$)")
#: The same of a user name of `proxyauth`: an account's key, too (openai/work).
_USER = LazyPattern(r"(?!.*[A-Za-z0-9]{16})[A-Za-z0-9][A-Za-z0-9._@/-]{0,47}")
#: What begins like a credential is none of both.
_CREDENTIAL = LazyPattern(
    r"(?:sk|pk|key|gh[opsu]|github_pat|glpat|xai|gsk|AIza|ya29|eyJ)[-_.A-Z0-9]"
)

#: A segment of a path that names a thing of an API. Ids have digits, capitals or no word.
_WORD = LazyPattern(r"[a-z]+(?:[_-][a-z]+){0,4}|[a-z]+(?:[A-Z][a-z]+){1,3}")
_VERSION = LazyPattern(r"v\d{1,2}(?:(?:alpha|beta|internal)\d?)?|api|v1internal")
_MAX_WORD, _MAX_SEGMENTS = 28, 12
#: Collections whose members have ids that a client or an owner may have chosen.
_MEMBERS_OF = LazyPattern(
    r"models|deployments|files|batches|responses|conversations|items|assistants|threads|messages|"
    r"runs|steps|vector_stores|fine_tuning|jobs|checkpoints|uploads|containers|evals|videos|"
    r"cachedContents|tunedModels|operations|interactions|users|organizations|projects|publishers|"
    r"locations|engines|skills|agents"
)
#: What follows them and is no member.
_NOT_MEMBERS = LazyPattern(
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
