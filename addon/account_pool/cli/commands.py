"""The commands of `account-pool`: names, arguments and help, in the order of the help.

Here are those that run things and look at them; `account_commands.py` has those about accounts.

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

from account_pool.cli.account_commands import accounts
from account_pool.cli.arguments import (
    AccountsFile,
    AsJson,
    OnlyAccounts,
    Port,
    Shell,
    one_each,
    one_of,
)
from account_pool.cli.processes import DEFAULT_PORT
from account_pool.config.options import BY_NAME
from account_pool.version import __version__

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
            callback=one_of(lambda: BY_NAME["strategy"].choices or ()),
            help="The strategy, if a proxy is started.",
            show_default=False,
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
        accounts=one_each(account or ()),
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
    from account_pool.cli import serve as services

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
    from account_pool.cli.environment import print_env

    return print_env(port, shell, os.environ, unset=unset, accounts=one_each(account or ()))


@app.command()
def status(
    *,
    port: Port = DEFAULT_PORT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the proxy's own answer.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Print it once, on a terminal too.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Print it every two seconds, as lines.")
    ] = False,
    fleet: Annotated[
        bool, typer.Option("--fleet", help="Show the proxies that share the state instead.")
    ] = False,
) -> int:
    """Show the accounts: what is left of each, who is on cooldown or disabled, and why.

    On a terminal it is a screen that follows the proxy; ? there lists its keys. With --watch
    --json it prints one object a line.
    """
    from account_pool.cli.status import show_status

    if once and watch:
        raise typer.BadParameter("write --once or --watch, not both")
    return show_status(port, as_json=as_json, once=once, watch=watch, of_fleet=fleet)


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
    from account_pool.cli.manage import open_dashboard

    return open_dashboard(port, os.environ, only_print=only_print, as_json=as_json)


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
    from account_pool.cli.certificates import show_authority

    return show_authority(port, os.environ, only_path=only_path, as_json=as_json)


@app.command()
def completion(
    shell: Annotated[
        Shell | None,
        typer.Argument(help="bash, zsh, fish or powershell. [default: the current one]"),
    ] = None,
) -> int:
    """Print what completes commands in a shell: source <(account-pool completion bash)."""
    from account_pool.cli.environment import detect

    # As typer is asked by its own --show-completion.
    os.environ["_ACCOUNT_POOL_COMPLETE"] = f"source_{shell or detect(os.environ)}"
    app([], prog_name="account-pool", standalone_mode=False)
    return 0


@app.command()
def demo() -> int:
    """Show a failover as it happens. Needs no account; ends by itself."""
    from account_pool.demo.failover import run_demo

    return run_demo()


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


# -- what the proxy has done


def _groups() -> Collection[str]:
    from account_pool.cli.history import GROUPS

    return GROUPS


def _instant(value: str | None) -> str | None:
    from account_pool.cli.history import instant

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

_Lines = Annotated[
    int, typer.Option("--lines", "-n", min=1, max=1000, help="How many, from the newest.")
]
#: What `usage` shows where nothing else is asked for.
_DAYS, _BY = 30, "account"
_Follow = Annotated[bool, typer.Option("--follow", "-f", help="Wait for new ones.")]
_EachAsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


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
    days: Annotated[
        int, typer.Option(min=1, max=400, help="How many days, today included.")
    ] = _DAYS,
    by: Annotated[
        str,
        typer.Option(
            callback=one_of(_groups), help="account, provider, model, day, hour (UTC) or tool."
        ),
    ] = _BY,
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
        if from_ or to or model or tool or (days, by) != (_DAYS, _BY):
            raise typer.BadParameter("--refresh asks for whole accounts: it has --account alone")
        return show_left(port, account, as_json=as_json)

    if as_json and as_csv:
        raise typer.BadParameter("write --json or --csv, not both")
    which = _which(from_, to, account, model, tool)
    if not from_:
        which = {"days": str(days), **which}
    return show_usage(port, which, by=by, as_json=as_json, as_csv=as_csv)


@app.command()
def requests(
    *,
    port: Port = DEFAULT_PORT,
    lines: _Lines = 20,
    follow: _Follow = False,
    from_: _From = None,
    to: _To = None,
    account: _Account = None,
    model: _Model = None,
    tool: _Tool = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status",
            callback=one_of(lambda: ("ok", "refused", "aborted")),
            help="Only those that ended so: ok, refused or aborted.",
            show_default=False,
        ),
    ] = None,
    as_json: _EachAsJson = False,
) -> int:
    """Show the requests that have ended: who served them, how they ended, what they took."""
    from account_pool.cli.history import show_requests

    which = _which(from_, to, account, model, tool)
    if status:
        which["status"] = status
    return show_requests(port, which, lines=lines, follow=follow, as_json=as_json)


def _kinds() -> Collection[str]:
    from account_pool.core.decisions import Kind

    return list(Kind)


@app.command()
def decisions(
    *,
    port: Port = DEFAULT_PORT,
    lines: _Lines = 20,
    follow: _Follow = False,
    account: Annotated[
        str | None, typer.Option(help="Only those about provider/label.", show_default=False)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            callback=one_of(_kinds), help="Only of this kind, such as cooldown.", show_default=False
        ),
    ] = None,
    as_json: _EachAsJson = False,
) -> int:
    """Show what the proxy decided, and why: cooldowns, moves, waits, refusals ..."""
    from account_pool.cli.history import show_decisions

    return show_decisions(
        port, lines=lines, follow=follow, account=account, kind=kind, as_json=as_json
    )


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


app.registered_commands += accounts.registered_commands
app.registered_commands.sort(key=lambda one: [*_LINES, _name(one)].index(_name(one)))
for _command in app.registered_commands:
    _command.short_help = _LINES.get(_name(_command))
