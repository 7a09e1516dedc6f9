"""An account of GET /account-pool in words and lines: what `list` and `status` show of it.

Pure: values of the answer in, text out. What a proxy of another version leaves out, or says
beyond what is known here, is no error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from math import ceil, inf
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from account_pool.config.accounts_file import shown
from account_pool.core.decision_text import MAX_VALUES, duration

Json = Mapping[str, Any]

#: Text is wrapped by it; nothing is printed on it.
_CONSOLE = Console(file=StringIO())
#: How states are shown, where not as the JSON spells them.
STATES = {"cooling": "on cooldown", "no_credential": "no credential"}
#: Available, but for some models.
PARTLY = "partly"
#: A share below this is low, and one below the other as good as none.
LOW_SHARE, EMPTY_SHARE = 0.2, 0.02

_STYLES = {"available": "green", "full": "yellow", "cooling": "yellow", PARTLY: "yellow"}
#: Every other state needs its owner; but for one that the owner chose.
NEEDS_OWNER = "red"
_CHOSEN = {"off": "dim"}

_FULL, _EMPTY = "█", "░"
#: What is left of a window in a list: "100%".
_PERCENT_WIDTH = 4
BAR_WIDTH = 10
#: A bar in a list of 80 columns, where names are cut in the middle beyond so much: what
#: reasons need beside them.
_SHORT_BAR, _SHORT_NAME = 8, 20
_NAME_WIDTH = 24
#: What a reason needs to be of use.
_WHY_WIDTH = 12
#: Below it a list has one column for a state and when it ends, without reasons.
_NARROW = 60
#: From where there is room for whole bars and names.
_WIDE = 100


def clean(text: object) -> str:
    """Return *text* without what a terminal would act on: some of it is what servers sent."""
    text = str(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def left_s(until: Json, now: float) -> float:
    """Return how long *until*, something with `until_at`, lasts from *now* (epoch seconds)."""
    try:
        return max(datetime.fromisoformat(until["until_at"]).timestamp() - now, 0.0)
    except (KeyError, TypeError, ValueError):
        return float(until.get("remaining_s") or 0.0)


def state_of(account: Json) -> str:
    """Return the state of an account as the JSON has it, or PARTLY."""
    state = str(account.get("state", ""))
    return PARTLY if state == "available" and _of_models(account) else state


def state_word(account: Json) -> str:
    return STATES.get(state := state_of(account), clean(state))


def style_of(state: str) -> str:
    """Return the colour of a state; one that is not known here needs its owner."""
    return _STYLES.get(state) or _CHOSEN.get(state) or NEEDS_OWNER


def whole_cooldown(account: Json) -> Json | None:
    """Return the cooldown of the whole account that lasts longest."""
    whole = [c for c in account.get("cooldowns", ()) if c.get("model") is None]
    return max(whole, key=lambda c: c.get("until_at") or "", default=None)


def _of_models(account: Json) -> list[Json]:
    cooldowns = [c for c in account.get("cooldowns", ()) if c.get("model") is not None]
    return sorted(cooldowns, key=lambda c: c.get("until_at") or "")


def back_in_s(account: Json, now: float) -> float | None:
    """Return when an account serves again, or its first model; None if that is not known."""
    if (whole := whole_cooldown(account)) is not None:
        return left_s(whole, now)
    models = _of_models(account) if state_of(account) == PARTLY else ()
    return left_s(models[0], now) if models else None


def share_of(account: Json) -> float | None:
    """Return what is left of the tightest window, 0 to 1; None if none is known."""
    tightest = account.get("tightest")
    return float(tightest["remaining"]) if tightest else None


# -- in which order, and which of them

_ORDER = {"cooling": 2, PARTLY: 3, "full": 4, "available": 6, "off": 7}


def attention(account: Json, now: float) -> tuple[float | str, ...]:
    """Return by what accounts are sorted: what needs its owner first, what he put away last.

    Of accounts on cooldown the first is the one that returns first.
    """
    state, share = state_of(account), share_of(account)
    rank = _ORDER.get(state, 0)
    if rank > 1 and state != "off" and account.get("problem"):
        rank = 1
    if state == "available" and rank == 6:
        if account.get("asked_last"):
            rank = 3
        elif share is not None and share <= LOW_SHARE:
            return 5, share, str(account["key"])
    back_s = back_in_s(account, now)
    # To the second, or two that were refused together would change places.
    return rank, inf if back_s is None else round(back_s), str(account["key"])


def matches(account: Json, words: str) -> bool:
    """Say whether each of *words* occurs in what an account's line says."""
    said = " ".join((str(account["key"]), state_word(account), cause_in_brief(account))).casefold()
    return all(word in said for word in words.casefold().split())


