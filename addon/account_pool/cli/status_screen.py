"""The screen of `account-pool status`: what it shows, and what a key does.

Pure: values that were read, keys and a size in, lines out. `status_app.py` draws them and does
what is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from rich.cells import cell_len
from rich.text import Text

from account_pool.cli.status_view import (
    NEEDS_OWNER,
    Columns,
    Json,
    attention,
    clean,
    clock,
    details,
    file_of,
    fit,
    fit_middle,
    matches,
    span,
    summary_of,
    wrapped,
)
from account_pool.core.decisions import By, Kind

#: Below it there is no room for the details of an account, in lines.
_LEAST_FOR_DETAILS = 7
_LEAST_FOR_DECISIONS = 3
#: How long the screen tells what a key has done, seconds.
MESSAGE_S = 8.0


class Verb(StrEnum):
    """What a key asks of the pool."""

    NEXT = "next"
    CLEAR = "clear"
    DISABLE = "disable"
    ENABLE = "enable"


class PageKind(StrEnum):
    """What can fill the screen in place of the list."""

    ACCOUNT = "account"
    DECISIONS = "decisions"
    USAGE = "usage"
    PROXIES = "proxies"
    HELP = "help"


@dataclass(frozen=True, slots=True)
class Change:
    """A key asks the pool for *verb* at the account *key*."""

    verb: Verb
    key: str


@dataclass(slots=True)
class Page:
    """One that fills the screen; *lines* are None until they were read.

    *account* is provider/label of the account it is about; None: all.
    """

    kind: PageKind
    account: str | None = None
    lines: Sequence[Text] | None = None
    top: int = 0

    @property
    def title(self) -> str:
        match self.kind:
            case PageKind.ACCOUNT:
                return clean(self.account)
            case PageKind.DECISIONS:
                of = f" about {clean(self.account)}" if self.account else ""
                return f"decisions{of}, newest first"
            case PageKind.USAGE:
                return "usage of 30 days"
            case PageKind.PROXIES:
                return "proxies that share this state"
            case PageKind.HELP:
                return "help"


class Asked(StrEnum):
    """What else a key asks for."""

    QUIT = "quit"
    #: what the page shows must be read
    READ = "read"


_VERBS = {verb.value[0]: verb for verb in Verb}
_PAGES = {
    "l": PageKind.DECISIONS,
    "u": PageKind.USAGE,
    "p": PageKind.PROXIES,
    "?": PageKind.HELP,
}
_MOVES = {"up": "up", "k": "up", "down": "down", "j": "down", "home": "home", "g": "home"}
_MOVES |= {"end": "end", "G": "end", "pageup": "pageup", "pagedown": "pagedown", " ": "pagedown"}

#: Keys and words at the bottom, and how much each is missed: those with less go first.
_HINTS = (
    ("n", "next", 4),
    ("c", "clear", 5),
    ("e/d", "en/disable", 3),
    ("l", "decisions", 2),
    ("u", "usage", 1),
    ("p", "proxies", 0),
    ("/", "filter", 6),
    ("?", "help", 8),
    ("q", "quit", 7),
)
_PAGE_HINTS = (("Esc", "back", 9), ("↑↓", "scroll", 5))
_ONE_OR_ALL = ("a", "this account, or all", 4)

_HELP = """\
n        the next account of this provider has the turn
c        end every cooldown, and enable the account
d e      disable, enable: across restarts too
l u p    decisions; usage of 30 days; proxies
Enter    all that is known of the account
/        show accounts with these words; Esc ends it
↑↓ j k   move; g G, Home End, PgUp PgDn
q        quit, as Ctrl-C

