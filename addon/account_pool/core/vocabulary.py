"""The English half of the vocabulary that refusals share: `meaning.py` reads it.

What is limited (a plan's name for it, a purse, a period) and what is said of it (reached,
insufficient, overdue), put together to patterns of one sentence. All are searched
case-insensitively in one sentence without quoted text.

Collected from the messages in `tests/data/*.jsonl`, each with its source.
"""

from __future__ import annotations

import re

from account_pool.core.text_patterns import LazyPattern

_I = re.IGNORECASE

# -- English: what is limited, and what is said of it

_PERIOD = (
    r"(?:(?:5|five|one|two|seven|\d{1,3})[- ]?(?:hours?|hrs?|h|days?|d|weeks?|months?)\b"
    r"|session|hourly|daily|weekly|monthly|yearly|annual|billing (?:cycle|period)|per[- ]day"
    r"|today'?s|this (?:week|month)'?s)"
)
_LIMIT = r"(?:limits?|caps?|quotas?|allowances?|allotments?|budgets?|windows?|thresholds?|max)"
_OWN = r"(?:token|coding|free|pro|plus|max|lite|team|base|subscription|premium|included|total)"
#: What a plan gives: its name alone, or a period or purse and the word limit.
_PLAN = (
    rf"(?:(?:{_PERIOD}|usage|plan|subscription|spend(?:ing)?|cost|credits?|budget|billing|account"
    rf"|organi[sz]ation|workspace|team|user|key|overage|free[- ]tier|fair[- ]use|trial|premium)"
    rf"'?s?[ /-]+(?:(?!rate\b)[\w/-]+ ){{0,3}}?{_LIMIT}"
    rf"|(?:(?:{_OWN}|allocated|individual|current|usage|user|token|account) )*quotas?"
    rf"|budgets?|allowances?|free (?:tier|usage|credits?|quota|allocation)|usage allocation"
    rf"|(?:{_PERIOD}|premium|free|included) (?:\w+ ){{0,2}}?"
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

EXTRA = LazyPattern(
    r"\b(?:usage|credits?|overages?|purchase)\b.{0,60}\b(?:required|needed|necessary)\b.{0,10}"
    r"\b(?:for|to use)\b.{0,20}\b(?P<for>long[- ]context|1m context|context window|fast mode)"
    r"|\b(?P<needs>long[- ]context|1m context|fast mode)\b.{0,60}\b(?:requires?|needs?)\b.{0,30}"
    r"\b(?:usage|credits?|overages?)\b",
    _I,
)
MONEY = LazyPattern(
    rf"\b{_LACKING}\s+(?:[\w'-]+\s+){{0,3}}?{_PURSE}\b"
    rf"|\b{_PURSE}\b.{{0,60}}?\b{_AUX}(?:insufficient|too low|exhausted|depleted|used up|not enough"
    r"|not sufficient|empty|negative|run out|ran out|expired|below|isn't enough)\b"
    r"|\b(?:in arrears|arrearage|overdue|past due|outstanding (?:bill|invoice|balance|payment)s?"
    r"|unpaid (?:bill|invoice|balance)s?|(?:in|not in) good standing|owes?\b.{0,20}\bfee)\b"
    r"|\b(?:billing|payment)\b.{0,40}\b(?:required|failed|declined|hard limit|not active|inactive"
    r"|disabled|suspended|problem)\b|\baccount is not active\b|\bno (?:valid )?payment method\b"
    r"|\b(?:subscription|plan|package|membership|trial)\b(?!.{0,30}\b(?:token|key|login|session)\b)"
    r".{0,40}\b(?:expired|ended|lapsed|cancell?ed|inactive|not active|terminated)\b"
    r"|\bno active (?:subscription|plan)\b|\bpayment required\b",
    _I,
)
#: Advice that stands beside other refusals too: it counts where nothing else does.
PAY = LazyPattern(
    r"\b(?:please|must|need to|have to)\b.{0,30}\b(?:top[- ]?up|recharge|add (?:more )?(?:credits?"
    r"|funds)|purchase (?:more |additional )?credits?|buy (?:more )?credits?"
    r"|add (?:or update )?(?:your |a )?payment method)\b",
    _I,
)
PLAN_SPENT = LazyPattern(
    rf"\b{_SPENDING}\s+(?:.{{0,80}}?[\s(/-])?{_PLAN}\b|\bover (?:your |the |its )?{_PLAN}\b"
    rf"|\b{_PLAN}\b.{{0,80}}?\b{_AUX}{_SPENT}\b|\bno quota\b"
    rf"|\ball\b.{{0,40}}?\b{_PLAN}\b.{{0,40}}?\b{_AUX}used\b"
    r"|\byou(?:'ve| have)? (?:just )?(?:reached|hit|exceeded) your .{0,40}?\blimits?\b",
    _I,
)
#: A plan, model or tier that is another one than the account's.
NOT_INCLUDED = LazyPattern(
    r"\b(?:plan|subscription|tier|package|membership)\b.{0,60}\b(?:(?:does|do|is|are) ?n[o']t"
    r"|cannot|can't)\b.{0,30}\b(?:includ\w+|support\w*|cover\w*|allow\w*|have access|available"
    r"|permit\w*|entitled|eligible)\b"
    r"|\bnot (?:yet )?(?:available|included|supported|enabled|accessible|offered)\b.{0,20}"
    r"\b(?:in|on|for|with|by|under)\b.{0,20}\b(?:plan|tier|subscription|package)\b"
    r"|\b(?:model|feature)\b.{0,40}\b(?:requires?|needs?)\b.{0,30}\b(?:subscription|plan|upgrade)\b"
    r"|\b(?:upgrade|subscribe)\b.{0,20}\bto (?:access|use) (?:this|the) (?:model|feature)\b",
    _I,
)
RATE = LazyPattern(
    r"\brate[- ]?limit(?:s|ed|ing)?\b"
    r"|\bconcurren(?:cy|t)\b.{0,80}\b(?:limits?|limited|exceed\w*|high|reduce|reached|too many"
    r"|max\w*|quota)\b|\b(?:high|too (?:many|high)|max\w*|exceed\w*|reached|limit).{0,30}"
    r"\bconcurren(?:cy|t)\b|\bthrottl(?:ed|ing)\b"
    r"|\b(?:requests?|call|tokens?) (?:frequency|rate)\b.{0,40}"
    r"\b(?:limit\w*|exceed\w*|high|reduce)\b"
    r"|\bhigh frequency\b|\brequests? (?:are |is )?too (?:frequent|fast)\w*\b"
    r"|\b(?:[RTI]|[IO]T)P[SMHD]\b.{0,40}\b(?:limit|exceed\w*|reached)\b"
    r"|\b(?:limit|exceed\w*|reached)\b.{0,60}\b(?:(?:[RTI]|[IO]T)P[SMHD]|QPS)\b"
    r"|\b(?:requests?|tokens?|queries|calls) (?:per|/) ?(?:sec|min|hour|day)\w*\b"
    r"|\bper[- ](?:second|minute)\b.{0,40}\b(?:limit\w*|exceed\w*)\b",
    _I,
)
CAPACITY = LazyPattern(
    r"\b(?:engine|model|server|service|system)s? (?:is |are |may be |might be )?"
    r"(?:currently |temporarily )*(?:overloaded|busy|at capacity|unavailable)\b"
    r"|\bexperiencing high (?:traffic|demand|load)\b"
    r"|\bhigh (?:traffic|demand)\b.{0,30}\bright now\b"
    r"|\bno capacity available\b|\bover capacity\b|\bat (?:full |max(?:imum)? )?capacity\b"
    r"|(?<!tier )\bcapacity (?:is |was |has been )?(?:currently )?(?:exhausted|exceeded|full)\b"
    r"|\btoo busy\b"
    r"|\bserver is temporarily limiting requests\b|\bno (?:available (?:channels?|deployments?"
    r"|providers?|upstreams?)|(?:deployments?|channels?|healthy deployments?) available)\b",
    _I,
)

# -- what is about the request, whatever else it says

REQUEST = LazyPattern(
    r"^(?:invalid|unsupported|unknown|missing|malformed|unexpected|failed to parse)\b"
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
    r"|\b(?:thinking|reasoning|token|context)[ ._-]budget|budget[ ._-]tokens|\bstorage\b|\bupload"
    r"|\bpixels?\b|\bresolution\b|\bcharacters?\b|\bbatch(?:es)?\b|\benqueued\b|\bfine[- ]tun"
    r"|\busage (?:polic|guideline|terms)|\bpolic(?:y|ies)\b|\bguidelines?\b|\bviolat|\bmoderation\b"
    r"|\bsafety\b|\bflagged\b|\bcontent filter|\bharmful\b|\bnot (?:your|due to|because of|a"
    r"|related to)(?: \w+)? (?:usage|quota|plan|limit)",
    _I,
)
#: Where a status is about the request these too: the sentence explains a field of it.
FIELD = LazyPattern(
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
BEGINS = LazyPattern(
    r"(?:(?:sorry|oops|unfortunately|error|warning|attention|notice)[,:!]? )?"
    r"(?:you(?:'ve| have|'re| are| ran| do| don't| used| hit| exceeded| reached| currently| now"
    r"|\s\()"
    rf"|(?:your|the|this|this account's|user'?s?|account|current|an?|all) (?:[\w/'-]+ ){{0,3}}?"
    rf"(?:{_PLAN}|{_PURSE}|plan|subscription|account|organi[sz]ation|workspace|team|trial|key"
    r"|user)\b"
    rf"|(?:{_PLAN}|{_PURSE})\b|{_LACKING}\s+(?:[\w'-]+\s+){{0,2}}?(?:{_PLAN}|{_PURSE})\b"
    rf"|(?:exceeded\w*|exhausted|reached|over|out of|hit)\b|payment\b|billing\b|credits?\b"
    r"|(?:[\w-]+ ){0,3}?(?:quota|budget)s? (?:is|has|was|for|of|exceeded|exhausted|not)\b"
    r"|account\b|organi[sz]ation\b|subscription\b|\w+ plan\b"
    r"|usage\b|extra usage\b|rate limit|too many requests|no active\b|spend\w*\b)",
    _I,
)
#: What gateways and SDKs put before a vendor's sentence.
WRAPPED = LazyPattern(
    r"^(?:\s*(?:error code:? ?\d{3}|http \d{3}|\[?\d{3,5}\]?|\(\d{3}\)"
    r"|(?:[\w-]+\.)*\w+(?:Error|Exception)"
    r"|api error|error from provider(?: \([^)]{0,60}\))?|upstream(?: error)?|error|request failed"
    r"|bad request|forbidden|unauthorized|access denied|payment required|permission denied"
    r"|provider returned error)\s*[-:,.\]\[()]*\s+|\s*\[\d{3,5}\]\s*\[?)+",
    _I,
)