# -- causes


def cause_in_brief(account: Json) -> str:
    """Return why an account does not serve, or what it does, in a few words."""
    if disabled := account.get("disabled"):
        return _verdict(disabled)
    if account.get("problem"):
        return clean(account["problem"])
    if (whole := whole_cooldown(account)) is not None:
        return _verdict(whole)
    if models := _of_models(account):
        name = clean(models[0]["model"]) if len(models) == 1 else f"{len(models)} models"
        return f"{_verdict(models[0])} ({name})"
    if asked_last := account.get("asked_last"):
        return f"asked last: {_verdict(asked_last[0])}"
    if account.get("state") == "available" and account.get("in_flight"):
        return f"{account['in_flight']} in flight"
    return clean(account.get("reason") or "")


def _verdict(cause: Json) -> str:
    """Return `429 rate_limit`."""
    signal, cls = str(cause.get("signal") or ""), str(cause.get("class") or "")
    status = signal.replace(":", " ").partition(" ")[0]
    return clean(f"{status} {cls}" if status.isdigit() else signal or cls)


def cause_in_full(cause: Json, most: int | None = MAX_VALUES) -> str:
    """Return what an answer said, with the header values that show it, *most* at most."""
    values = [f"{name}: {value}" for name, value in (cause.get("evidence") or {}).items()]
    evidence = ", ".join(values[:most])
    said = cause.get("signal") or cause.get("class") or ""
    return clean(f"{said} ({evidence})" if evidence else said)


# -- text of a given width, in cells: a character of Chinese takes two


def fit(text: str, width: int) -> str:
    """Return *text* in exactly *width* cells; the end of what is longer is left out."""
    if cell_len(text) > width:
        text = _upto(text, width - 1) + "…" if width > 0 else ""
    return text + " " * (width - cell_len(text))


