"""Whose limits an account runs into: accounts of one organisation, team or project share them.

Answers name the owner (`openai-organization`, "team T ..."); nobody has to write it down.
"""

from __future__ import annotations

from account_pool.core.account import AccountKey


class Owners:
    """Who owns which account, as far as answers have said."""

    __slots__ = ("_members", "_owner")

    def __init__(self) -> None:
        self._owner: dict[AccountKey, str] = {}
        self._members: dict[tuple[str, str], set[AccountKey]] = {}

    def learn(self, key: AccountKey, owner: str) -> None:
        """Note that *key* is one of *owner*'s."""
        if self._owner.get(key) != owner:
            self.forget(key)
            self._owner[key] = owner
            self._members.setdefault((key.provider, owner), set()).add(key)

    def forget(self, key: AccountKey) -> None:
        """*key* is gone, or has another credential."""
        owner = self._owner.pop(key, None)
        if owner is not None:
            members = self._members[key.provider, owner]
            members.discard(key)
            if not members:
                del self._members[key.provider, owner]

    def of(self, key: AccountKey) -> str | None:
        """Return the owner of *key*, None while no answer has named one."""
        return self._owner.get(key)

    def others(self, key: AccountKey) -> list[AccountKey]:
        """Return the other accounts of the owner of *key*, sorted."""
        owner = self._owner.get(key)
        if owner is None:
            return []
        return sorted(self._members[key.provider, owner] - {key})
