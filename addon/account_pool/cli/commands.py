"""The commands of `account-pool`: names, arguments and help, in the order of the help.

What a command does is in a module of its own, imported when it runs: `--version` must not
wait for mitmproxy.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.models import CommandInfo

from account_pool.cli.env import Shell
from account_pool.cli.output import fail
from account_pool.cli.places import DEFAULT_PORT
from account_pool.config.options import BY_NAME
from account_pool.core.account import AccountKey
from account_pool.version import __version__

AccountsFile = Annotated[
    Path | None,
    typer.Option(
        help="The accounts file. [default: it is looked for; `check` shows which it is]",
        show_default=False,
    ),
]


def _keys(incomplete: str) -> list[str]:
    from account_pool.cli.completion import accounts

    return list(accounts(incomplete))


def _providers(incomplete: str) -> list[str]:
    return sorted({key.partition("/")[0] for key in _keys(incomplete)})


Key = Annotated[
    str,
    typer.Argument(help="The account, as provider/label.", metavar="ACCOUNT", autocompletion=_keys),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Port = Annotated[
    int,
    typer.Option("--port", "-p", min=1, max=65535, help="The proxy's port on this machine."),
]


app = typer.Typer(
    name="account-pool",
    help="A pool of LLM accounts inside mitmproxy.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"account-pool {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_show_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    pass


def _strategy(value: str | None) -> str | None:
    choices = BY_NAME["strategy"].choices or ()
    if value is not None and value not in choices:
        raise typer.BadParameter(f"{value} is not one of {', '.join(choices)}")
    return value


def _one_each(names: Collection[str]) -> list[AccountKey]:
    """Return the accounts of those *names*, one of a provider."""
    try:
        keys = {key.provider: key for key in map(AccountKey.parse, names)}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if len(keys) < len(names):
        raise typer.BadParameter("--account: name one account of each provider")
    return list(keys.values())


OnlyAccounts = Annotated[
    list[str] | None,
    typer.Option(
        "--account",
        help="The account, as provider/label, that alone serves the tool; again for another "
        "provider.",
        show_default=False,
        autocompletion=_keys,
    ),
]


# What comes after the tool's name is the tool's, also without `--`.
@app.command(context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[
        list[str], typer.Argument(help="The tool and its arguments, after --.", metavar="COMMAND")
    ],
    *,
    port: Port = DEFAULT_PORT,
    accounts_file: AccountsFile = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            callback=_strategy, help="The strategy, if a proxy is started.", show_default=False
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Start the tool again when it exits because of a limit and the pool has an "
            "account that can serve; at most 10 times in a row.",
        ),
    ] = False,
    join: Annotated[
        bool,
        typer.Option("--join", help="Use a proxy that is already running, whatever its accounts."),
    ] = False,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Run the tool even if the pool has no account.")
    ] = False,
    account: OnlyAccounts = None,
) -> int:
    """Run a tool through the pool: account-pool run -- claude.

    Starts a proxy if none is running, points this tool alone at it, restarts it if it
    crashes, and stops it when the last tool that uses it exits. The exit code is the
    tool's, 128 + n after signal n; 126 and 127 if it cannot be started, 1 if no proxy can
    be used.
    """
    from account_pool.cli.run import RunOptions, run_tool

    options = RunOptions(
        command=command,
        port=port,
        accounts_file=accounts_file,
        strategy=strategy,
        restart=restart,
        join=join,
        allow_empty=allow_empty,
        accounts=_one_each(account or ()),
    )
    return run_tool(options, os.environ)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def serve(
    context: typer.Context,
    *,
    web: Annotated[bool, typer.Option("--web", help="Start mitmweb, to look at requests.")] = False,
    console: Annotated[
        bool, typer.Option("--console", help="Start mitmproxy, to look at requests in a terminal.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", "-p", min=0, max=65535, help="The proxy's port.", show_default=False
        ),
    ] = None,
    accounts_file: AccountsFile = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that serve, one for each core.")
    ] = 1,
) -> int:
    """Start a proxy and stay with it: account-pool serve. Takes every option of mitmproxy.

    Listens on this machine only, unless --listen-host says otherwise. Signals and exit code
    are those of mitmdump, which takes the place of this command.
    """
    from account_pool.cli.serve import serve as start

    if web and console:
        raise typer.BadParameter("write --web or --console, not both")
    if workers > 1 and (web or console):
        raise typer.BadParameter("--workers is for mitmdump, without --web and --console")
    program = "mitmweb" if web else "mitmproxy" if console else "mitmdump"
    start(program, port, accounts_file, context.args, os.environ, workers=workers)


class ServiceAction(StrEnum):
    """What to do with the service."""

    INSTALL = "install"
    REMOVE = "remove"
    STATUS = "status"


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def service(
    context: typer.Context,
    action: Annotated[ServiceAction, typer.Argument(help="install, remove or status.")],
    *,
    port: Port = DEFAULT_PORT,
    accounts_file: AccountsFile = None,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the definition, and install nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With status: print JSON.")] = False,
) -> int:
    """Keep a proxy running from your login on: account-pool service install.

    As a user unit of systemd, an agent of launchd, or a scheduled task of Windows, which runs
    `account-pool serve`; what follows install is passed on to that. `status` exits with 0 where it
    serves.
    """
    from account_pool.cli import service as services

    if context.args and action is not ServiceAction.INSTALL:
        raise typer.BadParameter(f"{context.args[0]}: only install takes options of serve")
    plan = services.plan_of(port, accounts_file, context.args, os.environ)
    made = services.service_of(plan, os.environ)
    if action is ServiceAction.STATUS:
        return services.status(plan, made, as_json=as_json)
    if action is ServiceAction.REMOVE:
        return services.remove(made)
    if only_print:
        print(services.as_text(made), end="")
        return 0
    return services.install(plan, made, accounts_file, os.environ)


@app.command()
def script() -> int:
    """Print the path of the script for mitmproxy's -s: mitmdump -s "$(account-pool script)"."""
    from account_pool.demo.mitmdump import addon_script

    print(addon_script())
    return 0