def fit_middle(text: str, width: int) -> str:
    """Return *text* in at most *width* cells; of what is longer both ends are kept."""
    if cell_len(text) <= width:
        return text
    end = max((width - 1) * 2 // 3, 0)
    tail = _upto(text[::-1], end)[::-1]
    return _upto(text, width - 1 - cell_len(tail)) + "…" + tail if width > 0 else ""


def wrapped(text: Text, width: int) -> list[Text]:
    """Return *text* in lines of *width*, at least 6: nobody reads it below."""
    lines = [*text.wrap(_CONSOLE, max(width, 6))]
    for line in lines:
        line.rstrip()
    return lines


def _upto(text: str, width: int) -> str:
    taken = 0
    for number, character in enumerate(text):
        taken += cell_len(character)
        if taken > width:
            return text[:number]
    return text


def bar(share: float, width: int) -> Text:
    """Return *share* of *width* cells; only what is spent is empty, and what is whole full."""
    filled = min(max(round(share * width), 1), width - 1) if 0 < share < 1 else int(share) * width
    style = "red" if share <= EMPTY_SHARE else "yellow" if share <= LOW_SHARE else "green"
    return Text.assemble((_FULL * filled, style), (_EMPTY * (width - filled), "dim"))


def percent(share: float) -> str:
    """Return `42%`, rounded down: "0%" is said of what is spent."""
    return f"{int(share * 100 + 1e-9)}%"


def coarse(seconds: float) -> str:
    """Return *seconds* in one unit: `38 s`, `12 min`, `5 h`, `2 d`."""
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{round(seconds / length_s)} {unit}"
    return f"{max(ceil(seconds), 1)} s"


# -- the list


@dataclass(frozen=True, slots=True)
class Columns:
    """Widths of the columns of a list, and of all, in cells; 0: there is no room for it.

    *back* is 0 where a list is too narrow: the state says it then.
    """

    width: int
    state: int
    name: int
    bar: int
    window: int
    back: int
    why: int

    @classmethod
    def of(cls, accounts: Sequence[Json], width: int, now: float) -> Columns:
        """Return what fits into *width*."""
        longest = _widest((clean(a["key"]) for a in accounts), len("account"))
        if width < _NARROW:
            state = _widest((_state_in_one(a, now) for a in accounts), len("state"))
            name = max(width - 2 - 1 - _PERCENT_WIDTH - 1 - state, 1)
            return cls(width, state, min(name, longest), 0, 0, 0, 0)
        wide = width >= _WIDE
        state = _widest(map(state_word, accounts), len("state"))
        backs = (span(s) for a in accounts if (s := back_in_s(a, now)) is not None)
        back = _widest(backs, len("back in"))
        windows = (clean(t["window"]) for a in accounts if (t := a.get("tightest")))
        window = min(_widest(windows, 0), 8) if wide else 0
        is_known = any(share_of(account) is not None for account in accounts)
        bar_width = (BAR_WIDTH if wide else _SHORT_BAR) if is_known else 0
        room = width - 2 - (state + 1) - _PERCENT_WIDTH - (back + 1)
        room -= sum(column + 1 for column in (bar_width, window) if column)
        name = max(min(longest, room - 1, _NAME_WIDTH if wide else _SHORT_NAME), 1)
        why = max(room - name - 2, 0)
        if why < _WHY_WIDTH:
            # Then names may have it.
            name, why = max(min(longest, room - 1), 1), 0
        return cls(width, state, name, bar_width, window, back, why)

    def titles(self) -> Text:
        if not self.back:
            text = f"  {fit('account', self.name)} {'left':>{_PERCENT_WIDTH}} state"
            return Text(text, style="dim")
        left = _PERCENT_WIDTH + sum(column + 1 for column in (self.bar, self.window) if column)
        parts = [fit("state", self.state), fit("account", self.name), fit("left", left)]
        parts += [f"{'back in':>{self.back}}", *(["why"] if self.why else [])]
        return Text(f"  {' '.join(parts)}", style="dim")

    def line(self, account: Json, now: float, *, selected: bool) -> Text:
        """Return an account in one line."""
        name = fit(fit_middle(clean(account["key"]), self.name), self.name)
        style = style_of(state_of(account))
        text = Text("> " if selected else "  ")
        if not self.back:
            text.append(f"{name} ").append_text(self._left(account))
            text.append(f" {fit(_state_in_one(account, now), self.state)}", style)
        else:
            back_s = back_in_s(account, now)
            text.append(fit(state_word(account), self.state), style).append(f" {name} ")
            text.append_text(self._left(account))
            text.append(f" {'' if back_s is None else span(back_s):>{self.back}}")
            text.append(f" {fit(cause_in_brief(account), self.why)}" if self.why else "")
        if selected:
            text.append(" " * (self.width - text.cell_len))
            text.stylize("reverse")
        return text

    def _left(self, account: Json) -> Text:
        share = share_of(account)
        text = Text()
        if self.bar:
            text.append_text(Text(" " * self.bar) if share is None else bar(share, self.bar))
            text.append(" ")
        text.append(f"{'' if share is None else percent(share):>{_PERCENT_WIDTH}}")
        if self.window:
            window = "" if share is None else clean(account["tightest"]["window"])
            text.append(f" {fit(window, self.window)}")
        return text


def _state_in_one(account: Json, now: float) -> str:
    """Return a state with its end: `back in 38 s`, `partly, 5 h`."""
    back_s = back_in_s(account, now)
    if back_s is None:
        return state_word(account)
    return ("partly, " if state_of(account) == PARTLY else "back in ") + coarse(back_s)


def span(seconds: float) -> str:
    """Return *seconds* for people, to the second: `38 s`, `5 h 3 min`."""
    return duration(max(ceil(seconds), 1))


def _widest(texts: Iterable[str], least: int) -> int:
    return max([least, *map(cell_len, texts)])


# -- one account in full


def details(account: Json, now: float) -> list[Text]:
    """Return all there is to know of an account, a line each: what keeps it from serving first."""
    return [
        *_obstacles(account, now),
        *_windows(account, now),
        Text(f"today: {served_words(account.get('usage') or {})}"),
        Text(_settings(account), style="dim"),
    ]


def _obstacles(account: Json, now: float) -> Iterable[Text]:
    if disabled := account.get("disabled"):
        yield _line("disabled", NEEDS_OWNER, _since(disabled), cause_in_full(disabled, None))
    if account.get("problem"):
        yield _line("credential", NEEDS_OWNER, "", clean(account["problem"]))
    elif account.get("state") == "no_credential":
        yield _line("credential", "yellow", "", clean(account.get("reason") or "being fetched"))
    whole = [c for c in account.get("cooldowns", ()) if c.get("model") is None]
    for words, causes in (
        ("on cooldown", [*whole, *_of_models(account)]),
        ("asked last", account.get("asked_last", ())),
    ):
        for cause in causes:
            yield _line(words, "yellow", _until(cause, now), cause_in_full(cause, None))
    if account.get("state") in ("full", "off") and account.get("reason"):
        yield _line(state_word(account), "yellow", "", clean(account["reason"]))


def _line(words: str, style: str, when: str, why: str) -> Text:
    return Text.assemble((words, style), f" {when}" if when else "", f": {why}")


def _until(cause: Json, now: float) -> str:
    seconds = left_s(cause, now)
    model = f" ({clean(cause['model'])})" if cause.get("model") is not None else ""
    return f"for {span(seconds)}, until {clock(now + seconds, now)}{model}"


def _since(cause: Json) -> str:
    since = cause.get("since_at")
    return f"since {datetime.fromisoformat(since).astimezone():%Y-%m-%d %H:%M}" if since else ""


def clock(at: float, now: float) -> str:
    """Return the time of *at* (epoch seconds) here, with its day if that is not today."""
    then, today = (datetime.fromtimestamp(s).astimezone() for s in (at, now))
    form = "%H:%M:%S" if then.date() == today.date() else "%a %d %b %H:%M"
    return then.strftime(form)


def _windows(account: Json, now: float) -> Iterable[Text]:
    windows = sorted(
        account.get("headroom", ()),
        key=lambda w: (w.get("model") is not None, w.get("model") or "", w["remaining"]),
    )
    names = [clean(" ".join(filter(None, (w["window"], w.get("model"))))) for w in windows]
    width = min(_widest(names, 1), _NAME_WIDTH)
    for name, window in zip(names, windows, strict=True):
        share = float(window["remaining"])
        text = Text(fit(fit_middle(name, width), width) + " ").append_text(bar(share, BAR_WIDTH))
        text.append(f" {percent(share):>4} left")
        if window.get("resets_at"):
            at = datetime.fromisoformat(window["resets_at"]).timestamp()
            text.append(f", resets in {span(at - now)}")
        yield text


def served_words(usage: Json) -> str:
    """Return `12 requests, 3,456 tokens in (1,200 cached), 99 out`."""
    if not usage.get("requests"):
        return "nothing served"
    text = f"{_counted(usage['requests'], 'request')}, {usage['input_tokens']:,} tokens in"
    if usage.get("cached_tokens"):
        text += f" ({usage['cached_tokens']:,} cached)"
    return f"{text}, {usage['output_tokens']:,} out"


def _settings(account: Json) -> str:
    said = [f"{account.get('in_flight', 0)} in flight"]
    if account.get("oldest_s"):
        said[0] += f" (the oldest for {span(account['oldest_s'])})"
    said.append(_counted(account.get("sessions", 0), "conversation"))
    troubles = {"broken": "broken connections", "departures": "clients left early"}
    said += [f"{account[name]} {what}" for name, what in troubles.items() if account.get(name)]
    if account.get("priority"):
        said.append(f"priority {account['priority']}")
    if account.get("max_concurrent"):
        said.append(f"max_concurrent {account['max_concurrent']}")
    reserve = account.get("reserve") or {}
    said += [f"reserve {clean(name)} {percent(share)}" for name, share in reserve.items()]
    if models := account.get("models"):
        said.append("models " + clean(" ".join(models)))
    if not account.get("problem") and account.get("state") != "no_credential":
        said.append("credential ready")
    return ", ".join(said)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# -- all together

_COUNTED = ("total", "available", "cooling_down", "disabled", "in_flight")


def summary_of(summary: Json, width: int | None = None) -> str:
    """Return what all accounts do, in one line of *width*: without what is 0, or the list shows."""
    number = {name: summary.get(name, 0) for name in _COUNTED}
    available = f"{number['available']} of {number['total']} available"
    counts = f"{number['cooling_down']} on cooldown, {number['disabled']} disabled"
    all_of_it = f"{available}, {counts}, {_counted(number['in_flight'], 'request')} in flight"
    if width is None or len(all_of_it) <= width:
        return all_of_it
    return f"{available}, {number['in_flight']} in flight"


def file_of(status: Json) -> str:
    """Name the file the accounts are of, where the proxy says it."""
    path = status.get("accounts_file")
    return clean(shown(Path(path))) if isinstance(path, str) and path else ""
