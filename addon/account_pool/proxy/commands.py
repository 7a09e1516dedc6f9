"""The `pool.*` commands of mitmproxy and mitmweb."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mitmproxy import command, exceptions, types

from account_pool.admin.http import ApiError
from account_pool.config.accounts_file import counted
from account_pool.core.account import AccountKey
from account_pool.core.cooldown import BY_HAND
from account_pool.core.decisions import By
from account_pool.core.errors import PoolError
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.proxy import status
from account_pool.proxy.reload import RELOAD_ERRORS, Reloader
from account_pool.proxy.service import Service

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
        lines = status.lines(
            states, service.sessions, service.pool.decisions, service.now(), whole="/" in only
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
