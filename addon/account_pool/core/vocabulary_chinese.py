"""The Chinese half of the vocabulary that refusals share: `meaning.py` reads it.

Vendors of mainland China answer in the language of the account. Words are put together as in
`vocabulary.py`: what is limited, what is said of it. Collected from the messages in
`tests/data/*.jsonl`, each with its source.
"""

from __future__ import annotations

import re

from account_pool.core.text_patterns import LazyPattern

_I = re.IGNORECASE

#: quota, limit, usage, package of calls or tokens, budget
_QUOTA = "(?:额度|配额|限额|用量|使用量|流量包|免费次数|调用次数|使用次数|预算|套餐|令牌|tokens?)"
#: day, week, month, hour, period, session
_PERIOD = (
    "(?:每日|每天|当日|当天|今日|本日|每周|本周|每月|本月|月度|周|日|小时|时段|会话|周期|使用)"
)
#: not enough, used up (three ways), full, over, reached
_SPENT = "(?:不足|用尽|用完|耗尽|已满|超出|超过|超限|达到上限|已达|达到|不够)"
#: has reached, exceeded, used up
_SPENDING = "(?:达到?|超出|超过|触及|用尽|用完|耗尽|超)"
#: balance, points, amount, fees, funds
_PURSE = "(?:余额|积分|点数|金额|费用|资金)"
#: plan, subscription, membership, trial, prepaid package
_PLAN = "(?:套餐|订阅|会员|试用|服务包|资源包)"

MONEY = LazyPattern(
    # balance not enough, used up, zero or negative
    rf"{_PURSE}.{{0,12}}(?:不足|用尽|用完|耗尽|过低|不够|为(?:0|零|负))"
    # in arrears; bill overdue; no usable package
    "|欠费|账单.{0,6}逾期|已逾期|逾期未|无可用资源包"
    # the package is used up, the plan has expired or was never opened
    rf"|资源包.{{0,8}}{_SPENT}|{_PLAN}.{{0,12}}(?:过期|到期|失效|未开通|已终止)"
    # please top up
    "|请(?:先|及时|尽快)?(?:前往.{0,12})?充值"
)
PLAN_SPENT = LazyPattern(
    rf"{_QUOTA}.{{0,14}}(?:{_SPENT}|失败)|{_SPENDING}.{{0,18}}{_QUOTA}"
    rf"|{_PERIOD}.{{0,10}}(?:上限|额度|配额|限额|用量).{{0,10}}{_SPENT}"
    rf"|{_SPENDING}.{{0,14}}{_PERIOD}.{{0,10}}(?:上限|限制)|(?:使用|用量|调用|消费|花费|支出)(?:次数)?(?:上限|限额)"
    "|剩余额度.{0,12}为(?:0|零)",
    _I,
)
RATE = LazyPattern(
    # requests too frequent, too many
    "(?:请求|调用|访问|操作)(?:过于|太|过)(?:频繁|快)|请求(?:数|次数)?过多"
    # concurrency too high
    "|并发.{0,10}(?:过高|过多|超|上限|限制|限流|达到)|(?:超|达).{0,10}并发"
    # rate or frequency limited; throttled
    "|(?:速率|频率|速度).{0,6}(?:限制|限流|过高|过快|超|上限)|限流|限速"
    # of a minute or second
    "|每(?:分钟|秒).{0,16}(?:上限|限制|超|达)|(?:超|达).{0,20}每(?:分钟|秒)"
    "|(?:RPM|TPM|QPS).{0,12}(?:超|达|上限|限)|(?:超|达).{0,12}(?:RPM|TPM|QPS)",
    _I,
)
CAPACITY = LazyPattern(
    # too many visits; server busy, overloaded, unavailable; no channel
    "(?:访问|请求)量(?:过大|较大|过高)|(?:服务器?|系统|模型|引擎).{0,6}(?:繁忙|过载|不可用)"
    "|负载(?:过高|已饱和|较高)|算力不足|(?:无|没有)可用的?渠道|渠道不可用|暂无可用"
)
NOT_INCLUDED = LazyPattern(
    rf"(?:{_PLAN}|版本).{{0,16}}(?:不支持|未包含|不包含|暂未开放|无权|没有权限|尚未包含)"
    "|(?:升级|订阅|开通).{0,12}(?:才能|方可|即可)(?:使用|访问|调用)"
)
#: About the request: input, context, characters, file, picture, length, tools, content policy.
REQUEST = LazyPattern(
    "输入|上下文|字符|文件|图片|附件|上传|长度|敏感|违规|不合规|审核|安全策略|工具数|消息数|参数|提示词"
)
#: What begins a sentence about the account: it has no articles.
BEGINS = LazyPattern(
    rf"[^,。]{{0,16}}?(?:余额|{_QUOTA}|{_PLAN}|欠费|账[户号]|预扣费|已[达用]|您|本月|本周|今日|免费|积分"
    "|用户)",
    _I,
)
