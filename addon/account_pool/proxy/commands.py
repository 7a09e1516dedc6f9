"""The `pool.*` commands of mitmproxy and mitmweb, and the table of `pool.status`.

That is lines of text in columns: mitmproxy's console and mitmweb show a list of lines, and
scripts get what people read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import islice

from mitmproxy import command, exceptions, types

from account_pool.admin.http import ApiError
from account_pool.config.accounts_file import counted
from account_pool.core import headroom
from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cooldown
from account_pool.core.decision_history import Record
from account_pool.core.decision_text import MAX_VALUES, asked_last, duration, evidence, line
from account_pool.core.decisions import By, Decision, Decisions, Kind, one_line
from account_pool.core.errors import PoolError
from account_pool.core.outcome import BY_HAND, Outcome, OutcomeClass, Scope
from account_pool.core.sessions import Sessions
from account_pool.core.state import AccountState
from account_pool.proxy.reload import RELOAD_ERRORS, Reloader
from account_pool.proxy.service import Service

#: Decisions that are shown.
LAST = 20

_HEAD = ("account", "state", "in flight", "served", "sessions", "left", "why")


def status_table(
    states: Iterable[AccountState],
    sessions: Sessions,
    decisions: Decisions,
    now: float,
    *,
    rows: Sequence[Record] = (),
    me: str = "",
    whole: bool = False,
) -> list[str]:
    """Return the table of the accounts *states*, and the decisions about them.

    Args:
        decisions: of this proxy.
        rows: of all proxies, as `DecisionsShown` has them; none: only this one's are known.
        me: the name of this proxy among them.
        whole: with every header value that is known, not only the first `MAX_VALUES`.
    """
    most = None if whole else MAX_VALUES
    states = list(states)
    homes = Counter(s.account for key in sessions if (s := sessions.peek(key, now)) is not None)
    table = _columns([_HEAD, *(_row(state, homes, most, now) for state in states)])
    providers = {state.key.provider for state in states}
    keys = {state.key for state in states}
    of_these = [d for d in decisions if d.provider in providers and _is_about(d, keys)]
    held = [d for d in of_these if d.kind is Kind.WAIT and d.ended_at is None]
    if held:
        waiting = [_entry(_own(d, now, me), me) for d in reversed(held)]
        table += ["", f"{len(held)} waiting now:", *waiting]
    names = set(map(str, keys))
    shared = (
        row
        for row in reversed(rows)
        if row["provider"] in providers
        and (row["account"] is None or {row["account"], row["to"]} & names)
    )
    last = list(islice(shared, LAST)) or [_own(d, now, me) for d in islice(of_these, LAST)]
    if last:
        table += ["", "last decisions, newest first:", *(_entry(row, me) for row in last)]
    return table


def _is_about(decision: Decision, keys: set[AccountKey]) -> bool:
    return decision.account is None or bool({decision.account, decision.to} & keys)


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # The last column is not padded.
    widths[-1] = 0
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _row(
    state: AccountState, homes: Counter[AccountKey], most: int | None, now: float
) -> tuple[str, ...]:
    verdict, why = _state(state, most, now)
    return (
        str(state.key),
        verdict,
        _in_flight(state),
        str(state.served),
        str(homes[state.key]),
        headroom.shown(state.headroom.windows.values(), now) or "-",
        "; ".join(why),
    )


def _in_flight(state: AccountState) -> str:
    there = f" + {state.in_flight_remote} elsewhere" if state.in_flight_remote else ""
    return f"{state.in_flight}{there}"


def _state(state: AccountState, most: int | None, now: float) -> tuple[str, list[str]]:
    """Return the state of an account, and the reasons."""
    active = sorted(
        (c for c in state.holds() if c.active(now)),
        key=lambda c: (c.model or "", c.until),
    )
    models = [
        f"{one_line(c.model)} {_cools(c, now)}: {evidence(c.cause, most)}"
        for c in active
        if c.model
    ]
    models += [
        f"{asked_last(v.until - now, v.covered)}: {evidence(v.cause, most)}"
        for v in state.verdicts.values()
        if v.active(now)
    ]
    if not state.account.enabled:
        return "off", ["enabled: false in accounts.yaml"]
    if state.disabled is not None:
        since = duration(now - state.disabled_at)
        return f"disabled {since} ago", [evidence(state.disabled, most)]
    if not state.credentials:
        return "no credential", [state.problem or "being fetched"]
    if state.problem:
        models.append(state.problem)
    whole = next((c for c in active if c.model is None), None)
    if whole is not None:
        ours = [] if whole.cause.hinted else ["no reset was named"]
        return _cools(whole, now), [evidence(whole.cause, most), *ours, *models]
    return ("full" if state.full else "available"), models


def _cools(cooldown: Cooldown, now: float) -> str:
    return f"on cooldown for {duration(cooldown.until - now)}"


def _own(decision: Decision, now: float, me: str) -> Record:
    """Return a decision of this proxy, *me*, as those of all are kept."""
    return {**decision.as_dict(now), "text": line(decision), "proxy": me}


def _entry(row: Record, me: str) -> str:
    """Return a decision with its time of day, how it ended if that is known, and whose it is.

    Of this proxy, *me*, that is not said.
    """
    at = f"{datetime.fromtimestamp(row['at']).astimezone():%H:%M:%S}"
    marks = f" [{row['times']} times]" if row["times"] > 1 else ""
    if row["kind"] in (Kind.COOLDOWN, Kind.DISABLE) and (by := row["released_by"]) is not None:
        after = duration((row["ended_at"] or row["at"]) - row["at"])
        marks += " [over]" if by == By.TIME else f" [ended after {after}, by {by}]"
    if row["proxy"] != me:
        marks += f" [{row['proxy']}]"
    return f"{at}  {row['kind']:8}  {row['text']}{marks}"


# -- the commands

#: Completed by mitmproxy as it is typed, and checked.
_PROVIDER = command.argument("provider", type=types.Choice("pool.options.providers"))
_KEY = command.argument("key", type=types.Choice("pool.options.accounts"))


class Commands:
    """The commands. Each docstring is the help that mitmproxy shows.

    Registered by `AccountPool`, and no addon: mitmproxy walks over every addon eight times
    per request.
    """

    def __init__(self, service: Service, reloader: Reloader) -> None:
        self._service = service
        self._reloader = reloader

    @command.command("pool.status")
    def status(self, only: str = "") -> Sequence[str]:
        """Show the accounts, their cooldowns with causes, waiting requests and the last decisions.

        All of them, those of one provider, or one account (provider/label) in full detail.
        """
        service = self._service
        states = [state for state in service.pool.accounts if _is_meant(state.key, only)]
        if only and not states:
            known = ", ".join(str(state.key) for state in service.pool.accounts) or "none"
            raise exceptions.CommandError(f"{only!r} has no account; the accounts are: {known}")
        if not states:
            return ["the pool has no account"]
        lines = status_table(
            states,
            service.sessions,
            service.pool.decisions,
            service.now(),
            rows=service.decided.read_already(),
            me=service.fleet.process_name,
            whole="/" in only,
        )
        if not only and (path := self._reloader.file.path) is not None:
            lines += ["", counted(len(states), path)]
        return lines

    @command.command("pool.next")
    @_PROVIDER
    def next(self, provider: str) -> str:
        """Skip the account whose turn it is; print the one that is next."""
        chosen = self._service.pool.next(provider, now=self._service.now())
        if chosen is None:
            raise exceptions.CommandError(f"{provider}: no account is available")
        return str(chosen)

    @command.command("pool.cooldown")
    @_KEY
    def cooldown(self, key: str, seconds: int) -> None:
        """Put an account (provider/label) on cooldown for a number of seconds."""
        if seconds <= 0:
            raise exceptions.CommandError("seconds must be 1 or more; use pool.clear to end one")
        by_hand = Outcome(
            cls=OutcomeClass.RATE_LIMIT,
            scope=Scope.ACCOUNT,
            cooldown_s=float(seconds),
            signal=BY_HAND,
        )
        pool = self._service.pool
        self._on(key, lambda k: pool.health.mark_cooldown(k, by_hand, now=self._now(), by=By.HAND))

    @command.command("pool.clear")
    @_KEY
    def clear(self, key: str) -> None:
        """End every cooldown of an account (provider/label) and enable it."""
        self._on(key, lambda k: self._service.pool.accounts.clear_cooldown(k, now=self._now()))

    @command.command("pool.remove")
    @_KEY
    def remove(self, key: str) -> None:
        """Take an account (provider/label) out of the pool until accounts.yaml is reloaded."""
        self._on(key, self._reloader.remove)

    @command.command("pool.add")
    def add(self, provider: str, label: str, token: str) -> str:
        """Add an account whose credential is env:NAME (a variable) or file:PATH (a file)."""
        kind, _, where = token.partition(":")
        if kind not in ("env", "file") or not where:
            # mitmproxy writes what is typed to a file.
            raise exceptions.CommandError(
                "token: write env:NAME or file:PATH, never the token itself"
            )
        entry = {"provider": provider, "label": label, "token": {kind: where}}
        try:
            return self._reloader.add(entry)
        except (ApiError, *RELOAD_ERRORS) as e:
            raise exceptions.CommandError(str(e)) from None

    @command.command("pool.reload")
    def reload(self) -> str:
        """Reload accounts.yaml and print what changed; a mistake in it changes nothing."""
        try:
            return str(self._reloader.reload())
        except RELOAD_ERRORS as e:
            raise exceptions.CommandError(str(e)) from None

    @command.command("pool.options.providers")
    def provider_options(self) -> Sequence[str]:
        """List every provider that has an account."""
        return sorted(self._service.pool.accounts.providers())

    @command.command("pool.options.accounts")
    def account_options(self) -> Sequence[str]:
        """List every account, as provider/label."""
        return [str(state.key) for state in self._service.pool.accounts]

    def _now(self) -> float:
        return self._service.now()

    def _on(self, text: str, act: Callable[[AccountKey], object]) -> None:
        try:
            act(AccountKey.parse(text))
        except (ValueError, PoolError) as e:
            raise exceptions.CommandError(str(e)) from None


def _is_meant(key: AccountKey, only: str) -> bool:
    """Return whether *only*, a provider or provider/label as people write it, is *key*."""
    if "/" not in only:
        return only.strip().lower() in ("", key.provider)
    try:
        return AccountKey.parse(only) == key
    except ValueError:
        return False