What needs attention is on top.
partly   on cooldown for some models only
left     of the window with the least left; empty: spent
back in  when it serves again, or its first model
"""


@dataclass(slots=True)
class StatusScreen:
    """All that is on the screen.

    Attributes:
        status, seen_at: the last answer of GET /account-pool, and when it came (epoch seconds).
        address: where the proxy is.
        access: lines of the help that say how to get at the dashboard.
        decisions: the last ones, the newest first; shown where there is room.
        lost: why there is none now; "" while there is.
        words: of the filter; *typing*: whether they are being typed.
        message, message_at: what a key has done, and when.
    """

    status: Json
    seen_at: float
    address: str = ""
    access: Sequence[str] = ()
    lost: str = ""
    decisions: Sequence[Json] = ()
    words: str = ""
    typing: bool = False
    page: Page | None = None
    message: str = ""
    message_at: float = 0.0
    # By name, for the order changes; None: whichever is first.
    _selected: str | None = None
    _top: int = 0
    _accounts: Sequence[Json] = ()
    _keys: list[str] = field(default_factory=list)
    # Lines of the list, or of a page, that were visible when it was drawn.
    _visible: int = 1

    # -- what was read

    def seen(self, status: Json, decisions: Sequence[Json], now: float) -> None:
        """Take what the proxy has answered."""
        self.status, self.decisions, self.seen_at, self.lost = status, decisions, now, ""
        self._accounts = ()

    def say(self, message: str, now: float) -> None:
        """Show *message* for a while."""
        self.message, self.message_at = clean(message), now

    @property
    def selected(self) -> str | None:
        """The account that keys are about."""
        if self._selected in self._keys:
            return self._selected
        return self._keys[0] if self._keys else None

    # -- keys

    def key(self, name: str, character: str | None) -> Asked | Change | None:
        """Do what a key asks of the screen; return what it asks beyond.

        Args:
            name: as Textual calls it: `pageup`, `escape`.
            character: what it writes, if anything.
        """
        self.message = ""
        if self.typing:
            self._type(name, character)
            return None
        if self.page is not None:
            return self._in_page(self.page, name, character)
        if character == "q":
            return Asked.QUIT
        if character == "/":
            self.typing = True
        elif name == "escape":
            self.words = ""
        elif name == "enter" and self.selected:
            return self._open(PageKind.ACCOUNT, self.selected)
        elif (kind := _PAGES.get(character or "")) is not None:
            return self._open(kind)
        elif (verb := _VERBS.get(character or "")) is not None:
            return Change(verb, self.selected) if self.selected else None
        elif (move := _move(name, character)) is not None and self._keys:
            index = self._keys.index(self.selected) if self.selected else 0
            to = _moved(index, move, self._visible, len(self._keys))
            self._selected = self._keys[to] if to else None
        return None

    def paste(self, text: str) -> None:
        """Take pasted *text* for the filter."""
        if self.typing:
            self.words += clean(text)

    def _type(self, name: str, character: str | None) -> None:
        match name:
            case "enter":
                self.typing = False
            case "escape":
                self.typing, self.words = False, ""
            case "backspace":
                self.words = self.words[:-1]
            case "ctrl+u":
                self.words = ""
            case _ if character and character.isprintable():
                self.words += character
        self._selected, self._top = None, 0

    def _open(self, kind: PageKind, account: str | None = None) -> Asked:
        self.page = Page(kind, account)
        if kind is PageKind.HELP:
            self.page.lines = [Text(line) for line in (*_HELP.splitlines(), "", *self.access)]
        return Asked.READ

    def _in_page(self, page: Page, name: str, character: str | None) -> Asked | None:
        if name == "escape" or character == "q":
            self.page = None
        elif page.kind is PageKind.DECISIONS and character == "a" and self.selected:
            return self._open(page.kind, None if page.account else self.selected)
        elif (kind := _PAGES.get(character or "")) is not None and kind is not page.kind:
            return self._open(kind)
        elif (move := _move(name, character)) is not None:
            step = {"down": 1, "up": -1, "pagedown": self._visible, "pageup": -self._visible}
            page.top = {"home": 0, "end": 10**9}.get(move, page.top + step.get(move, 0))
        return None

    # -- lines

    def draw(self, width: int, height: int, now: float) -> list[Text]:
        """Return *height* lines of *width* cells at most."""
        head, foot = self._head(width, now), self._foot(width, now)
        room = max(height - len(head) - len(foot), 1)
        middle = self._page(width, room) if self.page else self._list(width, room, now)
        middle = [*middle, *[Text()] * (room - len(middle))][:room]
        if (said := self._said(width, now)) and room > len(said):
            # It covers what is there: nothing is to jump.
            middle[-len(said) :] = said
        lines = [*head, *middle, *foot][-height:]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return lines

    def _head(self, width: int, now: float) -> list[Text]:
        summary = Text(summary_of(self.status["summary"], width), "bold")
        if (rest := width - summary.cell_len - len(self.address)) > 2:
            summary.append(" " * rest + self.address, "not bold dim")
        file = file_of(self.status) or "accounts of the environment"
        where = Text(fit_middle(file, width), "dim")
        if self.lost:
            lost = f"no answer since {clock(self.seen_at, now)} ({span(now - self.seen_at)})"
            long = f"{lost}; below is what was true then"
            where = Text(long if len(long) <= width else lost, f"bold {NEEDS_OWNER}")
        problem = self.status.get("state_problem")
        texts = [*([problem] if problem else ()), *self.status.get("warnings", ())]
        warnings = [clean(text) for text in texts]
        more = f" (+{len(warnings) - 1})" if len(warnings) > 1 else ""
        said = [Text(fit(f"! {text}", width - len(more)) + more, "yellow") for text in warnings[:1]]
        return [summary, where, *said]

    def _foot(self, width: int, now: float) -> list[Text]:
        if self.typing:
            hint = "  Enter keeps it, Esc ends it"
            words = fit_middle(self.words, width - 2)
            return [Text.assemble("/", words, ("▏", "blink"), (hint, "dim"))]
        if self.page is not None:
            account = self.page.kind is PageKind.DECISIONS and self.selected
            return [_hints([*_PAGE_HINTS, *([_ONE_OR_ALL] if account else [])], width)]
        return [_hints(_HINTS, width)]

    def _said(self, width: int, now: float) -> list[Text]:
        if not self.message or now - self.message_at >= MESSAGE_S:
            return []
        return wrapped(Text(self.message, "bold"), width)[:3]

    def _list(self, width: int, room: int, now: float) -> list[Text]:
        # Their order does not change while time passes, so of ten thousand it is kept.
        if not self._accounts:
            self._accounts = sorted(self.status["accounts"], key=lambda one: attention(one, now))
        if not (accounts := self._accounts):
            self._keys = []
            text = Text("the pool has no account: traffic passes through untouched")
            return wrapped(text, width)
        found = [one for one in accounts if not self.words or matches(one, self.words)]
        self._keys = [one["key"] for one in found]
        with_details = room >= _LEAST_FOR_DETAILS
        # Titles and the line between take one each; a half is for the details, at most.
        self._visible = len(found) if with_details else room - 1
        if with_details:
            self._visible = max(min(self._visible, room - 2 - (room - 2) // 2), 1)
        lines: list[Text] = self._rows(found, Columns.of(accounts, width, now), width, now)
        if not with_details or not found:
            return lines
        selected = next(one for one in found if one["key"] == self.selected)
        lines.append(self._between(len(found), len(accounts), width))
        more = _wrapped(details(selected, now), width)
        left = room - len(lines)
        if len(more) > left:
            more[left - 1 :] = [Text("... Enter shows all", "dim")]
        return [*lines, *more, *self._latest(width, left - len(more))]

    def _latest(self, width: int, room: int) -> list[Text]:
        """Return the last decisions, as many as there is room for, the newest last."""
        if room < _LEAST_FOR_DECISIONS or not self.decisions:
            return []
        lines: list[Text] = []
        for one in decision_lines(self.decisions):
            if len(lines) + len(more := _wrapped([one], width)) > room - 1:
                break
            lines = more + lines
        return [_rule("decisions", "", width), *lines] if lines else []

    def _rows(self, found: Sequence[Json], columns: Columns, width: int, now: float) -> list[Text]:
        if not found:
            text = Text(f"no account matches {self.words!r}; Esc shows all")
            return wrapped(text, width)
        index = self._keys.index(self.selected) if self.selected else 0
        # It moves no more than is needed to show the selected one.
        least, most = index - self._visible + 1, len(found) - self._visible
        self._top = max(min(self._top, index, most), least, 0)
        shown = found[self._top : self._top + self._visible]
        return [
            columns.titles(),
            *(columns.line(one, now, selected=one["key"] == self.selected) for one in shown),
        ]

    def _between(self, found: int, of: int, width: int) -> Text:
        """Return the line between list and details: which account, and which part is shown."""
        where = ""
        if found > self._visible:
            where = f" {self._top + 1}-{self._top + self._visible} of {found} "
        if self.words:
            where = f" {self.words!r}: {found} of {of}{where and ','}{where.rstrip()} "
        return _rule(clean(self.selected), where, width)

    def _page(self, width: int, room: int) -> list[Text]:
        page = self.page
        assert page is not None
        title = Text(fit_middle(page.title, width), "bold")
        lines = [Text("reading ...")] if page.lines is None else _wrapped(page.lines, width)
        self._visible = max(room - 2, 1)
        page.top = max(min(page.top, len(lines) - self._visible), 0)
        below = len(lines) - page.top - self._visible
        if below > 0:
            title.append(f"  {below} more lines below", "dim")
        return [title, Text(), *lines[page.top : page.top + self._visible]]


def _rule(name: str, where: str, width: int) -> Text:
    line = f"── {fit_middle(name, width - cell_len(where) - 6)} "
    rest = width - cell_len(line) - cell_len(where) - 2
    return Text(f"{line}{'─' * max(rest, 0)}{where}──", "dim")


def _move(name: str, character: str | None) -> str | None:
    return _MOVES.get(name) or _MOVES.get(character or "")


def _moved(index: int, move: str, page: int, number: int) -> int:
    to = {
        "up": index - 1,
        "down": index + 1,
        "pageup": index - page,
        "pagedown": index + page,
        "home": 0,
        "end": number - 1,
    }[move]
    return min(max(to, 0), number - 1)


def _wrapped(lines: Iterable[Text], width: int) -> list[Text]:
    """Return *lines* in as many of *width* as they need, the later ones indented."""
    found: list[Text] = []
    width = max(width, 8)  # nobody reads it below, and a character may take two
    for line in lines:
        first, *rest = wrapped(line, width) or [Text()]
        if rest:
            # Wrapped anew: what follows has less room.
            said = line[len(first) :]
            said = said[len(said) - len(said.plain.lstrip()) :]
            rest = [Text("  ").append_text(part) for part in wrapped(said, width - 2)]
        found += [first, *rest]
    return found


def _hints(hints: Sequence[tuple[str, str, int]], width: int) -> Text:
    shown = list(hints)
    while shown and sum(cell_len(f"{key} {word}") + 2 for key, word, _ in shown) - 2 > width:
        shown.remove(min(shown, key=lambda hint: hint[2]))
    text = Text()
    for number, (key, word, _) in enumerate(shown):
        text.append("  " if number else "").append(key, "bold").append(f" {word}", "dim")
    return text


#: What a refusal did to its account, which the line of its request says too.
_SAID_TWICE = (Kind.COOLDOWN.value, Kind.DISABLE.value, Kind.SUSPECT.value)
_BY_REFUSAL = (By.ANSWER.value, By.SOCKET.value)


def decision_lines(decisions: Sequence[Json]) -> list[Text]:
    """Return decisions a line each, as they come: the newest first. Each failover is told once."""
    lines = []
    for decision in decisions:
        if decision.get("kind") in _SAID_TWICE and decision.get("by") in _BY_REFUSAL:
            continue
        at = datetime.fromisoformat(decision["at"]).astimezone()
        proxy = (f" {clean(decision['proxy'])}" if decision.get("proxy") else "", "dim")
        text = f" {clean(decision['text'])}"
        lines.append(Text.assemble((f"{at:%H:%M:%S}", "dim"), proxy, text))
    return lines or [Text("none so far")]
