"""The options of the pool: one table for the command line and for `pool:` in accounts.yaml.

mitmproxy has no options of type float: `--set` raises NotImplementedError for them
(`optmanager._parse_setval`, 11.0 to 12.2). Numbers with a fraction are therefore
options of type str there, read here; in accounts.yaml they are plain numbers.
"""

from __future__ import annotations

import importlib
import math
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from account_pool.core.browser import read_hosts, read_origins
from account_pool.core.wrong import Wrong, shown

OptionValue = str | int | float | bool
#: Shorter ways through mitmproxy, in the order in which they build on each other.
FAST_STEPS = ("table", "inline", "direct", "short", "relay")

ValueType = type[str] | type[int] | type[float] | type[bool]


class PoolOption(Struct, frozen=True):
    """One option.

    Attributes:
        name: without the prefix: `max_wait` is `pool_max_wait` on the command line.
        type: of the value; for mitmproxy's own type see `typespec`.
        help: one paragraph, with unit.
        choices: the values accepted, None for any.
        not_in_file: why accounts.yaml cannot set it; "" when it can.
        reader: of several values, separated by commas; raises Wrong. A file may list them.
        is_switch: the text may be `on` or `off`, for which a file may have true or false.
        writer: returns the text for a list or mapping that a file may have; raises Wrong.
        conceal: returns what may be seen of the text, which is a secret.
    """

    name: str
    type: ValueType
    default: OptionValue
    help: str
    choices: tuple[str, ...] | None = None
    minimum: float = 0
    not_in_file: str = ""
    reader: Callable[[str], object] | None = None
    is_switch: bool = False
    writer: Callable[[Any], str] | None = None
    conceal: Callable[[str], str] | None = None

    @property
    def option(self) -> str:
        """The name of the mitmproxy option."""
        return f"pool_{self.name}"

    @property
    def typespec(self) -> ValueType:
        """The type to give to mitmproxy's `add_option`."""
        return str if self.type is float else self.type

    @property
    def option_default(self) -> str | int | bool:
        """The default to give to mitmproxy's `add_option`."""
        return f"{self.default:g}" if isinstance(self.default, float) else self.default

    def typed(self, given: Any) -> str | int | bool:
        """Return what mitmproxy's option is set to where *given* was written. Raises `Wrong`.

        Args:
            given: the texts after `--set name=`, as many as there are, or a value of config.yaml.
        """
        if isinstance(texts := getattr(given, "val", None), list):
            if len(texts) > 1:
                raise Wrong(f"it is set {len(texts)} times", "set it once")
            return self._of_text(texts[0] if texts else None)
        value = self.read(given)
        return f"{value:.15g}" if isinstance(value, float) else value

    def _of_text(self, text: str | None) -> str | int | bool:
        if self.type is bool:
            # Without a value it is true, as options of mitmproxy are.
            known = {"": True, "true": True, "false": False, "toggle": not self.default}
            return known[text or ""] if (text or "") in known else bool(self.check(text))
        if self.type is int:
            try:
                return int(text or "")
            except ValueError:
                return int(self.check(text))  # says what is wrong
        return text if text is not None else str(self.check(text))

    def read(self, text: Any) -> OptionValue:
        """Return the value of the mitmproxy option. Raises `Wrong`, a ValueError."""
        if self.type is float and isinstance(text, str):
            try:
                return self.check(float(text))
            except ValueError as error:
                if isinstance(error, Wrong):
                    raise
                raise Wrong(f"{shown(text)} is not a number", self._accepted()) from None
        return self.check(text)

    def check(self, value: Any) -> OptionValue:
        """Return *value* if the option takes it. Raises `Wrong`, a ValueError."""
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if self.is_switch and isinstance(value, bool):
            value = "on" if value else "off"
        if self.writer is not None and isinstance(value, list | dict):
            value = self.writer(value)
        elif self.reader is not None and isinstance(value, list):
            # Else it is said below that it is no text.
            value = ", ".join(value) if all(isinstance(one, str) for one in value) else value
        if type(value) is not self.type:
            raise Wrong(f"{self._shown(value)} is not {_NAMES[self.type]}", self._accepted())
        if isinstance(value, float) and not math.isfinite(value):
            raise Wrong("it is not a finite number", self._accepted())
        if isinstance(value, int | float) and value < self.minimum:
            raise Wrong(f"{value:g} is less than {self.minimum:g}", self._accepted())
        if self.choices is not None and value not in self.choices:
            raise Wrong(f"{self._shown(value)} is not accepted", self._accepted())
        # Some readers are modules that are imported for a value of the owner's only.
        if self.reader is not None and isinstance(value, str) and value != self.default:
            self.reader(value)
        checked: OptionValue = value
        return checked

    def _shown(self, value: Any) -> str:
        is_secret = self.name == "github_token" or self.conceal is not None
        return "the value" if is_secret else shown(value)

    def _accepted(self) -> str:
        if self.choices is not None:
            return "write one of " + ", ".join(choice or '""' for choice in self.choices)
        if self.type is bool:
            return "write true or false"
        if self.type is str:
            more = ", a mapping, or a list of these" if self.writer else ", or a list of texts"
            return "write text, in quotes" + (more if self.reader else "")
        at_least = f" of {self.minimum:g} or more" if self.minimum else ""
        return f"write a number{at_least} such as {self.default:g}"


