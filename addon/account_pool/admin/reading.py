"""What can be looked at: one function an address."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

from account_pool import __version__
from account_pool.admin import views
from account_pool.admin.bodies import DecisionsQuery, SessionsQuery, UsageQuery
from account_pool.admin.decisions import decisions_view
from account_pool.admin.desk import Desk
from account_pool.admin.views import Json
from account_pool.supervision import tasks


async def health(desk: Desk, _asked: None) -> Json:
    return {
        "status": "ok",
        "version": __version__,
        "uptime_s": round(desk.service.now() - desk.started_at, 3),
        **desk.service.pool.health(),
        "pid": os.getpid(),
        "instance": desk.instance,
        "ready": desk.ready(),
        "stopping": desk.service.stopping,
        "failed_tasks": [
            {"name": name, "failures": f.failures, "error": f.error, "running": f.running}
            for name, f in tasks.failed.items()
        ],
        "state_problem": desk.service.state_problem(),
        **desk.source(),
    }


async def accounts(desk: Desk, _asked: None) -> Json:
    beside = await desk.beside()
    view = views.pool_view(desk.service.pool, desk.moment(), beside)
    return {**desk.source(), **view, "warnings": desk.service.warnings()}


async def provider(desk: Desk, name: str) -> Json:
    beside = await desk.beside()
    known = desk.actions.provider(name)
    return views.provider_view(desk.service.pool, known, desk.moment(), beside)


async def decisions(desk: Desk, asked: DecisionsQuery) -> Json:
    return decisions_view(desk.service.pool.decisions, asked, desk.service.now())


async def sessions(desk: Desk, asked: SessionsQuery) -> Json:
    return views.sessions_view(desk.service.sessions, desk.moment(), asked.limit)


async def usage(desk: Desk, asked: UsageQuery) -> Json:
    today = datetime.fromtimestamp(desk.service.wall_now(), UTC).date()
    first = (today - timedelta(days=asked.days - 1)).isoformat()
    served, resets = [
        {key: amounts for key, amounts in sums.items() if key[0] >= first}
        for sums in (await desk.counted("usage"), await desk.counted("resets"))
    ]
    return views.usage_view(served, resets)