@app.command()
def env(
    *,
    port: Port = DEFAULT_PORT,
    shell: Annotated[
        Shell | None,
        typer.Option(help="The shell to write for. [default: the current one]"),
    ] = None,
    unset: Annotated[bool, typer.Option("--unset", help="Remove the variables.")] = False,
    account: OnlyAccounts = None,
) -> int:
    """Print what points a shell's tools at the proxy: eval "$(account-pool env)"."""
    from account_pool.cli.env import print_env

    return print_env(port, shell, os.environ, unset=unset, accounts=_one_each(account or ()))


@app.command()
def status(
    *,
    port: Port = DEFAULT_PORT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the proxy's own answer.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Print it once, on a terminal too.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Print it every two seconds, as lines.")
    ] = False,
) -> int:
    """Show the accounts: what is left of each, who is on cooldown or disabled, and why.

    On a terminal it is a screen that follows the proxy; ? there lists its keys. With --watch
    --json it prints one object a line.
    """
    from account_pool.cli.status import show_status

    if once and watch:
        raise typer.BadParameter("write --once or --watch, not both")
    return show_status(port, as_json=as_json, once=once, watch=watch)


@app.command()
def dashboard(
    *,
    port: Port = DEFAULT_PORT,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the link instead of opening a browser.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Open the dashboard in a browser, logged in: by a link that is valid once, for a minute."""
    from account_pool.cli.dashboard import open_dashboard

    return open_dashboard(port, os.environ, only_print=only_print, as_json=as_json)


@app.command()
def logs(
    *,
    port: Port = DEFAULT_PORT,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many lines to show, from the end.")
    ] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new lines.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Include connections that open and close.")
    ] = False,
    path: Annotated[bool, typer.Option("--path", help="Print where the log is.")] = False,
) -> int:
    """Show the log of the proxy that `run` started."""
    from account_pool.cli.history import show_logs

    return show_logs(port, lines=lines, follow=follow, path_only=path, everything=everything)


@app.command("list")
def list_accounts(
    *, port: Port = DEFAULT_PORT, accounts_file: AccountsFile = None, as_json: AsJson = False
) -> int:
    """List the accounts: those of the proxy with their states, without one those of the file."""
    from account_pool.cli.manage import list_accounts as show

    return show(accounts_file, port, os.environ, as_json=as_json)


@app.command()
def remove(
    account: Key,
    *,
    port: Port = DEFAULT_PORT,
    accounts_file: AccountsFile = None,
    as_json: AsJson = False,
) -> int:
    """Remove an account from the proxy and its file, without a proxy from the file alone."""
    from account_pool.cli.manage import remove as take_away

    return take_away(account, accounts_file, port, os.environ, as_json=as_json)


@app.command()
def enable(account: Key, *, port: Port = DEFAULT_PORT, as_json: AsJson = False) -> int:
    """Put an account back in use; cooldowns by limits stay."""
    from account_pool.cli.manage import change

    return change("enable", account, port, as_json=as_json)


@app.command()
def disable(account: Key, *, port: Port = DEFAULT_PORT, as_json: AsJson = False) -> int:
    """Take an account out of use until it is enabled, across restarts too."""
    from account_pool.cli.manage import change

    return change("disable", account, port, as_json=as_json)


@app.command()
def clear(account: Key, *, port: Port = DEFAULT_PORT, as_json: AsJson = False) -> int:
    """End every cooldown of an account, and enable it if it is disabled."""
    from account_pool.cli.manage import change

    return change("clear", account, port, as_json=as_json)


@app.command("next")
def select_next(
    provider: Annotated[
        str,
        typer.Argument(help="Such as openai.", metavar="PROVIDER", autocompletion=_providers),
    ],
    *,
    port: Port = DEFAULT_PORT,
    as_json: AsJson = False,
) -> int:
    """Skip the account whose turn it is; prints the one that is next."""
    from account_pool.cli.manage import select_next as skip

    return skip(provider, port, as_json=as_json)


@app.command()
def pin(
    session: Annotated[
        str,
        typer.Argument(
            help="A conversation, its beginning, or the tool's own id of it.", show_default=False
        ),
    ] = "",
    account: Annotated[
        str,
        typer.Argument(
            help="The account, as provider/label.", show_default=False, autocompletion=_keys
        ),
    ] = "",
    *,
    port: Port = DEFAULT_PORT,
    off: Annotated[bool, typer.Option("--off", help="Pin it no more.")] = False,
    as_json: AsJson = False,
) -> int:
    """Keep a conversation on one account; without arguments, list the conversations.

    A pinned one waits or is refused where its account cannot serve, and is never moved. For
    all that a tool sends, see `run --account`.
    """
    from account_pool.cli import manage

    if not session:
        return manage.list_sessions(port, as_json=as_json)
    if off is bool(account):
        return fail("pin: write SESSION ACCOUNT, or SESSION --off", 2)
    if off:
        return manage.unpin(session, port, as_json=as_json)
    return manage.pin(session, account, port, as_json=as_json)


def _group(value: str) -> str:
    from account_pool.cli.history import GROUPS

    if value not in GROUPS:
        raise typer.BadParameter(f"{value} is not one of {', '.join(GROUPS)}")
    return value


def _instant(value: str | None) -> str | None:
    from account_pool.cli.requests import instant

    try:
        return value and instant(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


_From = Annotated[
    str | None,
    typer.Option(
        "--from",
        callback=_instant,
        help="Only what began then or later: 2026-08-01, 2026-08-01T13:00:00Z, or 24h, 7d ago.",
        show_default=False,
    ),
]
_To = Annotated[
    str | None,
    typer.Option("--to", callback=_instant, help="Only what began before.", show_default=False),
]
_Account = Annotated[
    str | None,
    typer.Option("--account", help="Only of provider/label, or of a provider.", show_default=False),
]
_Model = Annotated[
    str | None, typer.Option("--model", help="Only of this model.", show_default=False)
]
_Tool = Annotated[
    str | None,
    typer.Option("--tool", help="Only of this tool, such as claude-code.", show_default=False),
]


def _which(
    from_: str | None, to: str | None, account: str | None, model: str | None, tool: str | None
) -> dict[str, str]:
    """Return the parameters of the REST API that were given."""
    given = {"from": from_, "to": to, "account": account, "model": model, "tool": tool}
    return {name: text for name, text in given.items() if text}


@app.command()
def usage(
    *,
    port: Port = DEFAULT_PORT,
    days: Annotated[int, typer.Option(min=1, max=400, help="How many days, today included.")] = 30,
    by: Annotated[
        str,
        typer.Option(callback=_group, help="account, provider, model, day, hour (UTC) or tool."),
    ] = "account",
    from_: _From = None,
    to: _To = None,
    account: _Account = None,
    model: _Model = None,
    tool: _Tool = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    refresh: Annotated[
        bool,
        typer.Option("--refresh", help="Ask providers what accounts have left (pool_look_up)."),
    ] = False,
) -> int:
    """Show how many requests and tokens were served, by account, model, day, tool ..."""
    from account_pool.cli.history import show_left, show_usage

    if refresh:
        if as_csv:
            raise typer.BadParameter("--refresh has --json, and no --csv")
        return show_left(port, account, as_json=as_json)

    if as_json and as_csv:
        raise typer.BadParameter("write --json or --csv, not both")
    which = _which(from_, to, account, model, tool)
    if not from_:
        which = {"days": str(days), **which}
    return show_usage(port, which, by=by, as_json=as_json, as_csv=as_csv)


def _status(value: str | None) -> str | None:
    if value not in (None, "ok", "refused", "aborted"):
        raise typer.BadParameter(f"{value} is not one of ok, refused, aborted")
    return value


@app.command()
def requests(
    *,
    port: Port = DEFAULT_PORT,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=1000, help="How many, from the newest.")
    ] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new ones.")] = False,
    from_: _From = None,
    to: _To = None,
    account: _Account = None,
    model: _Model = None,
    tool: _Tool = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status",
            callback=_status,
            help="Only those that ended so: ok, refused or aborted.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> int:
    """Show the requests that have ended: who served them, how they ended, what they took."""
    from account_pool.cli.requests import show_requests

    which = _which(from_, to, account, model, tool)
    if status:
        which["status"] = status
    return show_requests(port, which, lines=lines, follow=follow, as_json=as_json)


def _kind(value: str | None) -> str | None:
    from account_pool.core.decisions import Kind

    if value is not None and value not in set(Kind):
        raise typer.BadParameter(f"{value} is not one of {', '.join(Kind)}")
    return value


@app.command()
def decisions(
    *,
    port: Port = DEFAULT_PORT,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=1000, help="How many, from the newest.")
    ] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new ones.")] = False,
    account: Annotated[
        str | None, typer.Option(help="Only those about provider/label.", show_default=False)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            callback=_kind, help="Only of this kind, such as cooldown.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> int:
    """Show what the proxy decided, and why: cooldowns, moves, waits, refusals ..."""
    from account_pool.cli.history import show_decisions

    return show_decisions(
        port, lines=lines, follow=follow, account=account, kind=kind, as_json=as_json
    )


@app.command()
def doctor(
    *, port: Port = DEFAULT_PORT, accounts_file: AccountsFile = None, as_json: AsJson = False
) -> int:
    """Look for what may keep the pool from working, and name the remedy. Sends nothing."""
    from account_pool.cli.doctor import diagnose

    return diagnose(accounts_file, port, os.environ, as_json=as_json)


@app.command()
def ca(
    *,
    port: Port = DEFAULT_PORT,
    only_path: Annotated[bool, typer.Option("--path", help="Print its path alone.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show mitmproxy's certificate: where it is, which stores trust it, how to change that.

    Changes nothing. Tools that `run` and `env` prepare need none of it.
    """
    from account_pool.cli.ca import show_authority

    return show_authority(port, os.environ, only_path=only_path, as_json=as_json)


@app.command()
def completion(
    shell: Annotated[
        Shell | None,
        typer.Argument(help="bash, zsh, fish or powershell. [default: the current one]"),
    ] = None,
) -> int:
    """Print what completes commands in a shell: source <(account-pool completion bash)."""
    from account_pool.cli.env import detect

    # As typer is asked by its own --show-completion.
    os.environ["_ACCOUNT_POOL_COMPLETE"] = f"source_{shell or detect(os.environ)}"
    app([], prog_name="account-pool", standalone_mode=False)
    return 0


@app.command()
def demo() -> int:
    """Show a failover as it happens. Needs no account; ends by itself."""
    from account_pool import demo as package

    return package.run()


@app.command()
def classify(
    jsonl: Annotated[
        Path, typer.Option(help="Responses, one JSON object a line; - for standard input.")
    ],
    provider: Annotated[
        str, typer.Option(help="Read all of them as responses of this provider.")
    ] = "",
    accounts_file: AccountsFile = None,
) -> int:
    """Say what recorded responses mean: class, scope, cooldown and whether to replay.

    Each goes the way it would go in the proxy. The providers are the built-in ones and those
    of accounts.yaml, if there is one; no credential is read.
    """
    from account_pool.cli.classify import classify_recorded

    return classify_recorded(jsonl, provider, accounts_file)


@app.command()
def check(
    accounts_file: AccountsFile = None,
    try_each: Annotated[
        bool,
        typer.Option(
            "--try",
            help="Also send one cheap request with each account's credential, straight to its "
            "provider.",
        ),
    ] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Confirm the accounts.yaml of this directory as it is now; until then only "
            "commands that name it use it.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Validate the accounts that `run` would use, and show them. Sends nothing without --try."""
    from account_pool.cli.check import check_accounts, confirm_file

    if trust:
        return confirm_file(accounts_file, os.environ)
    if not try_each:
        return check_accounts(accounts_file, os.environ, as_json=as_json)
    from account_pool.cli.accounts import find, read_accounts
    from account_pool.cli.try_accounts import try_all

    return try_all(read_accounts(find(accounts_file, os.environ), os.environ), as_json=as_json)


@app.command()
def login(
    provider: Annotated[
        str,
        typer.Argument(
            help="claude, codex or gemini: have that tool log in. copilot: log in to GitHub.",
            show_default=False,
        ),
    ] = "",
    more: Annotated[
        list[str] | None,
        typer.Argument(
            help="After --: more arguments for the tool, such as --device-auth for codex.",
            metavar="[-- ARGUMENT...]",
            show_default=False,
        ),
    ] = None,
    *,
    tool: Annotated[
        str,
        typer.Option(
            "--from",
            help="Use the login of claude, codex, gemini, copilot or gh. Its file is "
            "read in place and never written; the tool keeps it fresh.",
            show_default=False,
        ),
    ] = "",
    label: Annotated[str, typer.Option(help="The account's name.")] = "default",
    accounts_file: AccountsFile = None,
    file: Annotated[
        Path | None, typer.Option(help="With --from: where the tool stored its login.")
    ] = None,
    copy: Annotated[
        bool,
        typer.Option(
            "--copy",
            help="With --from: copy the tokens into the accounts file, which becomes readable by "
            "you only. The tool must log in again: a refresh token works only once.",
        ),
    ] = False,
    host: Annotated[
        str | None, typer.Option(help="With copilot: a tenant such as acme.ghe.com.")
    ] = None,
    proxy: Annotated[
        str | None, typer.Option(help="With copilot: a proxy through which to reach GitHub.")
    ] = None,
    program: Annotated[
        Path | None,
        typer.Option(help="With claude, codex, gemini: the tool. [default: found on PATH]"),
    ] = None,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew",
            help="With claude, codex, gemini: log in again to an account that is in the pool.",
        ),
    ] = False,
    base_url: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> int:
    """Add an account to accounts.yaml by logging in: account-pool login claude --label work.

    claude, codex and gemini log in as they always do, in a folder of their own: your own login
    with them stays as it is, and the pool alone refreshes the new one. --from uses a login
    that a tool has already. The file keeps its comments and order; a copy of it is made first
    (.bak). Exit codes:
    0 added, 1 not added, 2 wrong usage, 126 and 127 if the tool cannot be started, 130
    interrupted.
    """
    from account_pool.cli.accounts import to_write
    from account_pool.cli.login import login_copilot, login_from
    from account_pool.cli.tool_login import TOOLS_THAT_LOG_IN, LogIn, log_in

    names = f"{', '.join(TOOLS_THAT_LOG_IN)}, copilot"
    if bool(provider) == bool(tool):
        return fail(f"login: write one of {names}, or --from TOOL", 2)
    if provider in TOOLS_THAT_LOG_IN:
        if copy or file or host or proxy or base_url:
            return fail(f"login: {provider} takes --label, --program, --renew and -- ARGUMENT", 2)
        path = to_write(accounts_file, os.environ)
        asked = LogIn(
            tool=provider, label=label, program=program, renew=renew, more=tuple(more or ())
        )
        return log_in(asked, path, os.environ)
    if program or renew or more:
        return fail("login: --program, --renew and -- belong to claude, codex and gemini", 2)
    if tool:
        if host or proxy or base_url:
            return fail("login: --host and --proxy belong to copilot", 2)
        path = to_write(accounts_file, os.environ)
        return login_from(tool, label, path, os.environ, file=file, copy=copy)
    if provider != "copilot" or copy or file:
        return fail(
            f"login: write one of {names}, or --from TOOL; --copy and --file belong to it", 2
        )
    path = to_write(accounts_file, os.environ)
    return login_copilot(label, path, os.environ, host=host, base_url=base_url, proxy=proxy)


@app.command("import")
def import_accounts(
    source: Annotated[
        Path,
        typer.Argument(
            help="The auth folder or config.yaml of CLIProxyAPI, an export or the folder of "
            "claude-swap, teamclaude.json, LiteLLM's config.yaml, better-ccflare's database.",
            metavar="FILE",
        ),
    ],
    *,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Copy logins too: the other program is stopped for good. A refresh token works "
            "only once, so two holders log each other out.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be written.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write without a question.")] = False,
    accounts_file: AccountsFile = None,
    as_json: AsJson = False,
) -> int:
    """Bring over the accounts of another program: account-pool import ~/.cli-proxy-api.

    Shows what comes over, what does not, and why; then asks before it writes the accounts
    file, which only you can read then. Nothing of the other program is changed. Exit codes:
    0 something comes over, 1 nothing does, 2 wrong usage, 130 interrupted.
    """
    from account_pool.cli.accounts import to_write
    from account_pool.cli.import_accounts import ImportOptions
    from account_pool.cli.import_accounts import import_accounts as bring_over

    options = ImportOptions(
        source=source, take_over=take_over, dry_run=dry_run, yes=yes, as_json=as_json
    )
    return bring_over(options, to_write(accounts_file, os.environ), os.environ)


