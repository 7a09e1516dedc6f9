"""The `pool.*` commands of mitmproxy and mitmweb."""

from __future__ import annotations

from collections.abc import Callable

from mitmproxy import command, exceptions

from account_pool.config import ConfigError
from account_pool.core.account import AccountKey
from account_pool.core.cooldown import BY_HAND, Cause
from account_pool.core.errors import PoolError
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.state import AccountState
from account_pool.proxy.reload import Changes
from account_pool.proxy.service import Service
from account_pool.proxy.told import duration
from account_pool.store.errors import StoreError

#: Why the accounts cannot be read again; the text is for people.
RELOAD_ERRORS = (ConfigError, StoreError, exceptions.OptionsError, OSError)


class Commands:
    """What a person can ask of the pool and tell it.

    Attributes:
        service: set by the addon that inherits this.
    """

    service: Service

    @command.command("pool.status")
    def status(self) -> str:
        """Show every account: its state, until when it cools and why."""
        service = self.service
        now = service.now()
        rows = [_row(state, now) for state in service.pool.accounts()]
        if not rows:
            return "the pool has no account"
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]])
            for row in rows
        )

    @command.command("pool.next")
    def next(self, provider: str) -> str:
        """Pass over the account whose turn it is; say who comes then."""
        chosen = self.service.pool.next(provider, now=self.service.now())
        if chosen is None:
            raise exceptions.CommandError(f"{provider}: no account is available")
        return str(chosen)

    @command.command("pool.cooldown")
    def cooldown(self, key: str, seconds: int) -> None:
        """Let an account (provider/label) rest for so many seconds."""
        if seconds <= 0:
            raise exceptions.CommandError("seconds must be 1 or more; use pool.clear to end one")
        by_hand = Outcome(
            cls=OutcomeClass.RATE_LIMIT,
            scope=Scope.ACCOUNT,
            cooldown_s=float(seconds),
            signal=BY_HAND,
        )
        self._on(key, lambda k: self.service.pool.mark_cooldown(k, by_hand, now=self._now()))

    @command.command("pool.clear")
    def clear(self, key: str) -> None:
        """End every cooldown of an account (provider/label) and use it again."""
        self._on(key, lambda k: self.service.pool.clear_cooldown(k, now=self._now()))

    @command.command("pool.remove")
    def remove(self, key: str) -> None:
        """Take an account (provider/label) out of the pool until its file is read again."""
        self._on(key, self._remove)

    @command.command("pool.reload")
    def reload(self) -> str:
        """Read accounts.yaml again and say what changed; a mistake in it changes nothing."""
        try:
            return str(self._reload())
        except RELOAD_ERRORS as e:
            raise exceptions.CommandError(str(e)) from None

    def _reload(self) -> Changes:
        """Read the accounts again. Raises one of RELOAD_ERRORS."""
        raise NotImplementedError

    def _remove(self, key: AccountKey) -> None:
        self.service.pool.remove(key)
        self.service.forget(key)

    def _now(self) -> float:
        return self.service.now()

    def _on(self, text: str, act: Callable[[AccountKey], object]) -> None:
        try:
            act(AccountKey.parse(text))
        except (ValueError, PoolError) as e:
            raise exceptions.CommandError(str(e)) from None


def _row(state: AccountState, now: float) -> tuple[str, str, str, str]:
    verdict, why = _state(state, now)
    return str(state.key), verdict, f"{state.in_flight} in flight, {state.served} served", why


def _state(state: AccountState, now: float) -> tuple[str, str]:
    """Return what an account does now, and why."""
    if not state.account.enabled:
        return "off", "enabled: false"
    if state.disabled is not None:
        return "disabled", _why(state.disabled)
    if not state.credentials:
        return "no credential", state.problem or "being fetched"
    active = [c for c in state.cooldowns.values() if c.active(now)]
    whole = max((c for c in active if c.model is None), key=lambda c: c.until, default=None)
    if whole is not None:
        return f"cools {duration(whole.until - now)}", _why(whole.cause)
    parts = [f"{c.model} cools {duration(c.until - now)}: {_why(c.cause)}" for c in active]
    if state.problem:
        parts.append(state.problem)
    return ("full" if state.full else "available"), "; ".join(parts)


def _why(cause: Cause) -> str:
    headers = ", ".join(f"{name}: {value}" for name, value in cause.evidence.items())
    return f"{cause.signal or cause.cls}" + (f" ({headers})" if headers else "")
