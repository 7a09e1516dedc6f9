"""What one sees of the demo: a transcript while it happens, a table at the end.

On a terminal in colour; into a file or a pipe plain text, one fact per line.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta

from rich.console import Console
from rich.table import Table
from rich.text import Text

from account_pool.config.accounts_file import command
from account_pool.demo.exchange import Exchange
from account_pool.demo.story import LABELS, Question

#: What mitmdump puts before each line.
_TIME = re.compile(r"^\[\d\d:\d\d:\d\d\.\d+\]\s*")
#: The pool's own line about an attempt that was refused, e.g. "openai/work: 429
#: rate_limit, on cooldown for 38 s (gpt-5-nano) -> openai/old (429 code=...)".
_REFUSED = re.compile(
    r"openai/(?P<label>[\w-]+): (?P<cause>.+), "
    r"on cooldown for (?P<time>[\w ]+?)(?: \(.+?\))? -> "
)
_UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}


class Screen:
    """Prints the demo. Knows what it has shown, decides nothing."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        if not self._console.is_terminal:
            # Nobody looks at it in 80 columns.
            self._console.width = 1000
        self._asked: dict[str, int] = dict.fromkeys(LABELS.values(), 0)
        self._refused: dict[str, int] = dict.fromkeys(LABELS.values(), 0)
        self._resting: dict[str, str] = {}
        self._streaming = False
        self._held: list[str] = []

    def opening(self, provider_url: str, proxy_url: str, script: str) -> None:
        self._print("One provider, three accounts: work is rate limited, old is out of quota,")
        self._print("spare is fine. The client holds none of their keys.\n")
        self._print(f"  provider  {provider_url} (scripted, stands in for OpenAI)", "dim")
        self._print(f"  proxy     {proxy_url} (mitmdump -s {script})", "dim")

    def question(self, number: int, question: Question) -> None:
        self._print(f'\n{number}. POST /v1/chat/completions  "{question.text}"', "bold")

    def exchange(self, exchange: Exchange) -> None:
        """Show what the provider answered to an account, the moment it does."""
        label = LABELS.get(exchange.request.credential)
        reply = exchange.reply
        if label is None or reply is None:
            self._print("   the provider was asked with an unknown credential", "red")
            return
        self._asked[label] += 1
        if reply.status < 400:
            self._print(f"   openai/{label:6} {reply.status}", "green")
            return
        self._refused[label] += 1
        code = json.loads(reply.body)["error"]["code"]
        self._print(f"   openai/{label:6} {reply.status} {code}", "yellow")

    def log_line(self, line: str) -> None:
        """Show what mitmdump says, if the pool said it; never in the middle of an answer."""
        line = _TIME.sub("", line)
        refused = _REFUSED.match(line)
        if refused is None:
            return
        until = _until(refused["time"])
        self._resting[refused["label"]] = f"on cooldown until {until}: {refused['cause']}"
        line += f", until {until}"
        if self._streaming:
            self._held.append(line)
        else:
            self._print(f"     pool: {line}", "cyan")

    def word(self, word: str) -> None:
        """Show the next piece of the answer as it arrives at the client."""
        if not self._streaming:
            self._console.print("   > ", end="")
        self._streaming = True
        self._console.print(Text(word), end="")

    def answered(self, status: int, chunks: int) -> None:
        self._console.print()
        self._streaming = False
        held, self._held = self._held, []
        for line in held:
            self._print(f"     pool: {line}", "cyan")
        self._print(f"   the client saw: {status}, streamed in {chunks} chunks", "dim")

    def closing(self) -> None:
        table = Table("account", "asked", "refused", "now", box=None, padding=(0, 2, 0, 0))
        for label, asked in self._asked.items():
            now = self._resting.get(label, "on cooldown" if self._refused[label] else "available")
            table.add_row(f"openai/{label}", str(asked), str(self._refused[label]), now)
        self._console.print()
        self._console.print(table, soft_wrap=False)
        self._print(
            f"\nWith accounts of your own: add one with `{command()} add openai work` or "
            f"`{command()} login --from claude` (or codex, gemini, copilot, gh), then start your "
            f"tool with `{command()} run -- TOOL`, or a proxy with `{command()} serve`."
        )

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style))


def _until(time: str) -> str:
    """Return the time of day *time* from now, which is spelt like "1 h 5 min"."""
    words = time.split()
    parts = {_UNITS[unit]: int(n) for n, unit in zip(words[::2], words[1::2], strict=True)}
    until = datetime.now().astimezone() + timedelta(**parts)
    return f"{until:%H:%M:%S}" if "seconds" in parts else f"about {until:%H:%M}"