@app.command()
def add(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="The provider, such as openai, and the account's name. Both may be omitted: the "
            "key's form mostly tells the provider, and the name is default then.",
            metavar="[PROVIDER] [LABEL]",
            show_default=False,
        ),
    ] = None,
    *,
    env: Annotated[
        str | None, typer.Option(help="The environment variable that holds the key.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="The file that holds the key.")] = None,
    keychain: Annotated[
        str | None, typer.Option(help="The item of the system's keychain that holds the key.")
    ] = None,
    pointer: Annotated[
        str | None,
        typer.Option(help="With --file and --keychain: where in its JSON, such as /key."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="With azure: the resource, my-name.openai.azure.com.")
    ] = None,
    accounts_file: AccountsFile = None,
    as_json: AsJson = False,
) -> int:
    """Add an account with a key: account-pool add openai work.

    Asks for the key without showing it, or reads it from standard input, and stores it in
    the accounts file, which only you can read then. With --env, --file or --keychain the key
    stays where it is. A proxy that runs reads the file again by itself.
    """
    from account_pool.cli.accounts import to_write
    from account_pool.cli.add import AddOptions, add_key

    words = words or []
    if len(words) > 2:
        # Whatever stands there may be the key.
        return fail("add: write PROVIDER and LABEL; the key is asked for", 2)
    sources = [one for one in (env, file, keychain) if one]
    if len(sources) > 1 or (pointer and not (file or keychain)):
        return fail(
            "add: write one of --env, --file, --keychain; --pointer belongs to a file or item", 2
        )
    options = AddOptions(
        words=words, env=env, file=file, keychain=keychain, pointer=pointer, host=host
    )
    return add_key(options, to_write(accounts_file, os.environ), os.environ, as_json=as_json)


# -- the help of all of them

#: In its order: a line each, as short as fits beside the longest name at 80 columns.
_LINES = {
    "run": "Run a tool through the pool: account-pool run -- claude",
    "serve": "Start a proxy and stay with it",
    "service": "Keep a proxy running from your login on",
    "env": "Print what points a shell's tools at the proxy",
    "script": "Print the path of the script for mitmproxy's -s",
    "status": "Show the accounts live: what is left, what is on cooldown",
    "dashboard": "Open the dashboard in a browser, logged in",
    "requests": "Show the requests that have ended: who served them",
    "usage": "Show how many requests and tokens were served",
    "decisions": "Show what the proxy decided, and why",
    "logs": "Show the log of the proxy that run started",
    "list": "List the accounts and their states",
    "add": "Add an account with a key",
    "login": "Add an account by logging in",
    "import": "Bring over the accounts of another program",
    "remove": "Remove an account",
    "enable": "Put an account back in use",
    "disable": "Take an account out of use until it is enabled",
    "clear": "End every cooldown of an account, and enable it",
    "next": "Skip the account whose turn it is",
    "pin": "Keep a conversation on one account",
    "check": "Validate the accounts; with --try ask for each",
    "doctor": "Look for what may keep the pool from working",
    "ca": "Show mitmproxy's certificate, and which stores trust it",
    "completion": "Print what completes commands in a shell",
    "classify": "Say what recorded responses mean",
    "demo": "Show a failover as it happens; needs no account",
}


def _name(command: CommandInfo) -> str:
    function = command.callback
    return command.name or (function.__name__.strip("_") if function else "")


app.registered_commands.sort(key=lambda one: [*_LINES, _name(one)].index(_name(one)))
for _command in app.registered_commands:
    _command.short_help = _LINES.get(_name(_command))
