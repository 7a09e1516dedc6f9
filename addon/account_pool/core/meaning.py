"""What a refusal says in the vocabulary that all vendors share, English and Chinese.

Reads sentences and codes by what they are about and what they say of it ("usage limit" +
"reached", "balance" + "insufficient", 额度 + 用尽), not by one vendor's wording of one year.
`meaning_of` says which of `Meaning` it is; what follows for an account is the business of
`GENERAL_RULES` of `providers/common_signals.py`, and a provider's own rules come before either.

Errors echo what users wrote, so quoted text is not read, sentences about the request
itself (length, files, tools, content policy) say nothing of an account, and where a
status is about the request (400 and its kind) only a message that *begins* with such a
sentence counts.

Sources of the vocabulary: the messages and codes of `tests/data/limits*.jsonl` and
`tests/data/plans.jsonl`, each of which names its own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum

from account_pool.core import vocabulary as english
from account_pool.core import vocabulary_chinese as chinese
from account_pool.core.text_patterns import LazyPattern, plain

_I = re.IGNORECASE

# Bounds on what is read of a hostile body.
_MAX_CHARS = 2048
_MAX_CLAUSES = 24


class Meaning(StrEnum):
    """What a refusal is about."""

    #: balance, credits, funds, an unpaid bill: paying cures it, not waiting
    MONEY = "money"
    #: a quota, budget or period of the plan is spent
    PLAN = "plan"
    #: a feature such as long context needs credits the account does not have
    EXTRA = "extra"
    #: the plan does not include the model or feature
    NOT_INCLUDED = "not_included"
    #: requests or tokens of a minute, or at once
    RATE = "rate"
    #: the vendor is short of capacity
    CAPACITY = "capacity"


#: Statuses that are about the account; 0: an error inside a success that names none.
ABOUT_ACCOUNT = frozenset({0, 401, 402, 403, 412, 429})
#: Statuses at which no sentence is about the account: the body is too large.
_ABOUT_BODY = frozenset({413, 414, 431})


@functools.lru_cache(maxsize=16)
def meaning_of(status: int, message: str, words: frozenset[str]) -> Meaning | None:
    """Return what a refusal means; None if the vocabulary has no word for it.

    Args:
        status: HTTP status; 0: an event inside a success that names none.
        message: its prose.
        words: its codes, in lower case; `TwoWords` also as `two_words`.
    """
    if status in _ABOUT_BODY:
        return None
    by_code = _code_meaning(words) if status < 500 else None
    if status in ABOUT_ACCOUNT:
        said = _first(_meaning_of_clause(clause) for clause in _clauses(message))
        # "The model is unavailable" beside a 403 is about the account.
        said = None if said is Meaning.CAPACITY and status in (401, 402, 403) else said
    else:
        said = _strict(message, personal=status >= 500)
    # A sentence says more than a code, which may call a quota what is one of a minute.
    if said is None or (by_code is Meaning.MONEY and said in (Meaning.RATE, Meaning.CAPACITY)):
        return by_code
    return said


def is_about_model(message: str, model: str | None) -> bool:
    """Say whether a limit's sentence is about one model: by name, or "this model".

    Advice in other sentences ("to go on with this model, upgrade") does not count.
    """
    clauses = _END.compiled.split(plain(message[:_MAX_CHARS]))[:_MAX_CLAUSES]
    limits = [one for one in clauses if one and _meaning_of_clause(_bare(one)) in _LIMITS]
    text = " ".join(limits) or message[:_MAX_CHARS]
    # A pattern for each model takes longer to compile than all else here.
    named = model if model and model.casefold() in text.casefold() else ""
    if named and re.search(rf"(?<![\w.-]){re.escape(named)}(?![\w-])", text, _I):
        return True
    return bool(_ONE_MODEL.search(text))


def is_about_request(message: str) -> bool:
    """Say whether a message begins with a sentence about the request itself."""
    clause = next(_clauses(message), "")
    return bool(english.REQUEST.search(clause) or chinese.REQUEST.search(clause))


_LIMITS = (Meaning.PLAN, Meaning.RATE)
_ONE_MODEL = LazyPattern(
    r"\b(?:for|of|on|by|per|with|and|using) (?:this |the |that |each |one |same |base )*"
    r"model(?!s\b)\b(?!\s+(?:provider|studio)\b)"
    r"|\b(?:this|the requested|the selected) model'?s?\b|\bper[_ -]?model\b|ByModel"
    r"|\blimit (?:was |is |has been )?(?:reached|exceeded) for [`'\"]?(?!\d+(?:h|hr|d|min)\b)"
    r"(?=[\w./:-]*\d)[\w./:-]*[a-z][\w./:-]*[`'\"]?(?= (?:in|on|with|at)\b|[.,(]|$)"
    r"|\bmodel[=:] ?[\w./:-]+|(?:该|此|这个|当前|本|所选)模型|模型\s?[A-Za-z]",
    _I,
)

# -- taking a message apart

_URL = LazyPattern(r"https?://\S+")
# What stands in quotes is a user's or a name. An apostrophe is no quote.
_QUOTED = LazyPattern(
    r"\"[^\"\n]{0,400}\"|`[^`\n]{0,400}`|“[^”\n]{0,400}”|「[^」\n]{0,400}」"
    r"|(?<![\w])'[^'\n]{1,400}'(?!\w)"
)
# Three words and more in one: a name.
_NAME = LazyPattern(r"\b\w+(?:-\w+){2,}\b")
_BLANKS = LazyPattern(r"[ \t]+")
_END = LazyPattern(r"(?<=[.!?])\s+|[\n;。!?]+|\s[·|•]\s|\s-\s(?=[A-Z])")


def _clauses(message: str) -> Iterator[str]:
    """Yield the sentences of *message* without quoted text and addresses."""
    for clause in _END.compiled.split(_plain(message))[:_MAX_CLAUSES]:
        if clause and clause.strip():
            yield clause.strip()


def _plain(message: str) -> str:
    return _bare(plain(message[:_MAX_CHARS]))


def _bare(text: str) -> str:
    """Return *text*, which is plain, without addresses, names and what is quoted."""
    for pattern, instead in ((_URL, " "), (_QUOTED, " "), (_NAME, "_"), (_BLANKS, " ")):
        text = pattern.compiled.sub(instead, text)
    return text


def _strict(message: str, *, personal: bool) -> Meaning | None:
    """Return what *message* means where its status is about the request.

    *personal*: only what speaks to the account's owner counts ("your", "you have").
    """
    text = english.WRAPPED.compiled.sub("", _plain(message).strip(), count=1)
    clause = next(_clauses(text), "")
    if english.FIELD.search(clause):
        return None
    if personal:
        begins = bool(re.match(r"(?:sorry,? )?you|您|你", clause, _I))
    else:
        begins = bool(english.BEGINS.match(clause) or chinese.BEGINS.match(clause))
    if not begins:
        return None
    found = _meaning_of_clause(clause)
    return None if found in (Meaning.RATE, Meaning.CAPACITY) else found


def _meaning_of_clause(clause: str) -> Meaning | None:
    """Return what one sentence means."""
    if english.EXTRA.search(clause):
        return Meaning.EXTRA
    if english.CAPACITY.search(clause) or chinese.CAPACITY.search(clause):
        return Meaning.CAPACITY
    if english.REQUEST.search(clause) or chinese.REQUEST.search(clause):
        return None
    return next((meaning for meaning, words in _IN_ORDER if words.search(clause)), None)


#: Narrow before wide: "concurrency allocated quota exceeded" is no quota.
_IN_ORDER: tuple[tuple[Meaning, LazyPattern], ...] = (
    (Meaning.NOT_INCLUDED, english.NOT_INCLUDED),
    (Meaning.NOT_INCLUDED, chinese.NOT_INCLUDED),
    (Meaning.RATE, english.RATE),
    (Meaning.RATE, chinese.RATE),
    (Meaning.PLAN, english.PLAN_SPENT),
    (Meaning.PLAN, chinese.PLAN_SPENT),
    (Meaning.MONEY, english.MONEY),
    (Meaning.MONEY, chinese.MONEY),
    (Meaning.MONEY, english.PAY),
)


def _first(meanings: Iterable[Meaning | None]) -> Meaning | None:
    """Return the weightiest meaning: a plan that is spent before the advice to pay."""
    found = {meaning for meaning in meanings if meaning is not None}
    return next((meaning for meaning in _WEIGHT if meaning in found), None)


_WEIGHT = (
    *(Meaning.EXTRA, Meaning.PLAN, Meaning.NOT_INCLUDED, Meaning.MONEY, Meaning.RATE),
    Meaning.CAPACITY,
)

# -- codes

#: A code with one of these is about the request or a store of it.
_REQUEST_PARTS = frozenset(
    {
        *("context", "prompt", "input", "output", "file", "files", "storage", "upload", "image"),
        *("images", "tool", "tools", "size", "length", "batch", "vector", "thinking", "reasoning"),
        *("policy", "string", "tokens", "max", "message", "messages", "characters"),
    }
)
_RATE_PARTS = frozenset(
    {"rate", "rpm", "tpm", "qps", "concurrency", "concurrent", "minute", "second", "throttling"}
)
_MONEY_CODE = LazyPattern(
    r"(?:^|_)(?:insufficient|not_enough|no|low|negative|exhausted|empty)_(?:\w+_)?(?:balance|credits?"
    r"|funds|money)(?:_|$)|(?:^|_)(?:balance|credits?|funds)_(?:\w+_)?(?:insufficient|exhausted"
    r"|depleted|not_enough|exceeded|empty|required|error|low)(?:_|$)|(?:^|_)(?:arrearage|arrears"
    r"|overdue)(?:_|$)|(?:overdue)(?:_error)?$|(?:^|_)payment_(?:required|overdue|failed|declined)"
    r"|(?:^|_)(?:credits?_error|purchase_required|commodity_not_purchased)$"
    r"|(?:^|_)(?:subscription|plan|trial|package)_(?:is_)?(?:expired|ended|inactive|cancell?ed)"
    r"|(?:^|_)billing_(?:\w+_)?(?:limit|inactive|not_active|error|required|issue)",
)
_PLAN_CODE = LazyPattern(
    r"(?:^|_)(?:usage|plan|session|daily|weekly|monthly|hourly|subscription|spend|spending|quota"
    r"|budget|allowance|free_tier|overage|user_quota|account_quota|free_usage|allocation_quota)"
    r"_(?:\w+_)?(?:reached|exceeded|exhausted|hit|spent|depleted|insufficient|not_enough|limited"
    r"|limit_error|only)(?:_error)?$"
    r"|(?:^|_)(?:exceeded|insufficient|exhausted|exceed|no)_(?:\w+_)?(?:quota|budget|usage)(?:_error)?$"
)


def _code_meaning(words: Iterable[str]) -> Meaning | None:
    """Return what the codes mean by their parts: `AccountOverdueError`, `quota_exceeded`."""
    found = set()
    for word in words:
        code = re.sub(r"[^a-z0-9]+", "_", word)
        parts = frozenset(code.split("_"))
        if parts & _REQUEST_PARTS or parts & _RATE_PARTS:
            continue
        if "exceeded" in parts and parts & {"token", "request", "requests"}:
            continue
        if _MONEY_CODE.search(code):
            found.add(Meaning.MONEY)
        elif _PLAN_CODE.search(code):
            found.add(Meaning.PLAN)
    return _first(found)
