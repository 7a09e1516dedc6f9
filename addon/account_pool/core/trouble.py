"""Where the next request should not begin: accounts that were overloaded, or did not answer.

Nothing here is a cooldown: the account is as it was, and serves whoever has nowhere else to
go. An overload is remembered by account and model for a minute, unless a second account is
overloaded as well: then it is the server's, and nobody gains by moving. Silence and broken
connections are remembered for the conversation that met them (design.md section 7).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from account_pool.core.account import AccountKey

#: How long an overload of an account for a model is remembered, seconds.
OVERLOADED_S = 60.0
#: How long a conversation keeps away from an account that did not answer it, seconds: that of
#: its idle time.
LEFT_S = 1800.0
#: Models, and conversations, that are remembered per provider.
MAX_REMEMBERED = 512
#: First bytes that are remembered per model, and how many are needed to say what is usual.
MAX_SAMPLES, MIN_SAMPLES = 200, 20
MAX_MODELS = 128
#: Silence is long beyond four times the usual, at most, and where nothing is known; seconds.
USUAL_FACTOR, LONGEST_S, UNKNOWN_S = 4.0, 60.0, 30.0


class Trouble:
    """What requests to one provider have lately met. Mostly nothing, which is quick to see.

    Attributes:
        by_model: accounts that were overloaded, and until when that is remembered.
        by_request: the account that did not answer, by what it was: a conversation, or
            requests of one kind; and until when.
    """

    def __init__(self) -> None:
        self.by_model: dict[str | None, dict[AccountKey, float]] = {}
        self.by_request: dict[Hashable, tuple[AccountKey, float]] = {}

    def overloaded(self, key: AccountKey, model: str | None, now: float) -> None:
        """*key* was overloaded for *model*."""
        known = self.by_model.pop(model, {})
        if len(self.by_model) >= MAX_REMEMBERED:
            del self.by_model[next(iter(self.by_model))]
        active = {k: until for k, until in known.items() if now < until}
        self.by_model[model] = active | {key: now + OVERLOADED_S}

    def left(self, what: Hashable, key: AccountKey, now: float) -> None:
        """*key* did not answer *what*: a conversation, or requests of one kind."""
        self.by_request.pop(what, None)
        if len(self.by_request) >= MAX_REMEMBERED:
            del self.by_request[next(iter(self.by_request))]
        self.by_request[what] = (key, now + LEFT_S)

    def served(self, what: Hashable) -> None:
        """*what* was answered: it has found its account."""
        self.by_request.pop(what, None)

    def avoided(self, what: Hashable, model: str | None, now: float) -> frozenset[AccountKey]:
        """Return the accounts that a request should not begin on while another can serve."""
        known = self.by_model.get(model, {})
        active = [key for key, until in known.items() if now < until]
        avoided = set(active) if len(active) == 1 else set()
        key, until = self.by_request.get(what, (None, now))
        if key is not None and now < until:
            avoided.add(key)
        return frozenset(avoided)


class FirstBytes:
    """How long accounts take to answer, by provider and model."""

    def __init__(self) -> None:
        self._samples: dict[tuple[str, str | None], deque[float]] = {}

    def note(self, provider: str, model: str | None, seconds: float) -> None:
        """An answer has begun after so many *seconds*."""
        samples = self._samples.get((provider, model))
        if samples is None:
            if len(self._samples) >= MAX_MODELS:
                del self._samples[next(iter(self._samples))]
            samples = self._samples[provider, model] = deque(maxlen=MAX_SAMPLES)
        samples.append(seconds)

    def silence_s(self, provider: str, model: str | None) -> float:
        """Return beyond how many seconds silence is longer than usual."""
        samples = sorted(self._samples.get((provider, model), ()))
        if len(samples) < MIN_SAMPLES:
            return UNKNOWN_S
        usual = samples[min(len(samples) * 99 // 100, len(samples) - 1)]
        return min(USUAL_FACTOR * usual, LONGEST_S)
