"""What a refusal says in the vocabulary that all vendors share, English and Chinese.

Reads sentences and codes by what they are about and what they say of it ("usage limit" +
"reached", "balance" + "insufficient", 额度 + 用尽), not by one vendor's wording of one year.
`meaning_of` says which of `Meaning` it is; what follows for an account is the business of
`GENERAL_RULES` of `providers/common_signals.py`, and a provider's own rules come before either.

Errors echo what users wrote, so quoted text is not read, sentences about the request
itself (length, files, tools, content policy) say nothing of an account, and where a
status is about the request (400 and its kind) only a message that *begins* with such a
sentence counts.

Patterns over prose are `LazyPattern`s, and read what `plain` makes of it.

Sources of the vocabulary: the messages and codes of `tests/data/limits*.jsonl` and
`tests/data/plans.jsonl`, each of which names its own.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Any, AnyStr, Generic


class LazyPattern(Generic[AnyStr]):
    """`re.compile` with the cost at the first search; the same functions from then on.

    Those of this package take 60 ms to compile; a proxy that starts needs few of them.
    """

    search: Callable[..., re.Match[AnyStr] | None]
    match: Callable[..., re.Match[AnyStr] | None]
    fullmatch: Callable[..., re.Match[AnyStr] | None]
    finditer: Callable[..., Iterator[re.Match[AnyStr]]]
    findall: Callable[..., list[Any]]
    split: Callable[..., list[Any]]
    sub: Callable[..., AnyStr]
    subn: Callable[..., tuple[AnyStr, int]]

    def __init__(self, pattern: AnyStr, flags: int = 0) -> None:
        self.pattern: AnyStr = pattern
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        if name not in _FUNCTIONS:
            raise AttributeError(name)
        compiled = re.compile(self.pattern, self._flags)
        vars(self).update((each, getattr(compiled, each)) for each in _FUNCTIONS)
        return vars(self)[name]


_FUNCTIONS = ("search", "match", "fullmatch", "finditer", "findall", "split", "sub", "subn")


#: Full-width forms (Chinese punctuation and digits), typographic apostrophes, hard blanks.
_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_ASCII |= {0x2018: 0x27, 0x2019: 0x27, 0x00A0: 0x20, 0x3000: 0x20}
#: Traditional Chinese, as far as the vocabulary has the characters.
_ASCII |= str.maketrans(
    "額餘點數費請過頻達滿盡週時個後試帳賬戶號預敗訂閱會員資務調訪問無權並併發態當這該間鐘將於復"
    "繼續開鎖凍結載飽組級計劃積輸圖傳長違規審參詞單內對還為總種帶",
    "额余点数费请过频达满尽周时个后试账账户号预败订阅会员资务调访问无权并并发态当这该间钟将于复"
    "继续开锁冻结载饱组级计划积输图传长违规审参词单内对还为总种带",
)


def plain(text: str) -> str:
    """Return *text*, of the same length, with one spelling for what looks alike."""
    return text if text.isascii() else text.translate(_ASCII)


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
    #: a feature such as long context, or one model, needs credits the account does not have
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
        start = message[:_MAX_CHARS]
        # A rate is limited that is said not to be the account's.
        if said in (None, Meaning.RATE) and _NOT_YOURS.search(start) and _RATE.search(start):
            said = Meaning.CAPACITY
        # "The model is unavailable" beside a 403 is about the account.
        said = None if said is Meaning.CAPACITY and status in (401, 402, 403) else said
    else:
        said = _strict(message, personal=status >= 500)
    # A sentence says more than a code, which may call a quota what is one of a minute.
    if said is None or (by_code is Meaning.MONEY and said in (Meaning.RATE, Meaning.CAPACITY)):
        return by_code
    return said


@functools.lru_cache(maxsize=16)
def is_about_model(message: str, model: str | None) -> bool:
    """Say whether a limit's sentence is about one model: by name, or "this model".

    Advice in other sentences ("to go on with this model, upgrade") does not count.
    """
    text, is_about_one = _what_is_limited(message)
    # A pattern for each model takes longer to compile than all else here.
    named = model if model and model.casefold() in text.casefold() else ""
    if named and re.search(rf"(?<![\w.-]){re.escape(named)}(?![\w-])", text, _I):
        return True
    return is_about_one


@functools.lru_cache(maxsize=16)
def _what_is_limited(message: str) -> tuple[str, bool]:
    """Return what *message* says of a limit, and whether that is "this model"."""
    clauses = _END.split(plain(message[:_MAX_CHARS]))[:_MAX_CLAUSES]
    limits = [one for one in clauses if one and _meaning_of_clause(_bare(one)) in _LIMITS]
    text = " ".join(limits) or message[:_MAX_CHARS]
    return text, bool(_ONE_MODEL.search(text))


def is_about_request(message: str) -> bool:
    """Say whether a message begins with a sentence about the request itself."""
    clause = next(_clauses(message), "")
    return bool(_REQUEST.search(clause))


_LIMITS = (Meaning.PLAN, Meaning.RATE)
_ONE_MODEL = LazyPattern(
    r"\b(?:for|of|on|by|per|with|and|using) (?:this |the |that |each |one |same |base )*"
    r"model(?!s\b)\b(?!\s+(?:provider|studio)\b)"
    r"|\b(?:this|the requested|the selected) model'?s?\b|\bper[_ -]?model\b|ByModel"
    r"|\bmodel(?:'s)? (?:quota|(?:rate )?limit)s?\b"
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
    for clause in _END.split(_plain(message))[:_MAX_CLAUSES]:
        if clause and clause.strip():
            yield clause.strip()


def _plain(message: str) -> str:
    return _bare(plain(message[:_MAX_CHARS]))


def _bare(text: str) -> str:
    """Return *text*, which is plain, without addresses, names and what is quoted."""
    for pattern, instead in ((_URL, " "), (_QUOTED, " "), (_NAME, "_"), (_BLANKS, " ")):
        text = pattern.sub(instead, text)
    return text


def _strict(message: str, *, personal: bool) -> Meaning | None:
    """Return what *message* means where its status is about the request.

    *personal*: only what speaks to the account's owner counts ("your", "you have").
    """
    text = _WRAPPED.sub("", _plain(message).strip(), count=1)
    clause = next(_clauses(text), "")
    if _FIELD.search(clause):
        return None
    found = _meaning_of_clause(clause)
    if personal:
        begins = bool(re.match(r"(?:sorry,? )?you|您|你", clause, _I))
    elif found in (Meaning.NOT_INCLUDED, Meaning.EXTRA):
        begins = bool(_BEGINS.match(clause) or _NAMES_MODEL.match(clause))
    else:
        begins = bool(_BEGINS.match(clause))
    return found if begins and found not in (Meaning.RATE, Meaning.CAPACITY) else None


@functools.lru_cache(maxsize=64)
def _meaning_of_clause(clause: str) -> Meaning | None:
    """Return what one sentence means. Each refusal asks twice, and most repeat one."""
    if _EXTRA.search(clause):
        return Meaning.EXTRA
    if _CAPACITY.search(clause):
        return Meaning.CAPACITY
    if _REQUEST.search(clause):
        return None
    return next((meaning for meaning, words in _IN_ORDER if words.search(clause)), None)


def _first(meanings: Iterable[Meaning | None]) -> Meaning | None:
    """Return the weightiest meaning: a plan that is spent before the advice to pay."""
    found = {meaning for meaning in meanings if meaning is not None}
    return next((meaning for meaning in _WEIGHT if meaning in found), None)


_WEIGHT = (
    *(Meaning.EXTRA, Meaning.PLAN, Meaning.NOT_INCLUDED, Meaning.MONEY, Meaning.RATE),
    Meaning.CAPACITY,
)

# -- the words: what is limited, and what is said of it. Searched in one sentence without quoted
# text; case does not matter.

_PERIOD = (
    r"(?:(?:5|five|one|two|seven|\d{1,3})[- ]?(?:hours?|hrs?|h|days?|d|weeks?|months?)\b"
    r"|session|hourly|daily|weekly|monthly|yearly|annual|billing (?:cycle|period)"
    r"|per[- ](?:day|week|month)"
    r"|today'?s|this (?:week|month)'?s)"
)
_LIMIT = r"(?:limits?|caps?|quotas?|allowances?|allotments?|budgets?|windows?|thresholds?|max)"
_OWN = r"(?:token|coding|free|pro|plus|max|lite|team|base|subscription|premium|included|total)"
#: What a plan gives: its name alone, or a period or purse and the word limit.
_PLAN = (
    rf"(?:(?:{_PERIOD}|usage|plan|subscription|spend(?:ing)?|cost|credits?|budget|billing|account"
    rf"|organi[sz]ation|workspace|team|user|key|overage|(?<!feel )free(?:[- ]tier)?"
    rf"(?! to\b)|fair[- ]use|trial|premium)"
    rf"'?s?[ /-]+(?:(?!rate\b)[\w/-]+ ){{0,3}}?{_LIMIT}"
    rf"|(?:(?:{_OWN}|allocated|individual|current|usage|user|token|account) )*quotas?"
    rf"|budgets?|allowances?|free (?:tier|usage|credits?|quota|allocation)|usage allocation"
    rf"|(?:{_PERIOD}|premium|free|included|total) (?:\w+ ){{0,2}}?"
    r"(?:requests?|messages?|tokens|calls|usage)"
    r"|(?:included|allowed|granted) (?:in|with|by|under) (?:your|the|this) (?:\w+ )?"
    r"(?:plan|subscription|tier|package)|extra usage|overages?)"
)
_PURSE = r"(?:balance|credits?|funds|wallet|prepaid amount|money|prepayment)"
_AUX = r"(?:(?:has|have|had|is|are|was|were|been|be|being|already|now|fully|all|currently)\s+){0,4}"
_SPENT = (
    r"(?:reached|hit|exceeded|exhausted|depleted|used up|spent|consumed|surpassed|maxed out"
    r"|insufficient|not enough|not sufficient|too low|empty|negative|over|run out|ran out"
    r"|finished|expired|rejected|full)"
)
_SPENDING = (
    r"(?:reach(?:ed|es)?|hit|exceed(?:ed|s|ing)?|exhaust(?:ed|s)?|deplet(?:ed|es)|used up"
    r"|used (?:all|100%)(?: of)?|consumed|surpass(?:ed|es)|max(?:ed|es) out|ran out of|run out of"
    r"|out of|insufficient|not enough|no (?:more|remaining))"
)
_LACKING = (
    r"(?:insufficient|inadequate|not enough|low|negative|no(?: more| remaining)?|zero|out of"
    r"|ran out of|run out of|running out of|used (?:up )?all(?: of)?(?: the| your)?"
    r"|lacks?(?: sufficient)?|without|(?:do|does|did)(?: not|n't) have(?: any| enough| sufficient)?"
    r"|ha(?:ve|s) (?:no|used all(?: of)?|exhausted|depleted|run out of)(?: your)?|exceeded your)"
)

# The same in Chinese, in which vendors of mainland China answer.

#: quota, limit, usage, package of calls or tokens, budget
_QUOTA_ZH = (
    "(?:额度|配额|限额|用量|使用量|流量包|免费次数|调用次数|使用次数|预算|套餐|令牌|tokens?)"
)
#: day, week, month, hour, period, session
_PERIOD_ZH = (
    "(?:每日|每天|当日|当天|今日|本日|每周|本周|每月|本月|月度|周|日|小时|时段|会话|周期|使用)"
)
#: not enough, used up (three ways), full, over, reached
_SPENT_ZH = "(?:不足|用尽|用完|耗尽|已满|超出|超过|超限|达到上限|已达|达到|不够)"
#: has reached, exceeded, used up
_SPENDING_ZH = "(?:达到?|超出|超过|触及|用尽|用完|耗尽|超)"
#: balance, points, amount, fees, funds
_PURSE_ZH = "(?:余额|积分|点数|金额|费用|资金)"
#: plan, subscription, membership, trial, prepaid package
_PLAN_ZH = "(?:套餐|订阅|会员|试用|服务包|资源包)"

_EXTRA = LazyPattern(
    r"\b(?:usage|credits?|overages?|purchase)\b.{0,60}\b(?:required|needed|necessary)\b.{0,10}"
    r"\b(?:for|to use)\b.{0,20}\b(?:long[- ]context|1m context|context window|fast mode"
    r"|(?:this|that|the) (?:\w+ )?model\b)"
    r"|\b(?:long[- ]context|1m context|fast mode)\b.{0,60}\b(?:requires?|needs?)\b.{0,30}"
    r"\b(?:usage|credits?|overages?)\b"
    r"|(?:\bmodel\b.{0,60}|\w \d[\w.]* )\b(?:requires?|needs?) (?:usage|available|paid|extra)"
    r" (?:credits?|usage)\b",
    _I,
)
_MONEY = LazyPattern(
    # not "No credits were charged"
    rf"\b{_LACKING}\s+(?:[\w'-]+\s+){{0,3}}?{_PURSE}\b"
    r"(?!\s(?:were|was|will be|have been|has been) (?:charged|used|consumed|deducted|billed)\b)"
    rf"|\b{_PURSE}\b.{{0,60}}?\b{_AUX}(?:insufficient|too low|exhausted|depleted|used up|not enough"
    r"|not sufficient|empty|negative|run out|ran out|expired|below|isn't enough)\b"
    r"|\b(?:in arrears|arrearage|overdue|past due|outstanding (?:bill|invoice|balance|payment)s?"
    r"|unpaid (?:bill|invoice|balance)s?|(?:in|not in) good standing|owes?\b.{0,20}\bfee)\b"
    r"|\b(?:billing|payment)\b.{0,40}\b(?:required|failed|declined|hard limit|not active|inactive"
    r"|disabled|suspended|problem)\b|\baccount is not active\b|\bno (?:valid )?payment method\b"
    r"|\b(?:subscription|plan|package|membership|trial)\b(?!.{0,30}\b(?:token|key|login|session)\b)"
    r".{0,40}\b(?:expired|ended|lapsed|cancell?ed|inactive|not active|terminated)\b"
    r"|\bno active (?:subscription|plan)\b|\bpayment required\b"
    r"|\brequires? (?:an? )?(?:valid |active )?(?:credit card|payment method|billing account)\b"
    # balance not enough, used up, zero or negative
    rf"|{_PURSE_ZH}.{{0,12}}(?:不足|用尽|用完|耗尽|过低|不够|为(?:0|零|负))"
    # in arrears; bill overdue; no usable package
    "|欠费|账单.{0,6}逾期|已逾期|逾期未|无可用资源包"
    # the package is used up, the plan has expired or was never opened
    rf"|资源包.{{0,8}}{_SPENT_ZH}|{_PLAN_ZH}.{{0,12}}(?:过期|到期|失效|未开通|已终止)"
    # please top up
    "|请(?:先|及时|尽快)?(?:前往.{0,12})?充值",
    _I,
)
#: Advice that stands beside other refusals too: it counts where nothing else does.
_PAY = LazyPattern(
    r"\b(?:please|must|need to|have to)\b.{0,30}\b(?:top[- ]?up|recharge|add (?:more )?(?:credits?"
    r"|funds)|purchase (?:more |additional )?credits?|buy (?:more )?credits?"
    r"|(?:add|enter|provide) (?:or update )?(?:your |a )?(?:payment method|credit card))\b",
    _I,
)
_PLAN_SPENT = LazyPattern(
    rf"\b{_SPENDING}\s+(?:.{{0,80}}?[\s(/-])?{_PLAN}\b"
    rf"|\b(?:over|past) (?:your |the |its )?{_PLAN}\b"
    rf"|\b{_PLAN}\b.{{0,80}}?\b{_AUX}{_SPENT}\b|\bno quota\b"
    rf"|\ball\b.{{0,40}}?\b{_PLAN}\b.{{0,40}}?\b{_AUX}used\b"
    r"|\byou(?:'ve| have)? (?:just )?(?:reached|hit|exceeded) your .{0,40}?\blimits?\b"
    r"|\bexhausted your (?:\w+ )?capacity\b"
    r"|\byou(?:'ve| have)? (?:got |only )?(?:0|no|zero) (?:[\w-]+ ){0,3}?(?:requests?|messages?"
    r"|tokens|calls|usage|quota) (?:left|remaining)\b"
    r"|\b(?:blocked|paused|suspended|stopped)\b.{0,60}?\b(?:due to|because of|by)\b"
    rf".{{0,40}}?\b{_PLAN}"
    rf"|{_QUOTA_ZH}.{{0,14}}(?:{_SPENT_ZH}|失败)|{_SPENDING_ZH}.{{0,18}}{_QUOTA_ZH}"
    rf"|{_PERIOD_ZH}.{{0,10}}(?:上限|额度|配额|限额|用量).{{0,10}}{_SPENT_ZH}"
    rf"|{_SPENDING_ZH}.{{0,14}}{_PERIOD_ZH}.{{0,10}}(?:上限|限制)|(?:使用|用量|调用|消费|花费|支出)(?:次数)?(?:上限|限额)"
    "|剩余额度.{0,12}为(?:0|零)",
    _I,
)
#: A plan, model or tier that is another one than the account's.
_NOT_INCLUDED = LazyPattern(
    r"\b(?:plan|subscription|tier|package|membership)\b.{0,60}\b(?:(?:does|do|is|are) ?n[o']t"
    r"|not|cannot|can't)\b.{0,30}\b(?:includ\w+|support\w*|cover\w*|allow\w*|have access|available"
    r"|permit\w*|entitled|eligible)\b"
    r"|\bnot (?:yet )?(?:available|included|supported|enabled|accessible|offered)\b.{0,20}"
    r"\b(?:in|on|for|with|by|under)\b.{0,20}\b(?:plan|tier|subscription|package)\b"
    r"|\bonly (?:available|included|supported|enabled|accessible|offered)\b.{0,20}"
    r"\b(?:in|on|for|with|to|under)\b.{0,30}\b(?:plans?|tiers?|subscri\w+|packages?|members\w*)\b"
    r"|\bmodel\b.{0,60}\bnot (?:yet )?(?:available|included|supported|enabled|accessible)\b"
    r".{0,10}\b(?:in|on|for|to|with)\b.{0,10}\b(?:account|organi[sz]ation|workspace|project|team)\b"
    r"|\b(?:model|feature)\b.{0,40}\b(?:requires?|needs?)\b.{0,30}\b(?:subscription|plan|upgrade)\b"
    r"|\bnot subscribed to\b"
    r"|\b(?:upgrade|subscribe)\b.{0,20}\bto (?:access|use) (?:this|the) (?:model|feature)\b"
    rf"|(?:{_PLAN_ZH}|版本).{{0,16}}(?:不支持|未包含|不包含|暂未开放|无权|没有权限|尚未包含)"
    "|(?:升级|订阅|开通).{0,12}(?:才能|方可|即可)(?:使用|访问|调用)",
    _I,
)
_RATE = LazyPattern(
    r"\brate[- ]?limit(?:s|ed|ing)?\b"
    r"|\bconcurren(?:cy|t)\b.{0,80}\b(?:limits?|limited|exceed\w*|high|reduce|reached|too many"
    r"|max\w*|quota)\b|\b(?:high|too (?:many|high)|max\w*|exceed\w*|reached|limit).{0,30}"
    r"\bconcurren(?:cy|t)\b|\bthrottl(?:ed|ing)\b"
    r"|\b(?:requests?|call|tokens?) (?:frequency|rate)\b.{0,40}"
    r"\b(?:limit\w*|exceed\w*|high|reduce)\b"
    r"|\b(?:gauge|rate) quota\b"
    r"|\btoo many requests\b.{0,60}\b(?:within|in) (?:a |the |too )?(?:short|brief|little)\b"
    r"|\bhigh frequency\b|\brequests? (?:are |is )?too (?:frequent|fast)\w*\b"
    r"|\b(?:(?:[RTI]|[IO]T)P[SMHD]|QPS)\b.{0,40}\b(?:limit|exceed\w*|reached)\b"
    r"|(?<!total )(?<!free )\brequests? limits? (?:(?:is|was|has been) )?(?:exceeded|reached|hit)\b"
    r"|\b(?:limit|exceed\w*|reached)\b.{0,60}\b(?:(?:[RTI]|[IO]T)P[SMHD]|QPS)\b"
    r"|\b(?:requests?|tokens?|queries|calls) (?:per|/) ?(?:sec|min|hour|day)\w*\b"
    r"|\bper[- ](?:second|minute)\b.{0,40}\b(?:limit\w*|exceed\w*)\b"
    # requests too frequent, too many
    "|(?:请求|调用|访问|操作)(?:过于|太|过)(?:频繁|快)|请求(?:数|次数)?过多"
    # concurrency too high
    "|并发.{0,10}(?:过高|过多|超|上限|限制|限流|达到)|(?:超|达).{0,10}并发"
    # rate or frequency limited; throttled
    "|(?:速率|频率|速度).{0,6}(?:限制|限流|过高|过快|超|上限)|限流|限速|限频"
    # of a minute or second
    "|分钟内?最多.{0,4}请求|请求(?:次)?数限制|每(?:分钟|秒).{0,16}(?:上限|限制|超|达)|(?:超|达).{0,20}每(?:分钟|秒)"
    "|(?:RPM|TPM|QPS).{0,12}(?:超|达|上限|限)|(?:超|达).{0,12}(?:RPM|TPM|QPS)",
    _I,
)
_CAPACITY = LazyPattern(
    r"^overloaded\b|\b(?:engine|model|server|service|system)s? (?:is |are |may be |might be )?"
    r"(?:currently |temporarily )*(?:overload(?:ed)?|busy|at capacity|unavailable)\b"
    r"|\bexperiencing high (?:traffic|demand|load)\b"
    r"|\bhigh (?:traffic|demand)\b.{0,30}\bright now\b"
    r"|\b(?:we(?:'re| are)|(?:servers?|services?|systems?|model|provider|engine) (?:is|are))"
    r" (?:currently |now )?(?:receiving|experiencing|seeing|handling|under)\b.{0,20}?\b(?:too many"
    r"|high|heavy|large)\b.{0,20}?\b(?:requests|traffic|demand|load|volume)\b(?!.{0,40}\byour\b)"
    r"|\bworker\b.{0,30}\blimit\b"
    r"|\bno capacity available\b|\bover capacity\b|\bat (?:full |max(?:imum)? )?capacity\b"
    r"|(?<!tier )\bcapacity (?:is |was |has been )?(?:currently |temporarily )?"
    r"(?:exhausted|exceeded|full|limited)\b"
    r"|\btoo busy\b"
    r"|\ball (?:of the )?(?:accounts?|credentials|keys|channels|providers|upstreams)\b.{0,60}?"
    r"\b(?:exhausted|cooling down|in cooldown|rate[- ]?limited|unavailable|busy)\b"
    r"|\bserver is temporarily limiting requests\b"
    r"|\bno (?:available (?:accounts?|channels?|deployments?|providers?|upstreams?)"
    r"|(?:deployments?|channels?|healthy deployments?) available)\b"
    # too many visits; server busy, overloaded, unavailable; no channel
    "|(?:访问|请求)量(?:过大|较大|过高)|(?:服务器?|系统|模型|引擎).{0,6}(?:繁忙|过载|不可用)"
    "|负载(?:过高|已饱和|较高)|算力不足|(?:无|没有)可用的?渠道|渠道不可用|暂无可用",
    _I,
)

# -- what is about the request, whatever else it says

#: What is limited is said not to be the account's.
_YOURS = r"\bnot (?:your|due to|because of|a|related to)(?: \w+)? (?:usage|quota|plan|limit)"
_NOT_YOURS = LazyPattern(_YOURS, _I)
_REQUEST = LazyPattern(
    rf"{_YOURS}"
    r"|^(?:invalid|unsupported|unknown|missing|malformed|unexpected|failed to parse)\b"
    r"|\bis not a valid\b|\bcontext[ _-](?:length|window|size|limit)s?\b(?!.{0,30}\bcredits?\b)"
    r"|\bmax(?:imum)?[ _-](?:\w+[ _-])?"
    r"(?:tokens?|length|size|context|output|input|characters?|duration)\b"
    r"|\b(?:too (?:long|large|big|many (?:tools?|images?|files?|messages|functions?|items|inputs"
    r"|characters|documents|attachments|tokens in)))\b|\b(?:file|image|video|audio|payload|body"
    r"|upload|attachment|prompt|input|request|message|document|string|entity) "
    r"(?:\w+ )?(?:size|length|count|entity)\b|\bfiles? quota\b"
    r"|\bnumber of (?:tools?|functions?|messages?|images?"
    r"|files?|items?|choices|documents?|inputs?|labels?|tokens in|characters|stop)\b"
    r"|\b(?:tools?|functions?|files?|images?|attachments?)(?: count)? limit\b"
    r"|\b(?:thinking|reasoning|(?<!ly )token|context)[ ._-]budget|budget[ ._-]tokens|\bstorage\b"
    r"|\bupload|\bpixels?\b|\bresolution\b|\bcharacters?\b|\bbatch(?:es)?\b|\benqueued\b"
    r"|\bfine[- ]tun|\busage (?:polic|guideline|terms)|\bpolic(?:y|ies)\b|\bguidelines?\b|\bviolat"
    r"|\bmoderation\b|\bsafety\b|\bflagged\b|\bcontent filter|\bharmful\b"
    "|输入|上下文|字符|文件|图片|附件|上传|长度|敏感|违规|不合规|审核|安全策略|工具数|消息数|参数|提示词",
    _I,
)
#: Where a status is about the request these too: the sentence explains a field of it.
_FIELD = LazyPattern(
    r"\b(?:in)?valid\b|\bunsupported\b|\bunexpected\b|\bunknown\b|\bmissing\b|\bmalformed\b"
    r"|\bmust (?:be|have|not|contain|match)\b|\bshould (?:be|have|not)\b|\bexpected\b"
    r"|\bparameters?\b"
    r"|\bfields?\b|\bpropert(?:y|ies)\b|\barguments?\b|\bvalues?\b|\benum\b|\bschema\b|\bjson\b"
    r"|\bpars(?:e|ing)\b|\bdecod|\bdeserial|\bformat\b|\btool[ _]calls?\b|\bfunction[ _]calls?\b"
    r"|\bis not (?:a|an|one|allowed|supported)\b|\b(?:messages|content|input|tools)[.\[]"
    r"|\bthe (?:user|text|prompt|message)\b|\bwrote\b|\bsaid\b|\bsays\b|\bgreater than\b"
    r"|\bless than\b",
    _I,
)

# What begins a sentence about the account.
_BEGINS = LazyPattern(
    r"(?:(?:sorry|oops|unfortunately|error|warning|attention|notice)[,:!]? )?"
    r"(?:you(?:'ve| have|'re| are| ran| do| don't| used| hit| exceeded| reached| currently| now"
    r"|\s\()"
    rf"|(?:your|the|this|this account's|user'?s?|account|current|an?|all) (?:[\w/'-]+ ){{0,3}}?"
    rf"(?:{_PLAN}|{_PURSE}|plan|subscription|account|organi[sz]ation|workspace|team|trial|key"
    r"|user)\b"
    rf"|(?:{_PLAN}|{_PURSE})\b|{_LACKING}\s+(?:[\w'-]+\s+){{0,2}}?(?:{_PLAN}|{_PURSE})\b"
    rf"|(?:exceeded\w*|exhausted|reached|over|out of|hit)\b|payment\b|billing\b|credits?\b"
    r"|(?:[\w-]+ ){0,3}?(?:quota|budget)s? (?:is|has|was|for|of|exceeded|exhausted|not)\b"
    r"|(?:api )?access\b|account\b|organi[sz]ation\b|subscription\b|\w+ plan\b"
    r"|(?:(?:extra )?usage|fast mode|long[- ]context|1m context)\b|rate limit"
    r"|too many requests|no active\b|spend\w*\b)"
    rf"|[^,。]{{0,16}}?(?:余额|{_QUOTA_ZH}|{_PLAN_ZH}|欠费|账[户号]|预扣费|已[达用]|您|本月|本周|今日|免费|积分"
    "|用户)",
    _I,
)
#: What begins a sentence about what a plan includes.
_NAMES_MODEL = LazyPattern(
    r"(?:the |this |requested |user )*(?:model|users?)\b|[\w.:/@ -]{1,80}? (?:is|are) not (?:yet "
    r"|currently )?(?:available|included|enabled) (?:in|on|with|for|by|under) (?:your|the|this)\b",
    _I,
)
#: What gateways and SDKs put before a vendor's sentence.
_WRAPPED = LazyPattern(
    r"^(?:\s*(?:error code:? ?\d{3}|http \d{3}|\[?\d{3,5}\]?|\(\d{3}\)"
    r"|(?:[\w-]+\.)*\w+(?:Error|Exception)"
    r"|api error|error from provider(?: \([^)]{0,60}\))?|upstream(?: error)?|error|request failed"
    r"|bad request|forbidden|unauthorized|access denied|payment required|permission denied"
    r"|provider returned error)\s*[-:,.\]\[()]*\s+|\s*\[\d{3,5}\]\s*\[?)+",
    _I,
)

#: Narrow before wide: "concurrency allocated quota exceeded" is no quota.
_IN_ORDER: tuple[tuple[Meaning, LazyPattern[str]], ...] = (
    (Meaning.NOT_INCLUDED, _NOT_INCLUDED),
    (Meaning.RATE, _RATE),
    (Meaning.PLAN, _PLAN_SPENT),
    (Meaning.MONEY, _MONEY),
    (Meaning.MONEY, _PAY),
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

_CAPACITY_CODE = LazyPattern(
    r"(?:^|_)(?:insufficient|no|low|exceeded)_(?:\w+_)?capacity(?:_|$)"
    r"|(?:^|model_|server_|system_|engine_)capacity_(?:\w+_)?(?:exceeded|exhausted|full|limited)"
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
        elif _CAPACITY_CODE.search(code) or not parts.isdisjoint(("overload", "overloaded")):
            found.add(Meaning.CAPACITY)
    return _first(found)