def read_fast(text: str) -> frozenset[str]:
    """Return the names in FAST_STEPS that *text* stands for, and those before them.

    Raises Wrong.
    """
    if text in ("on", "off"):
        return frozenset(FAST_STEPS if text == "on" else ())
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in FAST_STEPS:
            accepted = f"write on, off, or some of {', '.join(FAST_STEPS)}"
            raise Wrong(f"{shown(name)} is not a step" if name else "a step is missing", accepted)
    return frozenset(FAST_STEPS[: 1 + max(map(FAST_STEPS.index, names))])


def _late(module: str, name: str) -> Callable[[Any], Any]:
    """Return a function of a *module* that is imported when it is first called."""

    def call(value: Any) -> Any:
        return getattr(importlib.import_module(f"account_pool.{module}"), name)(value)

    return call


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}

#: In the order of docs/options.md.
POOL_OPTIONS: tuple[PoolOption, ...] = (
    PoolOption("accounts", str, "",
        "Path of the file that lists the accounts. Empty: ACCOUNT_POOL_ACCOUNTS, else a confirmed "
        "./accounts.yaml, else your own in ~/.config/account-pool, else one account per provider "
        "from the usual environment variables.", not_in_file="it names this file"),
    PoolOption("strategy", str, "round-robin",
        "How the account of a request is selected among the available ones of the best priority: "
        "the next in turn, the one with the fewest requests in flight, the least recently used, "
        "always the first, the one with the largest known remaining share, or the one whose long "
        "window is reset soonest.",
        choices=("round-robin", "least-busy", "least-recent", "fill-first", "most-headroom",
            "soonest-reset")),
    PoolOption("max_attempts", int, 10,
        "How many times one request is sent upstream at most, over all accounts together.",
        minimum=1),
    PoolOption("max_wait", float, 30.0,
        "How long a request is held, in seconds, when no account can serve it. 0 answers at once."),
    PoolOption("max_waiting", int, 1000,
        "How many requests are held at once at most while no account can serve them, over all "
        "providers; their bodies may take 512 MiB together. Further ones are refused with 503."),
    PoolOption("patience", float, 3.0,
        "How long, in seconds, it is worth waiting for the account of a session before the "
        "session moves to another one."),
    PoolOption("cooldown", float, 300.0,
        "How long an account is on cooldown, in seconds, after a limit that names no reset. "
        "Doubles with each limit in a row, up to half an hour.", minimum=1),
    PoolOption("state", str, "",
        "Path of the database that keeps cooldowns and sessions over a restart, memory: for none, "
        "or the URL of a Redis or Valkey that proxies of several machines share: "
        "rediss://user@host:6379/0?pool=team&password=env:NAME. Empty: a file in mitmproxy's own "
        "directory.",
        reader=_late("store.pool_state", "read_state"),
        writer=_late("store.pool_state", "write_state")),
    PoolOption("github_token", str, "",
        "The GitHub token of a single Copilot account, when there is no accounts file. Other "
        "users of this machine can see it on the command line: prefer GITHUB_TOKEN.",
        not_in_file="it is for use without this file"),
    PoolOption("account_type", str, "individual",
        "The Copilot plan of the account that is used without an accounts file.",
        choices=("individual", "business", "enterprise")),
    PoolOption("show_tokens", bool, False,
        "Let POST /account-pool/reveal show credentials, to this machine and with the admin "
        "token."),
    PoolOption("gate", float, 5.0,
        "How long, in seconds, the beginning of a stream is held back to see whether it is an "
        "error. After that the answer goes to the client as it comes."),
    PoolOption("websockets", str, "",
        "What to do with a WebSocket to a pool host: refuse it with 426, so that the client falls "
        "back to HTTP, or pin it to one account. Empty: what suits the provider.",
        choices=("", "refuse", "pin")),
    PoolOption("retry_broken", bool, False,
        "Retry a request whose connection broke after it may have run. It may then be billed "
        "twice."),
    PoolOption("editor_version", str, "",
        "The Editor-Version to send in a Copilot token exchange until a client was seen, such as "
        "vscode/1.104.0. Empty: the name of this project."),
    PoolOption("manual_approve", bool, False,
        "Hold each request of the pool until it is resumed in mitmproxy or mitmweb."),
    PoolOption("intercept", str, "providers",
        "Which hosts are decrypted: only those of the providers, or all of them.",
        choices=("providers", "all")),
    PoolOption("allow_remote", bool, False,
        "Let clients of other machines use the accounts. Otherwise only clients of this machine "
        "may, or those that proxyauth admits."),
    PoolOption("allow_origins", str, "",
        "Origins of web pages that may use the accounts, separated by commas, such as "
        "http://localhost:3000. Requests of all others are refused.", reader=read_origins),
    PoolOption("allow_hosts", str, "",
        "Names by which clients may call this proxy in reverse mode, separated by commas, as host "
        "or host:port. localhost and the address it listens at always may.", reader=read_hosts),
    PoolOption("drain", float, 10.0,
        "How long requests in flight may go on, in seconds, once the proxy was asked to end "
        "(SIGTERM, Ctrl-C). A second signal ends it at once, as 0 does."),
    PoolOption("fast", str, "on",
        "Shorter ways through mitmproxy: on, off, or those to use, separated by commas: "
        f"{', '.join(FAST_STEPS)}. What a version of mitmproxy does not allow is left out.",
        reader=read_fast, is_switch=True),
    PoolOption("notify", str, "",
        "Where to send a notification when an account goes or comes back: https://... for a "
        "webhook, ntfy:TOPIC, desktop, or a command, which gets JSON on its input; a list of "
        "these in accounts.yaml, where {env: NAME} names a variable that holds one.",
        reader=_late("config.notify", "read_targets"),
        writer=_late("config.notify", "write_targets"),
        conceal=_late("config.notify", "shown_targets")),
    PoolOption("look_up", bool, False,
        "Ask Anthropic (Claude subscriptions), ChatGPT, GitHub and OpenRouter what idle accounts "
        "have left, at most every five minutes an account, under the name of this project."),
    PoolOption("view_kept", int, 500,
        "How many flows of the pool mitmweb and mitmproxy keep in view, with 64 MiB of bodies at "
        "most; older ones are dropped. Marked ones stay, and all others. 0 keeps all."),
    PoolOption("count_streams", bool, False,
        "Count the tokens of OpenAI chat streams whose client does not ask for them: "
        "stream_options is added for api.openai.com, and its answer taken out again."),
    PoolOption("prices", str, "",
        "Your own prices, in USD for a million tokens, by provider or account and model; and what "
        "a subscription costs a month. A list of mappings in accounts.yaml, JSON on the command "
        "line. All other models have their list price.",
        reader=_late("core.prices", "read_prices"), writer=_late("core.prices", "write_prices")),
    PoolOption("requests_kept", int, 30,
        "How many days a row about each request is kept in the state database: when, which account "
        "and model, how it ended, tokens, cost. Never a prompt or an answer. 0 keeps none."),
)  # fmt: skip

BY_NAME: Mapping[str, PoolOption] = {option.name: option for option in POOL_OPTIONS}


def settings(
    in_file: Mapping[str, OptionValue], given: Mapping[str, OptionValue]
) -> dict[str, OptionValue]:
    """Return the value of every option, by name without prefix.

    What was *given* on the command line comes before the `pool:` section *in_file*,
    and that before the defaults. Both are checked already.
    """
    return {option.name: option.default for option in POOL_OPTIONS} | {**in_file, **given}


def set_options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return names and values in order; "" where none is given, nothing if it is malformed."""
    parser = ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--set", action="append", default=[])
    try:
        known, _ = parser.parse_known_args(list(arguments))
    except ArgumentError:
        return []
    return [(name, value) for name, _, value in (spec.partition("=") for spec in known.set)]
