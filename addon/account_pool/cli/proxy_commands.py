"""The commands that have to do with a proxy that runs: run, env, status, list, usage ...

Only their names, arguments and help, as in `main.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from account_pool.cli.places import DEFAULT_PORT
from account_pool.cli.shells import Shell
from account_pool.config.options import BY_NAME

AccountsFile = Annotated[
    Path | None,
    typer.Option(
        help="The accounts file. [default: it is looked for; `check` shows which it is]",
        show_default=False,
    ),
]
Port = Annotated[
    int,
    typer.Option("--port", "-p", min=1, max=65535, help="The proxy's port on this machine."),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    # What comes after the tool's name is the tool's, also without `--`.
    app.command(context_settings={"allow_interspersed_args": False})(run)
    passing_on = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(context_settings=passing_on)(serve)
    commands: dict[str, Callable[..., int]] = {
        "script": script,
        "env": env,
        "status": status,
        "logs": logs,
        "list": list_accounts,
        "remove": remove,
        "enable": enable,
        "disable": disable,
        "clear": clear,
        "next": select_next,
        "usage": usage,
        "decisions": decisions,
        "doctor": doctor,
    }
    for name, command in commands.items():
        app.command(name)(command)


def _strategy(value: str | None) -> str | None:
    choices = BY_NAME["strategy"].choices or ()
    if value is not None and value not in choices:
        raise typer.BadParameter(f"{value} is not one of {', '.join(choices)}")
    return value


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
) -> int:
    """Run a tool through the pool: account-pool run -- claude.

    Starts a proxy if none is running, points this tool alone at it, restarts it if it
    crashes, and stops it when the last tool that uses it exits. The exit code is the
    tool's, 128 + n after signal n; 126 and 127 if it cannot be started, 1 if no proxy can
    be used.
    """
    from account_pool.cli.run import Wanted, run_tool  # noqa: PLC0415 - see main.py

    wanted = Wanted(
        command=command,
        port=port,
        accounts_file=accounts_file,
        strategy=strategy,
        restart=restart,
        join=join,
        allow_empty=allow_empty,
    )
    return run_tool(wanted, os.environ)


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
) -> int:
    """Start a proxy and stay with it: account-pool serve. Takes every option of mitmproxy.

    Listens on this machine only, unless --listen-host says otherwise. Signals and exit code
    are those of mitmdump, which takes the place of this command.
    """
    from account_pool.cli.serve import serve as start  # noqa: PLC0415 - see main.py

    if web and console:
        raise typer.BadParameter("write --web or --console, not both")
    program = "mitmweb" if web else "mitmproxy" if console else "mitmdump"
    start(program, port, accounts_file, context.args, os.environ)


def script() -> int:
    """Print the path of the script for mitmproxy's -s: mitmdump -s "$(account-pool script)"."""
    from account_pool.demo.mitmdump import addon_script  # noqa: PLC0415 - see main.py

    print(addon_script())
    return 0


def env(
    *,
    port: Port = DEFAULT_PORT,
    shell: Annotated[
        Shell | None,
        typer.Option(help="The shell to write for. [default: the current one]"),
    ] = None,
    unset: Annotated[bool, typer.Option("--unset", help="Remove the variables.")] = False,
) -> int:
    """Print what points a shell's tools at the proxy: eval "$(account-pool env)"."""
    from account_pool.cli.env import print_env  # noqa: PLC0415 - see main.py

    return print_env(port, shell, os.environ, unset=unset)


def status(
    *,
    port: Port = DEFAULT_PORT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the proxy's own answer.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Show it once, on a terminal too.")] = False,
) -> int:
    """Show the accounts: available, on cooldown or disabled, why and until when.

    On a terminal it is live, and also shows the admin token, which changes need.
    """
    from account_pool.cli.status import show_status  # noqa: PLC0415 - see main.py

    return show_status(port, as_json=as_json, once=once)


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
    from account_pool.cli.logs import show_logs  # noqa: PLC0415 - see main.py

    return show_logs(port, lines=lines, follow=follow, path_only=path, everything=everything)


Key = Annotated[str, typer.Argument(help="The account, as provider/label.", metavar="ACCOUNT")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def list_accounts(
    *, port: Port = DEFAULT_PORT, accounts_file: AccountsFile = None, as_json: AsJson = False
) -> int:
    """List the accounts: those of the proxy with their states, without one those of the file."""
    from account_pool.cli.manage import list_accounts as show  # noqa: PLC0415 - see main.py

    return show(accounts_file, port, os.environ, as_json=as_json)


def remove(account: Key, *, port: Port = DEFAULT_PORT, accounts_file: AccountsFile = None) -> int:
    """Remove an account from the proxy and its file, without a proxy from the file alone."""
    from account_pool.cli.manage import remove as take_away  # noqa: PLC0415 - see main.py

    return take_away(account, accounts_file, port, os.environ)


def enable(account: Key, *, port: Port = DEFAULT_PORT) -> int:
    """Put an account back in use; cooldowns by limits stay."""
    from account_pool.cli.manage import change  # noqa: PLC0415 - see main.py

    return change("enable", account, port)


def disable(account: Key, *, port: Port = DEFAULT_PORT) -> int:
    """Take an account out of use until it is enabled, across restarts too."""
    from account_pool.cli.manage import change  # noqa: PLC0415 - see main.py

    return change("disable", account, port)


def clear(account: Key, *, port: Port = DEFAULT_PORT) -> int:
    """End every cooldown of an account, and enable it if it is disabled."""
    from account_pool.cli.manage import change  # noqa: PLC0415 - see main.py

    return change("clear", account, port)


def select_next(
    provider: Annotated[str, typer.Argument(help="Such as openai.", metavar="PROVIDER")],
    *,
    port: Port = DEFAULT_PORT,
) -> int:
    """Skip the account whose turn it is; prints the one that is next."""
    from account_pool.cli.manage import select_next as skip  # noqa: PLC0415 - see main.py

    return skip(provider, port)


def _group(value: str) -> str:
    from account_pool.cli.history import GROUPS  # noqa: PLC0415 - see main.py

    if value not in GROUPS:
        raise typer.BadParameter(f"{value} is not one of {', '.join(GROUPS)}")
    return value


def usage(
    *,
    port: Port = DEFAULT_PORT,
    days: Annotated[int, typer.Option(min=1, max=400, help="How many days, today included.")] = 30,
    by: Annotated[
        str, typer.Option(callback=_group, help="account, provider, model or day (UTC).")
    ] = "account",
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> int:
    """Show how many requests and tokens were served, by account, provider, model or day."""
    from account_pool.cli.history import show_usage  # noqa: PLC0415 - see main.py

    if as_json and as_csv:
        raise typer.BadParameter("write --json or --csv, not both")
    return show_usage(port, days=days, by=by, as_json=as_json, as_csv=as_csv)


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
        str | None, typer.Option(help="Only of this kind, such as cooldown.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> int:
    """Show what the proxy decided, and why: cooldowns, moves, waits, refusals ..."""
    from account_pool.cli.history import show_decisions  # noqa: PLC0415 - see main.py

    return show_decisions(
        port, lines=lines, follow=follow, account=account, kind=kind, as_json=as_json
    )


def doctor(
    *, port: Port = DEFAULT_PORT, accounts_file: AccountsFile = None, as_json: AsJson = False
) -> int:
    """Look for what may keep the pool from working, and name the remedy. Sends nothing."""
    from account_pool.cli.doctor import diagnose  # noqa: PLC0415 - see main.py

    return diagnose(accounts_file, port, os.environ, as_json=as_json)
